import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.training.blobs import CPU
from workers.training.determinism import (
    batch_bounds,
    deterministic,
    epoch_order,
    random_state,
    restore_random_state,
    seed_step,
)


@given(st.integers(0, 2**63 - 1), st.integers(0, 100_000), st.integers(1, 300))
def test_an_epochs_order_visits_every_example_once_and_depends_on_nothing_else(seed: int, epoch: int, n: int) -> None:
    order = epoch_order(seed, epoch, n)
    random.random()
    torch.rand(1)
    assert np.array_equal(order, epoch_order(seed, epoch, n))
    assert sorted(order) == list(range(n))


def test_epochs_and_seeds_have_orders_of_their_own() -> None:
    orders = {tuple(epoch_order(seed, epoch, 50)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_the_order_is_known_so_that_an_upgrade_that_changes_it_is_noticed() -> None:
    assert epoch_order(7, 3, 8).tolist() == [7, 2, 1, 5, 4, 3, 6, 0]


@given(st.integers(1, 500), st.integers(1, 200))
def test_batches_cover_every_example_in_order(n: int, size: int) -> None:
    bounds = batch_bounds(n, size)
    assert [i for start, stop in bounds for i in range(start, stop)] == list(range(n))
    assert all(stop - start <= size + 1 for start, stop in bounds)


@given(st.integers(2, 500), st.integers(2, 200))
def test_no_batch_is_a_single_example(n: int, size: int) -> None:
    assert min(stop - start for start, stop in batch_bounds(n, size)) >= 2


def test_a_steps_draws_depend_on_seed_and_step_alone() -> None:
    def draws(seed: int, step: int) -> list[float]:
        seed_step(seed, step, CPU)
        return torch.rand(3).tolist()

    first = draws(1, 2)
    draws(5, 5)
    assert draws(1, 2) == first
    assert len({tuple(draws(seed, step)) for seed in range(4) for step in range(4)}) == 16


def test_random_states_come_back() -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(1))  # noqa: NPY002  the state in question

    state = random_state(CPU)
    first = draws()
    assert draws() != first
    restore_random_state(state, CPU)
    assert draws() == first


def test_training_leaves_the_callers_random_state_and_switches_as_they_were() -> None:
    before = torch.get_rng_state()
    with deterministic(CPU):
        assert torch.are_deterministic_algorithms_enabled()
        seed_step(0, 0, CPU)
        torch.rand(3)
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.equal(torch.get_rng_state(), before)
