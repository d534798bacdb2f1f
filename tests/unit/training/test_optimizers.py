import pytest
import torch
from torch import nn

from service.contract.errors import Invalid
from service.contract.specs import SGD, AdamW, Optimizer
from tests.reference import training as reference
from tests.unit.training.blobs import small_network
from workers.training.optimizers import OPTIMIZERS, optimizer_of, set_learning_rate

GRADIENTS = [0.3, -1.2, 0.0, 2.5, -0.01]


def descend(spec: Optimizer) -> float:
    model = nn.Linear(1, 1, bias=False).double()
    with torch.no_grad():
        model.weight.fill_(0.7)
    optimizer = optimizer_of(model, spec)
    for gradient in GRADIENTS:
        model.weight.grad = torch.full_like(model.weight, gradient)
        optimizer.step()
    return model.weight.item()


def test_adamw_follows_its_paper() -> None:
    spec = AdamW(lr=0.01, weight_decay=0.1, betas=(0.8, 0.95))
    expected = reference.adamw(0.7, GRADIENTS, 0.01, (0.8, 0.95), 0.1, 1e-8)
    assert descend(spec) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_follows_its_formula(nesterov: bool) -> None:
    spec = SGD(name="sgd", lr=0.05, momentum=0.9, weight_decay=0.01, nesterov=nesterov)
    assert descend(spec) == pytest.approx(reference.sgd(0.7, GRADIENTS, 0.05, 0.9, 0.01, nesterov=nesterov))


def test_the_learning_rate_is_set_for_all_weights() -> None:
    optimizer = optimizer_of(small_network(), AdamW(lr=0.5))
    set_learning_rate(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125]


def test_frozen_weights_are_left_alone_and_a_model_of_only_those_is_refused() -> None:
    model = small_network()
    for parameter in list(model.parameters())[1:]:
        parameter.requires_grad_(False)
    assert len(optimizer_of(model, AdamW()).param_groups[0]["params"]) == 1
    with pytest.raises(Invalid, match="no parameters that can be trained"):
        optimizer_of(model.requires_grad_(False), AdamW())


def test_every_optimizer_of_the_contract_can_be_made() -> None:
    assert set(OPTIMIZERS) == {"adamw", "sgd"}
