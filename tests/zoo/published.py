"""Networks of the transformers library itself, at sizes that a test can train: their structure, drawn weights.

Each takes what its original takes, as plain tensors, and returns its logits alone.
"""

from typing import Any

import transformers
from torch import Tensor, nn

from tests.zoo.attention import LENGTH, VOCABULARY

WIDTH, HEADS, LAYERS, CLASSES, SIDE = 24, 4, 2, 10, 16


class Logits(nn.Module):
    """A model of transformers as a function of one tensor, which is its argument `name`."""

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self.model = model
        self.name = name

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(**{self.name: x}).logits
        return logits


class MaskedLogits(nn.Module):
    """A model of transformers as a function of tokens (B, T) and of which of them count (B, T)."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Tensor, attention_mask: Tensor) -> Tensor:
        logits: Tensor = self.model(input_ids=tokens, attention_mask=attention_mask).logits
        return logits


class Pooled(nn.Module):
    """An encoder of text, the mean over its tokens, and a classifier."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.classifier = nn.Linear(WIDTH, CLASSES)

    def forward(self, tokens: Tensor) -> Tensor:
        logits: Tensor = self.classifier(self.model(input_ids=tokens).last_hidden_state.mean(1))
        return logits


def encoder_sizes(**more: Any) -> dict[str, Any]:
    """What configurations of BERT's kind have in common."""
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": 2 * WIDTH,
        "max_position_embeddings": LENGTH + 4,
        "num_labels": CLASSES,
        **more,
    }


def bert() -> nn.Module:
    config = transformers.BertConfig(**encoder_sizes())
    return MaskedLogits(transformers.BertForSequenceClassification(config))


def distilbert() -> nn.Module:
    config = transformers.DistilBertConfig(
        vocab_size=VOCABULARY,
        max_position_embeddings=LENGTH,
        n_layers=LAYERS,
        n_heads=HEADS,
        dim=WIDTH,
        hidden_dim=2 * WIDTH,
        num_labels=CLASSES,
    )
    return MaskedLogits(transformers.DistilBertForSequenceClassification(config))


def roberta() -> nn.Module:
    config = transformers.RobertaConfig(**encoder_sizes(pad_token_id=1))
    return MaskedLogits(transformers.RobertaForSequenceClassification(config))


def gpt2() -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY,
        n_positions=LENGTH,
        n_embd=WIDTH,
        n_layer=LAYERS,
        n_head=HEADS,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    return Logits(transformers.GPT2LMHeadModel(config), "input_ids")


def llama() -> nn.Module:
    """Two query heads share one of keys and values."""
    config = transformers.LlamaConfig(**encoder_sizes(num_key_value_heads=HEADS // 2, use_cache=False))
    return Logits(transformers.LlamaForCausalLM(config), "input_ids")


def t5_encoder() -> nn.Module:
    config = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=WIDTH, d_kv=6, d_ff=2 * WIDTH, num_layers=LAYERS, num_heads=HEADS
    )
    return Pooled(transformers.T5EncoderModel(config))


def vit() -> nn.Module:
    config = transformers.ViTConfig(
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        intermediate_size=2 * WIDTH,
        image_size=SIDE,
        patch_size=4,
        num_labels=CLASSES,
    )
    return Logits(transformers.ViTForImageClassification(config), "pixel_values")


def swin() -> nn.Module:
    """Two stages with a merging of patches between them, windows of 2 x 2, every other layer's shifted."""
    config = transformers.SwinConfig(
        image_size=SIDE,
        patch_size=2,
        embed_dim=16,
        depths=[2, 2],
        num_heads=[2, 4],
        window_size=2,
        mlp_ratio=2.0,
        num_labels=CLASSES,
    )
    return Logits(transformers.SwinForImageClassification(config), "pixel_values")


def convnext() -> nn.Module:
    config = transformers.ConvNextConfig(
        num_stages=2, patch_size=2, hidden_sizes=[8, 16], depths=[1, 1], num_labels=CLASSES, image_size=SIDE
    )
    return Logits(transformers.ConvNextForImageClassification(config), "pixel_values")


def resnet() -> nn.Module:
    """The bottleneck layout of ResNet-50."""
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 32], depths=[2, 2], layer_type="bottleneck", num_labels=CLASSES
    )
    return Logits(transformers.ResNetForImageClassification(config), "pixel_values")
