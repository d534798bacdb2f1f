import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract.specs import Constant, Cosine, Schedule, Step
from tests.reference import training as reference
from workers.training.schedules import SCHEDULES, multiplier


def rates(schedule: Schedule, lr: float, epochs: int, steps_per_epoch: int) -> list[float]:
    n = epochs * steps_per_epoch
    return [lr * multiplier(schedule, step, steps_per_epoch, n) for step in range(n)]


@given(st.integers(1, 12), st.integers(1, 9), st.floats(0, 1), st.floats(0, 1))
def test_cosine_follows_its_formula(epochs: int, steps: int, warmup_share: float, floor: float) -> None:
    schedule = Cosine(warmup_epochs=warmup_share * epochs, floor=floor)
    warmup_steps = round(schedule.warmup_epochs * steps)
    expected = reference.cosine_rates(0.1, epochs * steps, warmup_steps, floor)
    assert rates(schedule, 0.1, epochs, steps) == pytest.approx(expected)


@given(st.integers(1, 12), st.integers(1, 9), st.lists(st.integers(1, 12), min_size=1, max_size=3), st.floats(0, 1))
def test_steps_follow_their_formula(epochs: int, steps: int, milestones: list[int], warmup_share: float) -> None:
    schedule = Step(name="step", milestones=tuple(milestones), gamma=0.3, warmup_epochs=warmup_share * epochs)
    warmup_steps = round(schedule.warmup_epochs * steps)
    at = [milestone * steps for milestone in milestones]
    expected = reference.step_rates(0.1, epochs * steps, warmup_steps, at, 0.3)
    assert rates(schedule, 0.1, epochs, steps) == pytest.approx(expected)


def test_the_published_cifar_schedule_drops_at_the_start_of_its_epochs() -> None:
    schedule = Step(name="step", milestones=(150, 180, 210), gamma=0.1)
    by_epoch = rates(schedule, 0.05, 240, 1)
    assert by_epoch[149:151] == pytest.approx([0.05, 0.005])
    assert by_epoch[179:181] == pytest.approx([0.005, 0.0005])
    assert by_epoch[209:211] == pytest.approx([0.0005, 0.00005])


def test_constant_stays_after_its_warm_up() -> None:
    assert rates(Constant(name="constant", warmup_epochs=1.5), 1.0, 3, 2) == pytest.approx([1 / 3, 2 / 3, 1, 1, 1, 1])


def test_a_warm_up_may_last_the_whole_training() -> None:
    assert rates(Cosine(warmup_epochs=2), 1.0, 2, 2) == pytest.approx([0.25, 0.5, 0.75, 1.0])


def test_every_schedule_of_the_contract_has_a_formula() -> None:
    assert set(SCHEDULES) == {"cosine", "step", "constant"}
