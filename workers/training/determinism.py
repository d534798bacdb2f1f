"""The same seed, the same bits.

Whatever is random in a training is a function of its seed and of a place: the order of examples of (seed,
epoch), dropout and the like of (seed, step). So a resumed training draws what the uninterrupted one would have
drawn, however often either was looked at, validated or interrupted. Other random states are put back from the
checkpoint, for models that draw from them.

Bits are the same on the same kind of device with the same versions and number of threads: a sum split among
threads is rounded in another order.
"""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

SHUFFLE, STEP = 0, 1  # streams of one seed

Positions = npt.NDArray[np.int64]


def epoch_order(seed: int, epoch: int, num_examples: int) -> Positions:
    """A permutation of the positions 0..n−1 for an epoch (from 0): a function of the arguments and nothing else."""
    entropy = np.random.SeedSequence(seed, spawn_key=(SHUFFLE, epoch))
    return np.random.Generator(np.random.PCG64(entropy)).permutation(num_examples)


def batch_bounds(num_examples: int, batch_size: int) -> list[tuple[int, int]]:
    """Where each batch of an epoch starts and ends; every example is in one.

    A last batch of a single example has no variance, and batch norm fails on it, so it joins the one before.
    """
    starts = list(range(0, num_examples, batch_size))
    if len(starts) > 1 and batch_size > 1 and num_examples - starts[-1] == 1:
        starts.pop()
    return list(zip(starts, [*starts[1:], num_examples], strict=True))


def seed_step(seed: int, step: int, device: torch.device) -> None:
    """Seed torch's generators, on the CPU and on `device`, for a step of training."""
    entropy = np.random.SeedSequence(seed, spawn_key=(STEP, step))
    state = int(entropy.generate_state(1, np.uint64)[0])
    # The generators themselves: torch.manual_seed also reaches for every other accelerator, at some cost.
    torch.default_generator.manual_seed(state)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(state)


def random_state(device: torch.device) -> dict[str, Any]:
    """The states of Python's, numpy's and torch's global generators, as tensors and plain data."""
    name, keys, *rest = np.random.get_state(legacy=True)  # noqa: NPY002  the global state is what is asked for
    return {
        "python": random.getstate(),
        "numpy": (name, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }


def restore_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Put back what `random_state` returned; a GPU's state only where there is the GPU."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002  see random_state
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)


@contextmanager
def deterministic(device: torch.device) -> Iterator[None]:
    """Deterministic algorithms inside, wherever torch has them; global random states are as before afterwards."""
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS starts
    debugging: Any = torch.utils.deterministic  # a module whose attributes no type checker sees
    randomness = random_state(device)
    mode = torch.get_deterministic_debug_mode()
    benchmark, fill = torch.backends.cudnn.benchmark, debugging.fill_uninitialized_memory
    # torch.use_deterministic_algorithms would do the same, and import its compiler for seconds first.
    torch.set_deterministic_debug_mode("warn")
    torch.backends.cudnn.benchmark = False  # it picks kernels by their time, which is not the same twice
    debugging.fill_uninitialized_memory = False  # a debugging aid that costs a write per tensor
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        torch.backends.cudnn.benchmark = benchmark
        debugging.fill_uninitialized_memory = fill
        restore_random_state(randomness, device)
