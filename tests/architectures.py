"""The zoo: one small network of every common kind, with example inputs, for tests of whatever reads models.

for name in ARCHITECTURES: network, inputs = specimen(name)
"""

import functools
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from tests.zoo import published
from tests.zoo.attention import (
    BERT,
    GPT,
    LENGTH,
    VOCABULARY,
    ConvNeXt,
    FusedEncoder,
    Llama,
    Recurrent,
    TorchEncoder,
    VisionTransformer,
)
from tests.zoo.branching import DenseNet, GatedNet, GoogLeNet, Inception, MobileNetV2, ShuffleNet
from tests.zoo.convolutional import (
    VGG,
    BottleneckResNet,
    LeNet,
    Perceptron,
    PreActivationResNet,
    TimeSeriesNet,
    UNet,
)
from workers.students.architectures import build

BATCH = 3
ARCHIVES = tempfile.TemporaryDirectory(prefix="zoo-")  # lives as long as the tests


def builtin(name: str, **options: int) -> nn.Module:
    return build(name, options, input_shape=(3, 16, 16), num_classes=10, seed=0)


def image(channels: int = 3) -> tuple[Tensor, ...]:
    return (torch.randn(BATCH, channels, 16, 16),)


def sequence() -> tuple[Tensor, ...]:
    return (torch.randn(BATCH, LENGTH, 16),)


def tokens() -> tuple[Tensor, ...]:
    return (torch.randint(1, VOCABULARY, (BATCH, LENGTH)),)


def masked_tokens() -> tuple[Tensor, ...]:
    return *tokens(), torch.ones(BATCH, LENGTH, dtype=torch.int64)


# Name -> how the network is built, and its example inputs.
ARCHITECTURES: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]]]] = {
    "mlp": (Perceptron, lambda: (torch.randn(BATCH, 48),)),
    "lenet": (LeNet, lambda: image(1)),
    "resnet8": (lambda: builtin("resnet8"), image),
    "wrn": (lambda: builtin("wrn", depth=10, width=1), image),
    "preactivation_resnet": (PreActivationResNet, image),
    "bottleneck_resnet": (lambda: BottleneckResNet(8, (1, 1), 10), image),
    "resnext": (lambda: BottleneckResNet(8, (1, 1), 10, groups=4), image),
    "vgg": (VGG, image),
    "mobilenet_v2": (MobileNetV2, image),
    "mobilenet_v3": (lambda: GatedNet(nn.Hardswish, nn.Hardsigmoid()), image),
    "efficientnet": (lambda: GatedNet(nn.SiLU, nn.Sigmoid()), image),
    "shufflenet": (ShuffleNet, image),
    "densenet": (DenseNet, image),
    "inception": (Inception, image),
    "googlenet": (GoogLeNet, image),
    "unet": (UNet, image),
    "conv1d": (TimeSeriesNet, lambda: (torch.randn(BATCH, 2, 40),)),
    "convnext": (ConvNeXt, image),
    "vit": (VisionTransformer, image),
    "torch_encoder": (TorchEncoder, sequence),
    "fused_qkv": (FusedEncoder, sequence),
    "llama": (Llama, tokens),
    "gpt": (GPT, tokens),
    "bert": (BERT, masked_tokens),
    "lstm": (Recurrent, sequence),
}
# The same of networks as the transformers library defines them, which take longer to build and export.
PUBLISHED: dict[str, tuple[Callable[[], nn.Module], Callable[[], tuple[Tensor, ...]]]] = {
    "hf_resnet": (published.resnet, image),
    "hf_convnext": (published.convnext, image),
    "hf_vit": (published.vit, image),
    "hf_swin": (published.swin, image),
    "hf_bert": (published.bert, masked_tokens),
    "hf_distilbert": (published.distilbert, masked_tokens),
    "hf_roberta": (published.roberta, masked_tokens),
    "hf_t5_encoder": (published.t5_encoder, tokens),
    "hf_gpt2": (published.gpt2, tokens),
    "hf_llama": (published.llama, tokens),
}


def specimen(name: str, seed: int = 0) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A network of the zoo in training mode, and inputs for it; the same for the same seed."""
    build_network, make_inputs = (ARCHITECTURES | PUBLISHED)[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_network(), make_inputs()


@functools.cache
def exported(name: str, *, training: bool = False) -> Path:
    """The archive of `specimen(name)`, written once per run of the tests."""
    network, inputs = specimen(name)
    mode = "training" if training else "evaluation"
    return export(network, inputs, Path(ARCHIVES.name) / f"{name}_{mode}.pt2", training=training)


def export(network: nn.Module, inputs: tuple[Tensor, ...], path: Path, *, training: bool = False) -> Path:
    """Save `network` as a user would: torch.export with a dynamic batch, then torch.export.save."""
    network.train(training)
    dynamic = tuple({0: torch.export.Dim.DYNAMIC} for _ in inputs)
    with quiet():
        torch.export.save(torch.export.export(network, inputs, dynamic_shapes=dynamic), path)
    return path


@contextmanager
def quiet() -> Iterator[None]:
    """Without torch's own warnings about what an LSTM keeps in its attributes while it is exported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
