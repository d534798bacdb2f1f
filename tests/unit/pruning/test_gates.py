"""Scores by gates: derivatives by a factor on each unit, one example and one unit at a time."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from service.contract.errors import Invalid
from tests.unit.pruning.subjects import AMPLE, SILENT, Subject, outputs, subject
from workers.pruning.criteria.gates import output_kl_fisher, taylor
from workers.pruning.criteria.linearised import linearised_kl
from workers.pruning.reads import Read, ReadingRun
from workers.pruning.replacement import fit

NAMES = ["lenet", "resnet8", "vit"]


def gated_outputs(case: Subject, example: int, group: str, unit: int, gate: Tensor) -> Tensor:
    """The outputs on one example when the unit is multiplied by `gate` at every read, of a product its first factor."""

    def listen(read: Read, value: Tensor) -> Tensor:
        if read.again or read.indices[unit, 0] < 0:
            return value
        factor = torch.ones(value.shape[read.axis], dtype=value.dtype)
        index = torch.as_tensor(read.indices[unit])
        factor = factor.index_put((index,), gate.expand(len(index)))
        return value * factor.reshape([-1 if axis == read.axis else 1 for axis in range(value.dim())])

    return ReadingRun(case.network, {group: case.reads[group]}, listen).outputs(case.x[example : example + 1])[0]


def derivatives(case: Subject, group: str, unit: int, measure: Callable[[Tensor, int], Tensor]) -> Tensor:
    """measure(outputs, example) by the gate, for every example."""
    found = []
    for example in range(len(case.x)):
        gate = torch.ones((), dtype=torch.float64, requires_grad=True)
        value = measure(gated_outputs(case, example, group, unit, gate), example)
        found.append(torch.stack([torch.autograd.grad(part, gate, retain_graph=True)[0] for part in value]))
    return torch.stack(found)


@pytest.mark.parametrize("name", NAMES)
def test_taylor_is_the_mean_squared_derivative_of_the_loss_by_the_gate(name: str) -> None:
    case = subject(name, 3)
    found = taylor(*case.all, memory_bytes=AMPLE, journal=SILENT)
    for group, part in case.groups.items():
        unit = part.num_units - 1
        by_gate = derivatives(
            case, group, unit, lambda y, example: -torch.log_softmax(y, -1)[case.labels[example]][None]
        )
        assert float(found.values[group][unit]) == pytest.approx(float(by_gate.square().mean()), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_fisher_is_half_the_expected_squared_derivative_of_the_log_probabilities(name: str) -> None:
    case = subject(name, 3)
    found = output_kl_fisher(*case.all, probes=None, seed=0, memory_bytes=AMPLE, journal=SILENT)
    p = torch.softmax(outputs(case), -1)
    for group in case.groups:
        by_gate = derivatives(case, group, 0, lambda y, _: torch.log_softmax(y, -1))
        expected = (p * by_gate.square()).sum(1).mean() / 2
        assert float(found.values[group][0]) == pytest.approx(float(expected), rel=1e-6, abs=1e-12)


def test_fisher_probes_are_the_probes_of_output_kl_under_zero_ablation_at_temperature_one() -> None:
    case = subject("mlp")
    options = {"probes": 4, "seed": 3, "memory_bytes": AMPLE, "journal": SILENT}
    fisher = output_kl_fisher(*case.all, **options)
    kl = linearised_kl(*case.all, fit(*case.all, "zero"), temperature=1.0, reference=None, **options)
    for name, values in kl.values.items():
        torch.testing.assert_close(fisher.values[name], values)


def test_taylor_wants_labels() -> None:
    case = subject("mlp", labelled=False)
    with pytest.raises(Invalid, match="needs labels"):
        taylor(*case.all, memory_bytes=AMPLE, journal=SILENT)
