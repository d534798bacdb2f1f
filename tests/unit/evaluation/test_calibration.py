import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from torch import Tensor

from tests.reference import evaluation as reference
from tests.unit.evaluation.predictions import labelled_logits
from workers.evaluation.calibration import calibration_error, error_by_chance, reliability
from workers.evaluation.quality import correct


def literal(logits: Tensor, labels: Tensor, num_bins: int) -> list[tuple[float, float, int]]:
    confidence = [max(reference.softmax(row)) for row in logits.double().tolist()]
    return reference.reliability(confidence, correct(logits, labels).tolist(), num_bins)


@pytest.mark.parametrize(("num_examples", "num_bins"), [(200, 15), (150, 10), (7, 15), (1, 15), (40, 1)])
def test_bins_and_error_are_what_the_formula_says(num_examples: int, num_bins: int) -> None:
    logits, labels = labelled_logits(num_examples, num_examples)
    found = reliability(logits, labels, num_bins)
    expected = literal(logits, labels, num_bins)
    assert [(b.confidence, b.accuracy, b.examples) for b in found] == [pytest.approx(bin_) for bin_ in expected]
    assert calibration_error(found) == pytest.approx(reference.expected_calibration_error(expected))


def test_scikit_learns_quantile_bins_are_the_same() -> None:
    logits, labels = labelled_logits(3, 1500)
    confidence, right = logits.double().softmax(1).amax(1), correct(logits, labels)
    accuracies, confidences = calibration_curve(right.numpy(), confidence.numpy(), n_bins=15, strategy="quantile")
    found = reliability(logits, labels)
    assert [b.accuracy for b in found] == pytest.approx(accuracies.tolist())
    assert [b.confidence for b in found] == pytest.approx(confidences.tolist())


def test_bins_hold_equal_numbers_of_examples() -> None:
    sizes = [b.examples for b in reliability(*labelled_logits(0, 152))]
    assert len(sizes) == 15
    assert max(sizes) - min(sizes) <= 1


def test_the_order_of_the_examples_does_not_matter_even_where_confidences_are_equal() -> None:
    logits, labels = labelled_logits(5, 100)
    logits[:60] = torch.tensor([3.0, 0, 0, 0, 0])
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    shuffled = reliability(logits[order], labels[order])
    for bin_, other in zip(reliability(logits, labels), shuffled, strict=True):
        assert (bin_.accuracy, bin_.examples) == (other.accuracy, other.examples)
        assert bin_.confidence == pytest.approx(other.confidence, abs=1e-12)


def test_a_model_whose_labels_are_drawn_from_its_own_outputs_is_calibrated() -> None:
    logits, _ = labelled_logits(1, 20_000)
    rng = np.random.default_rng(0)
    cumulative = logits.double().softmax(1).cumsum(1).numpy()
    drawn = torch.from_numpy((rng.random((20_000, 1)) > cumulative).sum(1).clip(max=4))
    assert calibration_error(reliability(logits, drawn)) < 0.02


def test_an_overconfident_model_is_off_by_confidence_minus_accuracy() -> None:
    logits = torch.tensor([[30.0, 0.0]]).repeat(100, 1)
    labels = (torch.arange(100) < 30).long()
    assert calibration_error(reliability(logits, labels)) == pytest.approx(0.3, abs=1e-9)


def test_the_error_by_chance_is_what_calibrated_models_show_on_average() -> None:
    logits, _ = labelled_logits(1, 150)
    probabilities = logits.double().softmax(1)
    generator = torch.Generator().manual_seed(0)
    draws = torch.multinomial(probabilities, 300, replacement=True, generator=generator).unbind(1)
    shown = np.mean([calibration_error(reliability(logits, labels)) for labels in draws])
    assert error_by_chance(reliability(logits, draws[0])) == pytest.approx(shown, rel=0.1)
