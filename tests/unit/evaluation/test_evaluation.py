from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from service.contract.errors import Diverged, InputRejected
from tests.unit.evaluation.reports import present
from workers.evaluation.evaluation import evaluate
from workers.journal import Silent, Stopped
from workers.training.data import Scaling, Split

CPU = torch.device("cpu")


class CountingRows(np.ndarray[Any, np.dtype[np.uint8]]):
    """Counts how many rows were read of it."""

    reads = 0

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, np.ndarray):
            CountingRows.reads += len(key)
        return super().__getitem__(key)


def split(num_examples: int = 23, *, labelled: bool = True, num_classes: int = 4) -> Split:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, size=(40, 1, 3, 3), dtype=np.uint8)
    y = rng.integers(0, num_classes, size=40) if labelled else None
    rows = rng.permutation(40)[:num_examples].astype(np.int64)
    return Split(x=x, y=y, rows=rows, scaling=Scaling(factor=1 / 255, mean=(0.5,), std=(0.25,)))


def network(seed: int = 0, num_classes: int = 4) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(9, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, num_classes))


class Constant(nn.Module):
    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output

    def forward(self, x: Tensor) -> Any:
        return self.output[: len(x)]


def test_logits_are_those_of_the_whole_split_at_once_in_its_order() -> None:
    data, models = split(), {"teacher": network(0), "student": network(1)}
    logits, labels = evaluate(models, data, CPU, 5, Silent())
    x, y = data.batch(np.arange(23), CPU)
    for name, model in models.items():
        assert logits[name].dtype == torch.float32
        torch.testing.assert_close(logits[name], model.eval()(x).detach())
    assert torch.equal(present(labels), present(y))


def test_the_split_is_read_once_for_all_models() -> None:
    data = split()
    counted = Split(x=data.x.view(CountingRows), y=data.y, rows=data.rows, scaling=data.scaling)
    CountingRows.reads = 0
    evaluate({"teacher": network(0), "student": network(1), "control": network(2)}, counted, CPU, 4, Silent())
    assert CountingRows.reads == 23


def test_the_models_are_left_as_they_were() -> None:
    model = network().train()
    model[2].eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    logits, _ = evaluate({"student": model}, split(), CPU, 5, Silent())
    assert (model.training, model[2].training, model[3].training) == (True, False, True)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not logits["student"].requires_grad


def test_labels_may_be_missing() -> None:
    assert evaluate({"student": network()}, split(labelled=False), CPU, 5, Silent())[1] is None


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_outputs_that_are_not_finite_are_a_divergence(bad: float) -> None:
    output = torch.zeros(8, 4)
    output[3, 1] = bad
    with pytest.raises(Diverged, match="student's outputs are NaN or infinite for 1 of 8 examples"):
        evaluate({"student": Constant(output)}, split(), CPU, 8, Silent())


@pytest.mark.parametrize("output", [torch.zeros(8), torch.zeros(8, 4, 2), (torch.zeros(8, 4),), torch.zeros(3, 4)])
def test_an_output_that_is_no_row_of_logits_per_example_is_refused(output: object) -> None:
    with pytest.raises(InputRejected, match="expected logits of shape"):
        evaluate({"teacher": Constant(output)}, split(), CPU, 8, Silent())


def test_models_with_different_classes_are_refused() -> None:
    models = {"teacher": network(num_classes=4), "student": network(num_classes=5)}
    with pytest.raises(InputRejected, match="teacher 4, student 5"):
        evaluate(models, split(), CPU, 8, Silent())


def test_labels_beyond_the_models_classes_are_refused() -> None:
    with pytest.raises(InputRejected, match="the models have 4 classes, so expected 0 to 3"):
        evaluate({"teacher": network()}, split(num_classes=9), CPU, 8, Silent())


def test_an_empty_split_is_refused() -> None:
    with pytest.raises(InputRejected, match="no examples"):
        evaluate({"teacher": network()}, split(0), CPU, 8, Silent())


def test_progress_is_told_and_a_stop_is_heard() -> None:
    class Listener(Silent):
        def __init__(self, stop_after: int) -> None:
            self.seen: list[tuple[int, int]] = []
            self.stop_after = stop_after

        def progress(self, step: int, total: int) -> None:
            self.seen.append((step, total))

        def check(self) -> None:
            if len(self.seen) == self.stop_after:
                raise Stopped

    patient = Listener(99)
    evaluate({"student": network()}, split(), CPU, 10, patient)
    assert patient.seen == [(10, 23), (20, 23), (23, 23)]
    with pytest.raises(Stopped):
        evaluate({"student": network()}, split(), CPU, 10, Listener(2))
