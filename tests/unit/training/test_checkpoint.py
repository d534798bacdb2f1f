import pickle
from pathlib import Path

import pytest
import torch

from workers.training.checkpoint import load_checkpoint, save_checkpoint
from workers.training.durable import replacing


def test_tensors_and_plain_data_come_back(tmp_path: Path) -> None:
    content = {"w": torch.randn(3), "history": [{"epoch": 1}], "numbers": (1, 2.5, None), "text": "x"}
    save_checkpoint(tmp_path / "c.pt", content)
    loaded = load_checkpoint(tmp_path / "c.pt")
    assert torch.equal(loaded.pop("w"), content.pop("w"))  # type: ignore[arg-type]  # it is a tensor
    assert loaded == content


def test_nothing_in_a_checkpoint_runs(tmp_path: Path) -> None:
    marker = tmp_path / "ran"

    class Exploit:
        def __reduce__(self) -> tuple[object, ...]:
            return Path.touch, (marker,)

    torch.save({"model": Exploit()}, tmp_path / "c.pt")
    with pytest.raises(pickle.UnpicklingError):
        load_checkpoint(tmp_path / "c.pt")
    assert not marker.exists()


def test_a_failed_write_leaves_the_old_checkpoint_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"step": 1})

    def fail_halfway() -> None:
        with replacing(path) as temporary:
            temporary.write_bytes(b"half")
            raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        fail_halfway()
    assert load_checkpoint(path) == {"step": 1}
    assert list(tmp_path.iterdir()) == [path]
