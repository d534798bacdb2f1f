"""Small Hugging Face folders with random weights, as `save_pretrained` writes them."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from service.contract.specs import ModelDeclaration
from tests.unit.formats.declared import UPLOAD

transformers = pytest.importorskip("transformers")

VOCABULARY, POSITIONS, CLASSES = 60, 24, 3
WIDTHS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TEXT = {"vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS, "pad_token_id": 0, **WIDTHS}
ROBERTA = {**TEXT, "pad_token_id": 1}
PICTURE = {**WIDTHS, "image_size": 16, "patch_size": 4}
CONVOLUTIONAL = {"hidden_sizes": [8, 16], "depths": [1, 2]}

# Class -> what its configuration has besides its defaults.
SMALL: dict[str, dict[str, Any]] = {
    "AlbertForSequenceClassification": {**TEXT, "embedding_size": 8},
    "BertForSequenceClassification": TEXT,
    "CamembertForSequenceClassification": ROBERTA,
    "DistilBertForSequenceClassification": {
        "vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS, "pad_token_id": 0,
        "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32,
    },
    "ElectraForSequenceClassification": {**TEXT, "embedding_size": 8},
    "GPT2ForSequenceClassification": {
        "vocab_size": VOCABULARY, "n_positions": POSITIONS, "pad_token_id": 0, "n_embd": 16, "n_layer": 2, "n_head": 2,
    },
    "LlamaForSequenceClassification": {
        **TEXT, "num_key_value_heads": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 5000.0},
    },
    "MPNetForSequenceClassification": ROBERTA,
    "RobertaForSequenceClassification": ROBERTA,
    "XLMRobertaForSequenceClassification": ROBERTA,
    "ConvNextForImageClassification": {**CONVOLUTIONAL, "num_stages": 2, "image_size": 16, "patch_size": 2},
    "ConvNextV2ForImageClassification": {**CONVOLUTIONAL, "num_stages": 2, "image_size": 16, "patch_size": 2},
    "DeiTForImageClassification": PICTURE,
    "Dinov2ForImageClassification": {**PICTURE, "mlp_ratio": 2},
    "RegNetForImageClassification": {**CONVOLUTIONAL, "embedding_size": 8, "groups_width": 4},
    "ResNetForImageClassification": {**CONVOLUTIONAL, "embedding_size": 8, "layer_type": "basic"},
    "SwinForImageClassification": {
        "image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 2], "num_heads": [2, 2], "window_size": 4,
    },
    "ViTForImageClassification": PICTURE,
}  # fmt: skip


def network_of(name: str, seed: int = 0, **changes: Any) -> nn.Module:
    """A class of transformers with small sizes and random weights, in evaluation mode."""
    kind = getattr(transformers, name)
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        network: nn.Module = kind(kind.config_class(**{"num_labels": CLASSES, **SMALL[name], **changes}))
        for weight in network.parameters():  # initial weights are so small that all logits are alike
            weight.data += 0.1 * torch.randn_like(weight)
    return network.eval()


def save(network: Any, folder: Path) -> Path:
    """Write the folder as its owner would."""
    folder.mkdir(exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network.save_pretrained(folder)
    return folder


def declared(*more: str) -> ModelDeclaration:
    names = ("config.json", "model.safetensors", *more)
    return ModelDeclaration.model_validate({"name": "m", "files": dict.fromkeys(names, UPLOAD)})


def token_ids(rows: int, length: int, padding: int, seed: int = 0) -> Tensor:
    """(rows, length) int64; every row but the first ends in padding."""
    drawn = torch.randint(2, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(seed))
    for row in range(1, rows):
        drawn[row, max(1, length - row) :] = padding
    return drawn
