"""Facts about the published CIFAR networks, and the numbers by which ours are held against them.

Each row was taken from the networks of the CIFAR-100 distillation tables (Tian et al. 2020, RepDistiller; the
ones of mdistiller gave the same): the count of parameters, of state-dict entries, a fingerprint of every entry's
name and shape, and three numbers of the output for the weights of `fill` and the image of `picture`.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn


class Published(NamedTuple):
    architecture: str
    options: Mapping[str, Any]
    side: int  # of the picture, in pixels
    parameters: int
    entries: int
    fingerprint: str
    outputs: tuple[float, float, float]  # first logit, last logit, Euclidean norm of all 100


PUBLISHED = (
    Published("resnet8", {}, 32, 83892, 56, "99cb0c0b2ea3c613", (-8.18291006, 0.652245675, 33.4918112)),
    Published("resnet14", {}, 32, 181108, 92, "629933907d5744ff", (-13.0231457, 1.55454717, 83.7220367)),
    Published("resnet20", {}, 32, 278324, 128, "0386434ca6f34c26", (-33.5617433, -16.4175182, 227.460518)),
    Published("resnet32", {}, 32, 472756, 200, "9e5592f61f0020a8", (-212.830292, -224.016448, 1772.24504)),
    Published("resnet44", {}, 32, 667188, 272, "df3dce284c7a26b4", (-529.417305, 1201.58654, 8159.32583)),
    Published("resnet56", {}, 32, 861620, 344, "fa692cabb2e3a217", (-1012.00111, 1023.53813, 34306.829)),
    Published("resnet110", {}, 32, 1736564, 668, "9ca5a9542fb3a343", (-16732786.9, 5428125.71, 86570700.2)),
    Published("resnet8x4", {}, 32, 1233540, 62, "b2ead61a142ef3af", (1.59746005, -2.86626115, 50.0290015)),
    Published("resnet32x4", {}, 32, 7433860, 206, "99154b2aea1aeb59", (-71.3139703, -162.048372, 1428.21023)),
    Published(
        "wrn", {"depth": 16, "width": 1}, 32, 180916, 82, "b4de1d786e12f08a", (7.04066622, 4.6246412, 53.5759415)
    ),
    Published(
        "wrn", {"depth": 16, "width": 2}, 32, 703284, 83, "2266f04469bf5dd9", (2.60586316, 0.112564454, 76.5569447)
    ),
    Published(
        "wrn", {"depth": 40, "width": 1}, 32, 569780, 226, "01abc5646d8c075c", (-36.0400909, -107.892994, 794.558413)
    ),
    Published(
        "wrn", {"depth": 40, "width": 2}, 32, 2255156, 227, "595ec0db20d1ca1c", (85.4980042, 14.4880857, 774.926912)
    ),
    Published("vgg", {"depth": 8}, 32, 3965028, 37, "7f85b8479109415f", (4.68971384, -0.929115077, 29.6249117)),
    Published("vgg", {"depth": 11}, 32, 9277284, 58, "6053995f63325762", (-0.0195222373, 1.63066953, 22.4344138)),
    Published("vgg", {"depth": 13}, 32, 9462180, 72, "5778ceb5832ef6a7", (-2.1649868, -0.292933686, 26.567159)),
    Published("vgg", {"depth": 16}, 32, 14774436, 93, "0729229b18559f53", (3.84213576, 1.44251223, 22.5437525)),
    Published("vgg", {"depth": 19}, 32, 20086692, 114, "e27ccb5da4f3ad9e", (0.0556738264, -0.886990532, 23.2161639)),
    Published("vgg", {"depth": 8}, 64, 3965028, 37, "7f85b8479109415f", (6.21543018, -1.83633622, 35.462431)),
    Published("mobilenetv2", {}, 32, 812836, 320, "54501c9a7e317631", (3.20028494, -1.24974022, 120.80028)),
    Published(
        "mobilenetv2", {"width": 1.3}, 32, 3875849, 320, "5c27cfa07761b595", (0.551281576, 6.69696329, 131.415673)
    ),
)


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """A short hash of the names and shapes of a state dict."""
    lines = [f"{name} {tuple(tensor.shape)}" for name, tensor in sorted(state.items())]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def stream(seed: int) -> np.random.RandomState:
    """Random numbers from the one generator whose stream numpy promises never to change."""
    return np.random.RandomState(seed)


def fill(network: nn.Module) -> None:
    """Give every entry a value that follows from its name's rank alone, so that no initialiser matters."""
    random = stream(0)
    for name, tensor in sorted(network.state_dict().items()):
        noise = random.standard_normal(tuple(tensor.shape))
        if tensor.dim() >= 2:
            noise *= math.sqrt(2 / tensor[0].numel())
        elif name.endswith("running_var"):
            noise = 1 + np.abs(noise) / 2
        elif name.endswith("weight"):
            noise = 1 + noise / 10
        elif name.endswith("num_batches_tracked"):
            continue
        tensor.copy_(torch.as_tensor(noise))


def picture(side: int) -> Tensor:
    """One image in float64, (1, 3, side, side)."""
    return torch.from_numpy(stream(1).standard_normal((1, 3, side, side)))


def outputs_of(network: nn.Module, side: int) -> tuple[float, float, float]:
    """What `Published.outputs` holds, of a network whose weights `fill` gives."""
    network = network.double().eval()
    fill(network)
    with torch.no_grad():
        logits = network(picture(side))[0]
    return float(logits[0]), float(logits[-1]), float(logits.norm())
