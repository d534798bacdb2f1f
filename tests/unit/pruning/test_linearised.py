"""The linearised scores: the Jacobian edge by edge, the divergence it stands for, and the probes that stand for it."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.reference import criteria as reference
from tests.unit.pruning.subjects import AMPLE, SILENT, Subject, outputs, subject
from workers.pruning import observation
from workers.pruning.calibration import Batch
from workers.pruning.criteria import linearised
from workers.pruning.criteria.linearised import Probes, linearised_kl
from workers.pruning.criteria.sensitivity import every_class, responses
from workers.pruning.replacement import Ablation, Replacement, fit
from workers.pruning.scores import Scores

# Plain, residual, concatenated, gated, merged and moved axes of examples, heads and widths, tokens.
NAMES = ["mlp", "lenet", "resnet8", "densenet", "efficientnet", "convnext", "vit", "torch_encoder", "sentences"]


def jacobian(case: Subject, fitted: Replacement) -> dict[str, Tensor]:
    """(group) -> (K, N, units)."""
    stream = responses(*case.all, fitted, every_class, passes=10, memory_bytes=AMPLE)
    parts = [answer.by_group for answer in stream]
    return {name: torch.cat([part[name] for part in parts], 1) for name in case.groups}


def scored(case: Subject, ablation: Ablation = "residual", **options: Any) -> Scores:
    defaults = {"temperature": 4.0, "reference": None, "probes": None, "seed": 0, "memory_bytes": AMPLE}
    return linearised_kl(*case.all, fit(*case.all, ablation), journal=SILENT, **(defaults | options))


@pytest.mark.parametrize("ablation", ["zero", "mean", "residual"])
@pytest.mark.parametrize("name", NAMES)
def test_the_jacobian_is_the_derivative_by_what_is_taken_away(name: str, ablation: str) -> None:
    case = subject(name, 3)
    found = jacobian(case, fit(*case.all, ablation))
    stands = reference.statistics(case.network, case.groups, case.reads, case.x)
    for group, part in case.groups.items():
        unit = (7 * len(group)) % part.num_units
        expected = reference.logit_change(case.network, case.reads, case.x, group, unit, ablation, stands)
        torch.testing.assert_close(found[group][:, :, unit].T, expected.double(), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("teacher", [False, True])
def test_scores_are_the_divergence_that_the_jacobian_predicts(teacher: bool) -> None:
    case = subject("resnet8")
    y = outputs(case)
    t = y + torch.randn(y.shape, generator=torch.Generator().manual_seed(3)).double() if teacher else y
    found = scored(case, reference=t if teacher else None)
    jacobians = jacobian(case, fit(*case.all, "residual"))
    for name, part in jacobians.items():
        changes = reference.kl_changes(t, y, y - part[:, :, 0].T, 4.0)
        assert float(found.values[name][0]) == pytest.approx(reference.mean(changes), rel=1e-6, abs=1e-12)
        assert float(found.errors[name][0]) == pytest.approx(reference.standard_error(changes), rel=1e-5, abs=1e-10)
    assert found.examples == len(y)


def test_against_the_networks_own_outputs_no_score_is_negative() -> None:
    for name in ("densenet", "vit"):
        assert all((value >= 0).all() for value in scored(subject(name)).values.values())


def test_against_a_teacher_a_unit_that_does_harm_is_negative() -> None:
    case = subject("resnet8")
    teacher = torch.zeros_like(outputs(case))
    values = torch.cat(list(scored(case, reference=teacher, temperature=1.0).values.values()))
    assert (values < 0).any()


@pytest.mark.parametrize("probes", [None, 3])
def test_scores_do_not_depend_on_the_batches(probes: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    case = subject("lenet", 7)
    whole = scored(case, probes=probes)
    monkeypatch.setattr(observation, "MAX_BATCH", 3)
    monkeypatch.setattr(linearised, "CHUNK_BYTES", 1000)
    parts = scored(case, probes=probes)
    for name, values in whole.values.items():
        torch.testing.assert_close(parts.values[name], values, rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(parts.errors[name], whole.errors[name], rtol=1e-6, atol=1e-10)


def test_one_batch_fits_into_the_memory_that_is_given() -> None:
    case = subject("lenet", 7)
    stream = responses(*case.all, fit(*case.all, "zero"), every_class, passes=10, memory_bytes=100_000)
    sizes = [len(answer.batch) for answer in stream]
    assert max(sizes) < 7
    assert sum(sizes) == 7


def test_the_network_is_left_as_it_was() -> None:
    case = subject("resnet8")
    network = case.network
    parameters = list(network.parameters())
    parameters[1].requires_grad_(False)
    network.train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    try:
        scored(case)
        assert network.training
        assert all(module.training for module in network.modules())
        assert [p.requires_grad for p in parameters] == [place != 1 for place in range(len(parameters))]
        assert all(p.grad is None for p in parameters)
        assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    finally:
        network.eval()
        parameters[1].requires_grad_(True)


def test_scores_are_found_where_gradients_are_off() -> None:
    case = subject("mlp")
    with torch.no_grad():
        assert all(value.sum() > 0 for value in scored(case).values.values())


# Probes -------------------------------------------------------------------------------------------------------------


@given(st.integers(2, 5), st.floats(0.5, 5), st.integers(0, 1000))
def test_the_probes_have_the_fisher_matrix_as_their_second_moment(classes: int, temperature: float, seed: int) -> None:
    """E v vᵀ = diag(p) − ppᵀ, by all 2^K signs in place of drawn ones."""
    logits = torch.randn(1, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    p = torch.softmax(logits[0] / temperature, -1)
    signs = torch.tensor(list(np.ndindex(*[2] * classes)), dtype=torch.float64) * 2 - 1

    class All:
        def random(self, _shape: tuple[int, ...]) -> np.ndarray:
            return (signs[None].numpy() + 1) / 2

    probes = Probes(len(signs), temperature, 0, None)
    probes._generator = All()
    v = probes(Batch(0, logits, None), logits)[:, 0]
    torch.testing.assert_close(v.T @ v / len(v), torch.diag(p) - torch.outer(p, p), rtol=1e-10, atol=1e-12)


def test_a_probe_is_the_sum_over_classes_of_the_formula() -> None:
    logits = torch.randn(2, 4, dtype=torch.float64)
    probes = Probes(1, 2.0, 5, None)
    drawn = np.random.default_rng([5, 0x9205E]).random((2, 1, 4))
    v = probes(Batch(0, logits, None), logits)[0]
    for example in range(2):
        p = torch.softmax(logits[example] / 2.0, -1)
        expected = torch.zeros(4, dtype=torch.float64)
        for k in range(4):
            sign = -1.0 if drawn[example, 0, k] < 0.5 else 1.0
            expected += sign * p[k].sqrt() * (torch.eye(4).double()[k] - p)
        torch.testing.assert_close(v[example], expected)


def test_many_probes_come_to_the_second_order_of_the_divergence() -> None:
    case = subject("mlp", 4)
    temperature = 50.0  # at which what is left out is small
    exact = scored(case, temperature=temperature)
    probed = scored(case, temperature=temperature, probes=600)
    for name, values in exact.values.items():
        torch.testing.assert_close(probed.values[name], values, rtol=0.25, atol=1e-6)


def test_probes_see_a_teacher_to_first_order() -> None:
    case = subject("mlp", 4)
    teacher = outputs(case) * 0.3
    exact = scored(case, temperature=50.0, reference=teacher)
    probed = scored(case, temperature=50.0, reference=teacher, probes=600)
    everything, estimate = (torch.cat(list(s.values.values())) for s in (exact, probed))
    assert (everything < 0).any()
    assert torch.corrcoef(torch.stack([everything, estimate]))[0, 1] > 0.99


def test_many_classes_are_probed_unless_all_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    case = subject("mlp")
    monkeypatch.setattr(linearised, "MANY_CLASSES", 9)
    assert linearised.num_probes(case.network, None) == linearised.PROBES
    monkeypatch.setattr(linearised, "MANY_CLASSES", 64)
    assert linearised.num_probes(case.network, None) is None
    assert linearised.num_probes(case.network, 2) == 2
