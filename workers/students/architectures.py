"""The built-in architectures by name, and how one is built from its options and a seed.

Their option models, for requests, stand in the contract's catalogue; the names are the same.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from workers.students.lenet import LeNet5
from workers.students.mobilenet import mobilenetv2
from workers.students.perceptron import lenet_300_100, mlp
from workers.students.resnet import FOUR_TIMES_WIDER, NARROW, ResNet
from workers.students.vgg import vgg
from workers.students.wide_resnet import wrn


def cifar_resnet(depth: int, num_filters: tuple[int, int, int, int]) -> Callable[..., nn.Module]:
    """The builder of one named ResNet; depth and filters are in its name, so they are no options."""

    def resnet(input_shape: Sequence[int], num_classes: int) -> ResNet:
        return ResNet(depth, num_filters, input_shape, num_classes)

    return resnet


# Each takes input_shape (of one example) and num_classes, and its own options, and returns a module that maps
# a float batch (B, *input_shape) to logits (B, num_classes).
ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {
    "mlp": mlp,
    "lenet_300_100": lenet_300_100,
    "lenet5": LeNet5,
    "resnet8": cifar_resnet(8, NARROW),
    "resnet14": cifar_resnet(14, NARROW),
    "resnet20": cifar_resnet(20, NARROW),
    "resnet32": cifar_resnet(32, NARROW),
    "resnet44": cifar_resnet(44, NARROW),
    "resnet56": cifar_resnet(56, NARROW),
    "resnet110": cifar_resnet(110, NARROW),
    "resnet8x4": cifar_resnet(8, FOUR_TIMES_WIDER),
    "resnet32x4": cifar_resnet(32, FOUR_TIMES_WIDER),
    "wrn": wrn,
    "vgg": vgg,
    "mobilenetv2": mobilenetv2,
}


def build(
    name: str,
    options: Mapping[str, Any],
    *,
    input_shape: Sequence[int],
    num_classes: int,
    seed: int | None,
) -> nn.Module:
    """The architecture `name` on the CPU, in training mode, its initial weights drawn from `seed`.

    Without a seed the weights come from fresh entropy, for networks whose weights are loaded afterwards. In
    either case torch's global random state is left as it was. `options` may repeat `input_shape` and
    `num_classes`, but not contradict them.

    Raises `ValueError` for an unknown name, an unknown or impossible option, and an input that is too
    small for the architecture.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"There is no architecture {name!r}; choose one of {', '.join(ARCHITECTURES)}.")
    if num_classes < 1:
        raise ValueError(f"{name} needs num_classes of at least 1, and got {num_classes}.")
    own_options = without_repeats(name, options, tuple(input_shape), num_classes)
    check_options(name, own_options)
    with torch.random.fork_rng(devices=[]):
        # The CPU generator alone: torch.manual_seed would also reseed accelerators, which are not restored.
        if seed is None:
            torch.default_generator.seed()
        else:
            torch.default_generator.manual_seed(seed)
        return ARCHITECTURES[name](input_shape, num_classes, **own_options)


def without_repeats(
    name: str, options: Mapping[str, Any], input_shape: tuple[int, ...], num_classes: int
) -> dict[str, Any]:
    """`options` less input_shape and num_classes, or `ValueError` where they say otherwise."""
    own = dict(options)
    repeated_shape, repeated_classes = own.pop("input_shape", None), own.pop("num_classes", None)
    if repeated_shape is not None and tuple(repeated_shape) != input_shape:
        raise ValueError(f"{name} was given input_shape {list(repeated_shape)} and {list(input_shape)}.")
    if repeated_classes is not None and repeated_classes != num_classes:
        raise ValueError(f"{name} was given num_classes {repeated_classes} and {num_classes}.")
    return own


def check_options(name: str, own_options: Mapping[str, Any]) -> None:
    """`ValueError` for an option that the architecture does not take."""
    parameters = inspect.signature(ARCHITECTURES[name]).parameters
    known = [option for option in parameters if option not in {"input_shape", "num_classes"}]
    unknown = sorted(set(own_options) - set(known))
    if unknown:
        takes = f"its options are {', '.join(known)}" if known else "it has no options of its own"
        raise ValueError(f"{name} does not take {', '.join(unknown)}; {takes}.")
