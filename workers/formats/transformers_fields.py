"""The fields of `config.json` that are read, class by class: numbers and words, within bounds.

What a schema does not have is judged in transformers_config.py. A size within its bounds may still be too large for
the weights that came: that is seen on the meta device, before a byte is allocated.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field

DEFAULT_PICTURE = 224  # pixels: of networks that take any size, and whose config.json says none
MAX_BLOCKS = 256  # in all stages together


def square(size: Any) -> Any:
    """[224, 224] -> 224; what is not square stays, and is refused."""
    return size[0] if isinstance(size, list) and len(size) == 2 and size[0] == size[1] else size


def bounded_sum(depths: list[int]) -> list[int]:
    """Blocks of each stage, and not too many in all."""
    if sum(depths) > MAX_BLOCKS:
        raise ValueError(f"{sum(depths)} blocks in all; at most {MAX_BLOCKS} are read")
    return depths


Width = Annotated[int, Field(ge=1, le=65_536)]
Depth = Annotated[int, Field(ge=1, le=MAX_BLOCKS)]
Heads = Annotated[int, Field(ge=1, le=1024)]
Vocabulary = Annotated[int, Field(ge=2, le=4_194_304)]
Positions = Annotated[int, Field(ge=8, le=1_048_576)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Epsilon = Annotated[float, Field(gt=0, le=1)]
Pixels = Annotated[int, Field(ge=1, le=4096)]
Stages = Annotated[list[Width], Field(min_length=1, max_length=16)]
Depths = Annotated[list[Depth], Field(min_length=1, max_length=16), AfterValidator(bounded_sum)]
Activation = Literal[
    "gelu", "gelu_new", "gelu_fast", "gelu_pytorch_tanh", "quick_gelu", "relu", "relu6", "silu", "swish", "tanh"
]

Side = Annotated[Pixels, BeforeValidator(square)]


class Fields(BaseModel):
    """The fields of a class that are read; what is left out is the class's own default."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore", allow_inf_nan=False)

    def arguments(self) -> dict[str, Any]:
        """What the class's configuration is made from."""
        return self.model_dump(exclude_unset=True)


class TextFields(Fields):
    """What every network that reads tokens has. The padding token must be known: attention leaves it out."""

    vocab_size: Vocabulary
    pad_token_id: Annotated[int, Field(ge=0, le=4_194_303)]
    max_position_embeddings: Positions = 512

    @property
    def max_tokens(self) -> int:
        """The longest sequence that has positions."""
        return self.max_position_embeddings


class Encoder(TextFields):
    """What all of the BERT family have."""

    hidden_size: Width = 768
    num_hidden_layers: Depth = 12
    num_attention_heads: Heads = 12
    intermediate_size: Width = 3072
    pad_token_id: Annotated[int, Field(ge=0, le=4_194_303)] = 0
    hidden_act: Activation = "gelu"
    hidden_dropout_prob: Rate = 0.1
    attention_probs_dropout_prob: Rate = 0.1
    layer_norm_eps: Epsilon = 1e-12


class Bert(Encoder):
    type_vocab_size: Annotated[int, Field(ge=1, le=64)] = 2
    classifier_dropout: Rate | None = None


class Roberta(Bert):
    """Positions are counted from behind the padding token's id."""

    pad_token_id: Annotated[int, Field(ge=0, le=1024)] = 1

    @property
    def max_tokens(self) -> int:
        return self.max_position_embeddings - self.pad_token_id - 1


class Electra(Bert):
    embedding_size: Width = 128


class Albert(Encoder):
    embedding_size: Width = 128
    type_vocab_size: Annotated[int, Field(ge=1, le=64)] = 2
    num_hidden_groups: Annotated[int, Field(ge=1, le=64)] = 1
    inner_group_num: Annotated[int, Field(ge=1, le=4)] = 1
    classifier_dropout_prob: Rate = 0.1


class MPNet(Encoder):
    """Positions are counted from 2, whatever the padding token is."""

    pad_token_id: Literal[1] = 1
    relative_attention_num_buckets: Annotated[int, Field(ge=2, le=1024)] = 32

    @property
    def max_tokens(self) -> int:
        return self.max_position_embeddings - 2


class DistilBert(TextFields):
    dim: Width = 768
    n_layers: Depth = 6
    n_heads: Heads = 12
    hidden_dim: Width = 3072
    pad_token_id: Annotated[int, Field(ge=0, le=4_194_303)] = 0
    sinusoidal_pos_embds: bool = False
    activation: Activation = "gelu"
    dropout: Rate = 0.1
    attention_dropout: Rate = 0.1
    seq_classif_dropout: Rate = 0.2


class GPT2(TextFields):
    """Some versions hold, in each layer, a mask of all positions by all positions."""

    max_position_embeddings: Annotated[int, Field(ge=8, le=8192)] = Field(
        1024, validation_alias=AliasChoices("n_positions", "max_position_embeddings"), serialization_alias="n_positions"
    )
    n_embd: Width = 768
    n_layer: Depth = 12
    n_head: Heads = 12
    n_inner: Width | None = None
    activation_function: Activation = "gelu_new"
    resid_pdrop: Rate = 0.1
    embd_pdrop: Rate = 0.1
    attn_pdrop: Rate = 0.1
    layer_norm_epsilon: Epsilon = 1e-5
    scale_attn_weights: bool = True
    scale_attn_by_inverse_layer_idx: bool = False

    def arguments(self) -> dict[str, Any]:
        return self.model_dump(exclude_unset=True, by_alias=True)


class Rotation(Fields):
    """Rotary positions of the plain kind: angles fall with the feature as powers of `rope_theta`."""

    model_config = ConfigDict(extra="forbid")

    rope_type: Literal["default"] = "default"
    rope_theta: Annotated[float, Field(gt=1, le=1e9)] = 10_000.0


