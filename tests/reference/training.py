"""Training by its definitions: schedules as tables of steps, optimisers as written in their papers, selection.

Schedules are filled in step by step, in order; optimisers update one number at a time in Python's floats.
"""

import math
from collections.abc import Sequence


def cosine_rates(lr: float, num_steps: int, warmup_steps: int, floor: float) -> list[float]:
    rates = [lr * (i + 1) / warmup_steps for i in range(warmup_steps)]
    remaining = num_steps - warmup_steps
    return rates + [
        lr * floor + (lr - lr * floor) * (1 + math.cos(math.pi * i / remaining)) / 2 for i in range(remaining)
    ]


def step_rates(
    lr: float, num_steps: int, warmup_steps: int, milestone_steps: Sequence[int], gamma: float
) -> list[float]:
    rates = []
    rate = lr
    for i in range(num_steps):
        for milestone in milestone_steps:
            if i == milestone:
                rate = rate * gamma
        rates.append(rate * (i + 1) / warmup_steps if i < warmup_steps else rate)
    return rates


def adamw(
    weight: float, gradients: Sequence[float], lr: float, betas: tuple[float, float], weight_decay: float, eps: float
) -> float:
    """Loshchilov and Hutter 2019, algorithm 2, with a schedule multiplier of 1."""
    m = v = 0.0
    for t, gradient in enumerate(gradients, start=1):
        m = betas[0] * m + (1 - betas[0]) * gradient
        v = betas[1] * v + (1 - betas[1]) * gradient**2
        m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
        weight = weight - lr * weight_decay * weight - lr * m_hat / (math.sqrt(v_hat) + eps)
    return weight


def sgd(
    weight: float, gradients: Sequence[float], lr: float, momentum: float, weight_decay: float, *, nesterov: bool
) -> float:
    """Velocity = momentum · velocity + gradient; Nesterov looks one step ahead along it."""
    velocity = 0.0
    for gradient in gradients:
        decayed = gradient + weight_decay * weight
        velocity = momentum * velocity + decayed
        weight = weight - lr * (decayed + momentum * velocity if nesterov else velocity)
    return weight


def last_epoch_by_patience(losses: Sequence[float], patience: int, min_delta: float) -> int:
    """The epoch (from 1) after which training stops: the last `patience` ones brought no improvement."""
    for epoch in range(1, len(losses) + 1):
        anchor_epoch, anchor = 1, losses[0]
        for earlier in range(2, epoch + 1):
            if losses[earlier - 1] < anchor - min_delta:
                anchor_epoch, anchor = earlier, losses[earlier - 1]
        if epoch - anchor_epoch >= patience:
            return epoch
    return len(losses)
