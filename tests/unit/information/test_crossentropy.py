import math

import pytest
import torch
from sklearn.metrics import log_loss
from torch.nn import functional as F

from tests.reference import information as reference
from workers.information.crossentropy import (
    binary_cross_entropy,
    binary_cross_entropy_from_logits,
    cross_entropy,
    cross_entropy_from_logits,
    smoothed_targets,
)


def test_cross_entropy_follows_its_formula() -> None:
    p, q = torch.softmax(torch.randn(2, 4, 6, dtype=torch.float64), -1)
    expected = [reference.cross_entropy(a, b) for a, b in zip(p.tolist(), q.tolist(), strict=True)]
    assert cross_entropy(p, q).tolist() == pytest.approx(expected)
    assert cross_entropy(p, q, base=2).tolist() == pytest.approx([e / math.log(2) for e in expected])


def test_cross_entropy_is_infinite_only_where_mass_is_thought_impossible() -> None:
    q = torch.tensor([0.0, 0.5, 0.5])
    assert float(cross_entropy(torch.tensor([0.5, 0.5, 0.0]), q)) == math.inf
    assert float(cross_entropy(torch.tensor([0.0, 1.0, 0.0]), q)) == pytest.approx(math.log(2))


def test_hard_targets_agree_with_scikit_learn_and_torch() -> None:
    logits, target = torch.randn(50, 4), torch.randint(4, (50,))
    rows = cross_entropy_from_logits(logits, target)
    assert rows.shape == (50,)
    oracle = log_loss(target.numpy(), torch.softmax(logits.double(), -1).numpy(), labels=range(4))
    assert float(rows.mean()) == pytest.approx(oracle, rel=1e-5)
    torch.testing.assert_close(rows, F.cross_entropy(logits, target, reduction="none"))


def test_soft_targets_that_are_one_hot_are_hard_targets() -> None:
    logits, target = torch.randn(9, 5), torch.randint(5, (9,))
    soft = cross_entropy_from_logits(logits, F.one_hot(target, 5).float())
    torch.testing.assert_close(soft, cross_entropy_from_logits(logits, target))


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_label_smoothing_shares_over_all_classes(smoothing: float) -> None:
    target = torch.tensor([0, 2, 1])
    q = smoothed_targets(target, 4, smoothing, dtype=torch.float64)
    expected = [reference.smoothed(int(t), 4, smoothing) for t in target]
    assert q.tolist() == [pytest.approx(row) for row in expected]
    logits = torch.randn(3, 4, dtype=torch.float64)
    values = cross_entropy_from_logits(logits, target, label_smoothing=smoothing)
    by_formula = [
        reference.cross_entropy(row, reference.softmax(z)) for row, z in zip(expected, logits.tolist(), strict=True)
    ]
    assert values.tolist() == pytest.approx(by_formula)
    torch.testing.assert_close(values, cross_entropy_from_logits(logits, q))
    torch.testing.assert_close(values, F.cross_entropy(logits, target, reduction="none", label_smoothing=smoothing))


def test_soft_targets_are_smoothed_as_hard_ones_are() -> None:
    logits, p = torch.randn(3, 4), torch.softmax(torch.randn(3, 4), -1)
    mixed = 0.8 * p + 0.2 / 4
    torch.testing.assert_close(
        cross_entropy_from_logits(logits, p, label_smoothing=0.2), cross_entropy_from_logits(logits, mixed)
    )


def test_classes_may_lie_along_any_dimension() -> None:
    logits, target = torch.randn(2, 5, 3, 3), torch.randint(5, (2, 3, 3))
    rows = cross_entropy_from_logits(logits, target, dim=1, label_smoothing=0.1)
    torch.testing.assert_close(rows, F.cross_entropy(logits, target, reduction="none", label_smoothing=0.1))


def test_a_masked_class_costs_nothing_unless_it_is_the_target() -> None:
    logits = torch.tensor([[0.0, -math.inf], [0.0, -math.inf]], requires_grad=True)
    soft = cross_entropy_from_logits(logits, torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    assert soft.tolist() == [0.0, math.inf]
    (gradient,) = torch.autograd.grad(soft[0], logits)
    assert bool(torch.isfinite(gradient).all())


def test_extreme_logits_give_finite_losses_and_gradients_in_bfloat16() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0]], dtype=torch.bfloat16, requires_grad=True)
    loss = cross_entropy_from_logits(logits, torch.tensor([1]), label_smoothing=0.1)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.dtype == torch.float32
    assert bool(torch.isfinite(loss).all())
    assert bool(torch.isfinite(gradient).all())


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (torch.tensor([0, 5]), r"outside 0\.\.2"),
        (torch.tensor([0, -1]), r"outside 0\.\.2"),
        (torch.tensor([0]), "one class per row"),
        (torch.rand(2, 4), "that of the logits"),
    ],
)
def test_targets_that_do_not_fit_are_refused(target: torch.Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        cross_entropy_from_logits(torch.randn(2, 3), target)


def test_smoothing_outside_its_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"Label smoothing is 1\.5"):
        cross_entropy_from_logits(torch.randn(2, 3), torch.tensor([0, 1]), label_smoothing=1.5)


def test_binary_cross_entropy_follows_its_formula_with_and_without_logits() -> None:
    z, t = torch.randn(40, dtype=torch.float64), torch.rand(40, dtype=torch.float64)
    expected = [
        reference.binary_cross_entropy(reference.sigmoid(a), b) for a, b in zip(z.tolist(), t.tolist(), strict=True)
    ]
    assert binary_cross_entropy_from_logits(z, t).tolist() == pytest.approx(expected)
    assert binary_cross_entropy(torch.sigmoid(z), t).tolist() == pytest.approx(expected)


def test_binary_cross_entropy_knows_certainty() -> None:
    p, t = torch.tensor([0.0, 1.0, 0.0, 1.0]), torch.tensor([0, 1, 1, 0])
    assert binary_cross_entropy(p, t).tolist() == [0.0, 0.0, math.inf, math.inf]
    z = torch.tensor([-math.inf, math.inf, -500.0, 500.0], requires_grad=True)
    loss = binary_cross_entropy_from_logits(z, t)
    assert loss.tolist() == [0.0, 0.0, 500.0, 500.0]
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    assert gradient.tolist() == [0.0, 0.0, -1.0, 1.0]


def test_binary_cross_entropy_keeps_what_one_minus_p_would_round_away() -> None:
    assert float(binary_cross_entropy(torch.tensor(1e-20), torch.tensor(0.0))) == pytest.approx(1e-20)


def test_binary_cross_entropy_refuses_logits_taken_for_probabilities() -> None:
    with pytest.raises(ValueError, match="from_logits"):
        binary_cross_entropy(torch.tensor([1.2]), torch.tensor([1.0]))


def test_losses_work_under_vmap_for_gradients_per_example() -> None:
    logits, target = torch.randn(6, 3), torch.randint(3, (6,))
    gradients = torch.func.vmap(torch.func.grad(cross_entropy_from_logits))(logits, target)
    torch.testing.assert_close(gradients, torch.softmax(logits, -1) - F.one_hot(target, 3))
