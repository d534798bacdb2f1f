import math
from typing import get_args

import pytest
import torch

from tests.reference import information as reference
from workers.information.mutual import (
    FORMS,
    MutualInformationForm,
    entropy_of_mean_prediction,
    mutual_information,
    predictive_entropy,
    predictive_information,
)

JOINT = torch.tensor([[0.1, 0.2, 0.0], [0.3, 0.15, 0.25]], dtype=torch.float64)


def test_every_form_has_its_function() -> None:
    assert set(FORMS) == set(get_args(MutualInformationForm))


@pytest.mark.parametrize("form", get_args(MutualInformationForm))
def test_every_form_of_mutual_information_follows_the_formula(form: MutualInformationForm) -> None:
    expected = reference.mutual_information(JOINT.tolist())
    assert float(mutual_information(JOINT, form=form)) == pytest.approx(expected)
    assert float(mutual_information(JOINT, form=form, base=2)) == pytest.approx(expected / math.log(2))


def test_a_variable_tells_all_of_itself() -> None:
    p = torch.tensor([0.5, 0.25, 0.25, 0.0])
    assert float(mutual_information(torch.diag(p), base=2)) == pytest.approx(1.5)


def test_independent_variables_tell_nothing_and_never_less() -> None:
    generator = torch.Generator().manual_seed(0)
    p, q = torch.softmax(torch.randn(2, 500, 8, generator=generator), -1)
    values = mutual_information(p[:, :, None] * q[:, None, :])
    assert float(values.min()) >= 0.0
    assert float(values.max()) < 1e-6


def test_predictive_measures_follow_their_formulas() -> None:
    logits = 2 * torch.randn(12, 5, dtype=torch.float64)
    table = logits.tolist()
    assert float(predictive_entropy(logits)) == pytest.approx(reference.predictive_entropy(table))
    assert float(entropy_of_mean_prediction(logits)) == pytest.approx(
        reference.entropy(reference.mean_prediction(table))
    )
    assert float(predictive_information(logits)) == pytest.approx(reference.predictive_information(table))


def test_sure_and_balanced_predictions_claim_all_the_information_there_is() -> None:
    logits = torch.eye(8) * 1000.0
    assert float(predictive_information(logits, base=2)) == pytest.approx(3.0)
    assert float(predictive_entropy(logits)) == 0.0


def test_predictions_that_ignore_their_input_claim_nothing() -> None:
    logits = torch.randn(10).expand(64, 10)
    assert 0.0 <= float(predictive_information(logits)) < 1e-7


def test_predictive_measures_come_in_batches_of_models() -> None:
    logits = torch.randn(3, 20, 4)
    expected = torch.stack([predictive_information(model) for model in logits])
    torch.testing.assert_close(predictive_information(logits), expected)


def test_gradients_are_finite_with_masked_and_underflowing_classes() -> None:
    logits = torch.tensor([[0.0, -math.inf, 400.0], [1.0, -math.inf, -400.0]], requires_grad=True)
    value = predictive_information(logits) + entropy_of_mean_prediction(logits)
    (gradient,) = torch.autograd.grad(value, logits)
    assert bool(torch.isfinite(gradient).all())
    assert float(predictive_information(logits.detach())) == pytest.approx(math.log(2))
