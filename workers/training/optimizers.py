"""Optimisers by name. The learning rate that they are given is the base; the loop sets each step's own."""

from collections.abc import Callable, Iterable
from typing import Any

from torch import nn, optim

from service.contract.errors import Invalid
from service.contract.specs import SGD, AdamW, Optimizer


def adamw(parameters: Iterable[nn.Parameter], spec: AdamW) -> optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019)."""
    return optim.AdamW(parameters, lr=spec.lr, betas=spec.betas, weight_decay=spec.weight_decay)


def sgd(parameters: Iterable[nn.Parameter], spec: SGD) -> optim.Optimizer:
    """Stochastic gradient descent with momentum; weight decay as an L2 term."""
    return optim.SGD(
        parameters,
        lr=spec.lr,
        momentum=spec.momentum,
        nesterov=spec.nesterov,
        weight_decay=spec.weight_decay,
    )


OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter], Any], optim.Optimizer]] = {"adamw": adamw, "sgd": sgd}


def optimizer_of(model: nn.Module, spec: Optimizer) -> optim.Optimizer:
    """An optimiser over those parameters of `model` that take gradients. Raises Invalid when there are none."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise Invalid("the student has no parameters that can be trained; choose another architecture or model")
    return OPTIMIZERS[spec.name](parameters, spec)


def set_learning_rate(optimizer: optim.Optimizer, lr: float) -> None:
    """Use `lr` from the next step on."""
    for group in optimizer.param_groups:
        group["lr"] = lr
