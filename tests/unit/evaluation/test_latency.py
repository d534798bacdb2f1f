import time

import pytest
import torch
from torch import Tensor, nn

from workers.evaluation import latency
from workers.evaluation.latency import measure_latency, repeated, summarise

CPU = torch.device("cpu")
Call = tuple[str, int, bool, bool]  # who, with how many examples, training?, with gradients?


class Sleeper(nn.Module):
    def __init__(self, name: str, seconds: float, calls: list[Call]) -> None:
        super().__init__()
        self.name, self.seconds, self.calls = name, seconds, calls

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append((self.name, len(x), self.training, torch.is_grad_enabled()))
        time.sleep(self.seconds)
        return x


def test_the_slower_model_takes_longer_by_as_much_as_it_sleeps() -> None:
    models = {"teacher": Sleeper("teacher", 0.012, []), "student": Sleeper("student", 0.003, [])}
    found = measure_latency(models, torch.zeros(2, 3), batch_sizes=(1,), rounds=11, device=CPU)
    assert 0.012 <= found["teacher"][0].median_seconds < 0.1
    assert 0.003 <= found["student"][0].median_seconds < found["teacher"][0].median_seconds


def test_models_alternate_in_every_round_and_the_first_place_rotates() -> None:
    calls: list[Call] = []
    models = {name: Sleeper(name, 0, calls) for name in ("teacher", "student", "control")}
    measure_latency(models, torch.zeros(1, 3), batch_sizes=(4,), rounds=6, device=CPU)
    measured = [name for name, *_ in calls[3 * latency.WARM_UP :]]
    rounds = [measured[start : start + 3] for start in range(0, len(measured), 3)]
    assert len(rounds) == 6
    assert all(sorted(names) == ["control", "student", "teacher"] for names in rounds)
    assert [names[0] for names in rounds] == ["teacher", "student", "control"] * 2


def test_passes_are_in_evaluation_mode_without_gradients_and_modes_come_back() -> None:
    calls: list[Call] = []
    model = Sleeper("student", 0, calls).train()
    measure_latency({"student": model}, torch.zeros(3, 2), batch_sizes=(1, 64), rounds=5, device=CPU)
    assert {(training, grad) for _, _, training, grad in calls} == {(False, False)}
    assert {batch for _, batch, _, _ in calls} == {1, 64}
    assert model.training


def test_the_time_spent_is_bounded() -> None:
    models = {"teacher": Sleeper("teacher", 0.01, [])}
    start = time.perf_counter()
    measure_latency(models, torch.zeros(1, 2), rounds=10_000, device=CPU, budget_seconds=0.4)
    assert time.perf_counter() - start < 2


def test_a_slow_model_still_gets_five_rounds() -> None:
    calls: list[Call] = []
    models = {"teacher": Sleeper("teacher", 0.01, calls)}
    measure_latency(models, torch.zeros(1, 2), batch_sizes=(1,), device=CPU, budget_seconds=0)
    assert len(calls) == latency.WARM_UP + latency.MIN_ROUNDS


def test_median_and_interquartile_range_ignore_one_interruption() -> None:
    found = summarise(8, [1.0, 2.0, 3.0, 4.0, 500.0])
    assert (found.batch, found.median_seconds, found.iqr_seconds) == (8, 3.0, 2.0)


@pytest.mark.parametrize("batch", [1, 3, 4, 7])
def test_the_example_is_repeated_to_fill_the_batch(batch: int) -> None:
    example = torch.arange(6.0).view(3, 2)
    found = repeated(example, batch)
    assert [row.tolist() for row in found] == [example[i % 3].tolist() for i in range(batch)]
