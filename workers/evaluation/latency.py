"""Latency: how long one forward pass takes, measured so that the comparison is fair.

A machine's speed drifts with heat, clocks and neighbours. Measured one after the other, two models meet two
different machines; so here all models run in every round, in an order that rotates from round to round, and meet
the same one. The median is reported because interruptions make times longer, never shorter, and the
interquartile range because a median alone says nothing about noise.
"""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from torch import Tensor, nn

from service.contract.reports import Latency
from workers.evaluation.cost import evaluating

#: Passes before the measurement, in which memory is allocated and kernels are chosen.
WARM_UP = 3
#: Below this many rounds a median and an interquartile range mean nothing: measured whatever the time.
MIN_ROUNDS = 5


def measure_latency(
    models: Mapping[str, nn.Module],
    example: Tensor,
    *,
    batch_sizes: Sequence[int] = (1, 64),
    rounds: int = 100,
    device: torch.device,
    budget_seconds: float = 4.0,
) -> dict[str, tuple[Latency, ...]]:
    """Seconds per forward pass of each model at each batch size.

    Models, already on `device`, run in evaluation mode without gradients and have their modes back afterwards.
    `example` (≥1, …) is repeated to fill each batch. Stops early when the budget, shared by the batch sizes,
    is used up, but not before 5 rounds.
    """
    found: dict[str, list[Latency]] = {name: [] for name in models}
    with ExitStack() as modes, torch.inference_mode():
        for model in models.values():
            modes.enter_context(evaluating(model))
        for batch in batch_sizes:
            inputs = repeated(example, batch).to(device)
            seconds = _rounds(models, inputs, rounds, budget_seconds / len(batch_sizes))
            for name, times in seconds.items():
                found[name].append(summarise(batch, times))
    return {name: tuple(entries) for name, entries in found.items()}


def repeated(example: Tensor, batch: int) -> Tensor:
    """`example` (n, …), repeated and cut to (batch, …)."""
    copies = -(-batch // len(example))
    return torch.cat([example] * copies)[:batch].contiguous()


def summarise(batch: int, seconds: Sequence[float]) -> Latency:
    """Median and interquartile range of measured times."""
    low, median, high = np.quantile(seconds, [0.25, 0.5, 0.75])
    return Latency(batch=batch, median_seconds=float(median), iqr_seconds=float(high - low))


def _rounds(models: Mapping[str, nn.Module], inputs: Tensor, rounds: int, budget: float) -> dict[str, list[float]]:
    deadline = time.perf_counter() + budget
    for model in models.values():
        for _ in range(WARM_UP):
            _timed(model, inputs)
    seconds: dict[str, list[float]] = {name: [] for name in models}
    names = list(models)
    for done in range(rounds):
        if done >= MIN_ROUNDS and time.perf_counter() > deadline:
            break
        first = done % len(names)
        for name in names[first:] + names[:first]:
            seconds[name].append(_timed(models[name], inputs))
    return seconds


def _timed(model: nn.Module, inputs: Tensor) -> float:
    _wait_for(inputs.device)
    start = time.perf_counter()
    model(inputs)
    _wait_for(inputs.device)
    return time.perf_counter() - start


def _wait_for(device: torch.device) -> None:
    # Kernels on an accelerator run on after the call has returned.
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
