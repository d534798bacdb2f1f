"""What the service would say of an archive, found by the reader that the service itself uses."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from service.contract.errors import InputRejected
from workers.formats.graph_models import load_graph, read_graph

TOLERANCE = 1e-5  # relative to the largest output; the same operators in the same order give the same bits


@dataclass(frozen=True)
class Verdict:
    """Accepted with the facts of a model's record, or refused with a reason."""

    facts: dict[str, Any] | None  # as the service would record them
    code: str = ""
    reason: str = ""
    difference: float | None = None  # the largest, of the archive's outputs from the network's; relative

    @property
    def accepted(self) -> bool:
        """Whether the service would take the archive, and it computes what the network computes."""
        return self.facts is not None and self.difference is not None and self.difference <= TOLERANCE


def judge(path: Path, network: nn.Module, inputs: tuple[Tensor, ...]) -> Verdict:
    """Read the archive at `path` as the service would, and compare it with `network` on `inputs` (B, …)."""
    with TemporaryDirectory() as folder:
        try:
            facts = read_graph(path, Path(folder))
        except InputRejected as refusal:
            return Verdict(None, refusal.fault().code, refusal.detail)
        read = load_graph(Path(folder)).eval()
        difference = largest_difference(outputs(read, inputs), outputs(network.eval(), inputs))
    return Verdict(facts, difference=difference)


def outputs(network: nn.Module, inputs: Sequence[Tensor]) -> Tensor:
    """The one output of a network that the service takes."""
    with torch.no_grad():
        found = network(*inputs)
    only: Tensor = found[0] if isinstance(found, (tuple, list)) else found
    return only


def largest_difference(found: Tensor, expected: Tensor) -> float:
    """The largest |found - expected|, relative to the largest |expected|; infinite where one is NaN."""
    scale = float(expected.abs().max()) or 1.0
    difference = float((found - expected).abs().max()) / scale
    return difference if difference == difference else float("inf")  # noqa: PLR0124  NaN alone differs from itself