class Llama(TextFields):
    hidden_size: Width = 4096
    num_hidden_layers: Depth = 32
    num_attention_heads: Heads = 32
    num_key_value_heads: Heads | None = None
    head_dim: Width | None = None
    intermediate_size: Width = 11_008
    hidden_act: Activation = "silu"
    max_position_embeddings: Positions = 2048
    rms_norm_eps: Epsilon = 1e-6
    attention_bias: bool = False
    attention_dropout: Rate = 0.0
    mlp_bias: bool = False
    rope_theta: Annotated[float, Field(gt=1, le=1e9)] | None = None
    rope_parameters: Rotation | None = None

    def arguments(self) -> dict[str, Any]:
        """Older files say `rope_theta` by itself."""
        own = self.model_dump(exclude_unset=True, exclude={"rope_theta", "rope_parameters"})
        rotation = self.rope_parameters or (Rotation(rope_theta=self.rope_theta) if self.rope_theta else Rotation())
        return own | {"rope_parameters": rotation.model_dump()}


class PictureFields(Fields):
    """What every network that looks at pictures has."""

    num_channels: Annotated[int, Field(ge=1, le=64)] = 3
    image_size: Side = DEFAULT_PICTURE
    hidden_act: Activation = "gelu"


class ViT(PictureFields):
    hidden_size: Width = 768
    num_hidden_layers: Depth = 12
    num_attention_heads: Heads = 12
    intermediate_size: Width = 3072
    patch_size: Side = 16
    hidden_dropout_prob: Rate = 0.0
    attention_probs_dropout_prob: Rate = 0.0
    layer_norm_eps: Epsilon = 1e-12
    qkv_bias: bool = True


class ScaledPictureFields(PictureFields):
    """With stochastic depth, which draws random numbers outside of a layer: left out."""

    drop_path_rate: Rate = 0.0

    def arguments(self) -> dict[str, Any]:
        return super().arguments() | {"drop_path_rate": 0.0}


class Dinov2(ScaledPictureFields):
    hidden_size: Width = 768
    num_hidden_layers: Depth = 12
    num_attention_heads: Heads = 12
    mlp_ratio: Annotated[int, Field(ge=1, le=64)] = 4
    patch_size: Side = 14
    hidden_dropout_prob: Rate = 0.0
    attention_probs_dropout_prob: Rate = 0.0
    layer_norm_eps: Epsilon = 1e-6
    qkv_bias: bool = True
    use_swiglu_ffn: bool = False
    use_mask_token: bool = True


class Swin(ScaledPictureFields):
    embed_dim: Width = 96
    depths: Depths = Field([2, 2, 6, 2])
    num_heads: Annotated[list[Heads], Field(min_length=1, max_length=16)] = Field([3, 6, 12, 24])
    window_size: Pixels = 7
    mlp_ratio: Annotated[float, Field(gt=0, le=64)] = 4.0
    patch_size: Side = 4
    hidden_dropout_prob: Rate = 0.0
    attention_probs_dropout_prob: Rate = 0.0
    layer_norm_eps: Epsilon = 1e-5
    qkv_bias: bool = True
    use_absolute_embeddings: bool = False


class ConvNext(ScaledPictureFields):
    hidden_sizes: Stages = Field([96, 192, 384, 768])
    depths: Depths = Field([3, 3, 9, 3])
    num_stages: Annotated[int, Field(ge=1, le=16)] = 4
    patch_size: Side = 4
    layer_norm_eps: Epsilon = 1e-12


class Stacked(PictureFields):
    """Networks for pictures of any size; `image_size` is ours, and says of which they will be here."""

    embedding_size: Width = 64
    hidden_sizes: Stages = Field([256, 512, 1024, 2048])
    depths: Depths = Field([3, 4, 6, 3])
    hidden_act: Activation = "relu"
    downsample_in_first_stage: bool = False

    def arguments(self) -> dict[str, Any]:
        return self.model_dump(exclude_unset=True, exclude={"image_size"})


class ResNet(Stacked):
    layer_type: Literal["basic", "bottleneck"] = "bottleneck"
    downsample_in_bottleneck: bool = False


class RegNet(Stacked):
    layer_type: Literal["x", "y"] = "y"
    groups_width: Width = 64


# Class of transformers -> its `model_type` and schema. All of these pass tests/unit/formats/test_transformers_folder.
CLASSES: Mapping[str, tuple[str, type[TextFields | PictureFields]]] = {
    "AlbertForSequenceClassification": ("albert", Albert),
    "BertForSequenceClassification": ("bert", Bert),
    "CamembertForSequenceClassification": ("camembert", Roberta),
    "DistilBertForSequenceClassification": ("distilbert", DistilBert),
    "ElectraForSequenceClassification": ("electra", Electra),
    "GPT2ForSequenceClassification": ("gpt2", GPT2),
    "LlamaForSequenceClassification": ("llama", Llama),
    "MPNetForSequenceClassification": ("mpnet", MPNet),
    "RobertaForSequenceClassification": ("roberta", Roberta),
    "XLMRobertaForSequenceClassification": ("xlm-roberta", Roberta),
    "ConvNextForImageClassification": ("convnext", ConvNext),
    "ConvNextV2ForImageClassification": ("convnextv2", ConvNext),
    "DeiTForImageClassification": ("deit", ViT),
    "Dinov2ForImageClassification": ("dinov2", Dinov2),
    "RegNetForImageClassification": ("regnet", RegNet),
    "ResNetForImageClassification": ("resnet", ResNet),
    "SwinForImageClassification": ("swin", Swin),
    "ViTForImageClassification": ("vit", ViT),
}
