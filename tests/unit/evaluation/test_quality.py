import math

import numpy as np
import pytest
import torch
from sklearn import metrics

from tests.reference import evaluation as reference
from tests.unit.evaluation.predictions import CLASSES, labelled_logits
from workers.evaluation.quality import (
    accuracy,
    confusion_matrix,
    correct,
    label_information,
    negative_log_likelihood,
    output_information,
)


@pytest.mark.parametrize("seed", range(3))
def test_every_measure_is_what_its_formula_says(seed: int) -> None:
    logits, labels = labelled_logits(seed)
    rows, predicted = logits.double().tolist(), logits.argmax(1).tolist()
    found = output_information(logits)
    assert found["predictive_entropy"] == pytest.approx(reference.predictive_entropy(rows))
    assert found["marginal_entropy"] == pytest.approx(reference.entropy(reference.mean_prediction(rows)))
    claimed = found["marginal_entropy"] - found["predictive_entropy"]
    assert found["claimed_information"] == pytest.approx(claimed, abs=1e-9)
    expected = reference.negative_log_likelihood(rows, labels.tolist())
    assert negative_log_likelihood(logits, labels) == pytest.approx(expected)
    expected = reference.label_information(predicted, labels.tolist())
    assert label_information(logits, labels) == pytest.approx(expected)


def test_scikit_learn_finds_the_same() -> None:
    logits, labels = labelled_logits(7, num_examples=500)
    predicted = logits.argmax(1)
    assert accuracy(logits, labels).value == metrics.accuracy_score(labels, predicted)
    probabilities = logits.double().softmax(1).numpy()
    assert negative_log_likelihood(logits, labels) == pytest.approx(metrics.log_loss(labels, probabilities), abs=1e-7)
    assert np.array_equal(confusion_matrix(logits, labels), metrics.confusion_matrix(labels, predicted))
    cells = metrics.confusion_matrix(labels, predicted)
    correction = ((cells.sum(1) > 0).sum() + (cells.sum(0) > 0).sum() - (cells > 0).sum() - 1) / (2 * 500)
    plug_in = metrics.mutual_info_score(labels, predicted)
    assert label_information(logits, labels) == pytest.approx(plug_in + correction)


def test_a_perfect_model_tells_all_there_is_to_know_about_the_labels() -> None:
    labels = torch.arange(CLASSES).repeat(40)
    logits = 100.0 * torch.nn.functional.one_hot(labels, CLASSES)
    assert accuracy(logits, labels).value == 1
    assert label_information(logits, labels) == pytest.approx(math.log(CLASSES), abs=0.02)
    assert output_information(logits)["claimed_information"] == pytest.approx(math.log(CLASSES))


def test_a_model_that_ignores_its_input_tells_nothing() -> None:
    labels = torch.arange(CLASSES).repeat(40)
    logits = torch.tensor([[3.0, 1.0, 0.0, 0.0, 0.0]]).repeat(len(labels), 1)
    assert label_information(logits, labels) == pytest.approx(0, abs=1e-9)
    assert output_information(logits)["claimed_information"] == pytest.approx(0, abs=1e-9)


def test_a_confidently_wrong_model_claims_much_and_is_never_right() -> None:
    labels = torch.arange(CLASSES).repeat(40)
    logits = 50.0 * torch.nn.functional.one_hot((labels + 1) % CLASSES, CLASSES)
    assert not correct(logits, labels).any()
    assert negative_log_likelihood(logits, labels) == pytest.approx(50)
    assert output_information(logits)["claimed_information"] == pytest.approx(math.log(CLASSES))


def test_classes_that_never_occur_take_no_memory() -> None:
    labels = torch.tensor([5, 99_999, 5])
    logits = torch.zeros(3, 100_000)
    logits[[0, 1, 2], [5, 99_999, 7]] = 1
    assert confusion_matrix(logits, labels).tolist() == [[1, 1, 0], [0, 0, 1]]
