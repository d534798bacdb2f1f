from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from service.contract.errors import InputRejected
from tests.unit.training.blobs import CPU, Crash, Interrupting, blobs, small_network
from workers.distillation.teacher import teacher_logits
from workers.journal import Silent
from workers.training.data import Split


class Counting(nn.Module):
    """Counts how many examples it has seen."""

    def __init__(self) -> None:
        super().__init__()
        self.network = small_network(dropout=0.5)
        self.seen = 0

    def forward(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        answer: Tensor = self.network(x)
        return answer


def train_split() -> Split:
    split = blobs().train
    assert split is not None
    return split


def test_the_logits_are_the_teachers_in_evaluation_mode_by_position(tmp_path: Path) -> None:
    split, teacher = train_split(), Counting().train()
    logits = teacher_logits(teacher, split, tmp_path / "t.npy", device=CPU, batch_size=7, journal=Silent())
    x, _ = split.batch(np.arange(len(split)), CPU)
    torch.testing.assert_close(torch.from_numpy(np.array(logits)), teacher.network.eval()(x).detach())
    assert logits.dtype == np.float32
    assert isinstance(logits, np.memmap)


def test_the_teacher_runs_once(tmp_path: Path) -> None:
    split, teacher = train_split(), Counting()
    first = teacher_logits(teacher, split, tmp_path / "t.npy", device=CPU, batch_size=7, journal=Silent())
    again = teacher_logits(teacher, split, tmp_path / "t.npy", device=CPU, batch_size=7, journal=Silent())
    assert teacher.seen == len(split)
    assert np.array_equal(first, again)


def test_a_crash_leaves_no_half_of_a_file(tmp_path: Path) -> None:
    split, teacher, path = train_split(), Counting(), tmp_path / "t.npy"
    with pytest.raises(Crash):
        teacher_logits(teacher, split, path, device=CPU, batch_size=7, journal=Interrupting(crash_at=3))
    assert list(tmp_path.iterdir()) == []
    logits = teacher_logits(teacher, split, path, device=CPU, batch_size=7, journal=Silent())
    assert np.isfinite(logits).all()


@pytest.mark.parametrize("content", [b"", b"not an array", b"\x93NUMPY\x01\x00"])
def test_a_file_that_is_no_such_array_is_made_anew(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "t.npy"
    path.write_bytes(content)
    logits = teacher_logits(small_network(), train_split(), path, device=CPU, batch_size=7, journal=Silent())
    assert logits.shape == (60, 3)


def test_the_logits_of_another_split_are_not_used(tmp_path: Path) -> None:
    path = tmp_path / "t.npy"
    np.save(path, np.zeros((59, 3), np.float32))
    logits = teacher_logits(small_network(), train_split(), path, device=CPU, batch_size=7, journal=Silent())
    assert len(logits) == 60


def test_a_teacher_that_answers_nan_is_refused_in_words(tmp_path: Path) -> None:
    teacher = small_network()
    with torch.no_grad():
        next(teacher.parameters()).fill_(torch.nan)
    with pytest.raises(InputRejected, match="NaN or infinite for 7 of 7 examples"):
        teacher_logits(teacher, train_split(), tmp_path / "t.npy", device=CPU, batch_size=7, journal=Silent())


def test_a_teacher_that_gives_no_class_logits_is_refused_in_words(tmp_path: Path) -> None:
    teacher = nn.Sequential(small_network(), nn.Unflatten(1, (1, 3)))
    with pytest.raises(InputRejected, match=r"\(7, 1, 3\); expected one row of class logits"):
        teacher_logits(teacher, train_split(), tmp_path / "t.npy", device=CPU, batch_size=7, journal=Silent())
