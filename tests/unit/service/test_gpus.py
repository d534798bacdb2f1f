from pathlib import Path

import pytest

from service.gpus import environ_of_slot, visible_gpus


@pytest.fixture
def devices(tmp_path: Path) -> Path:
    for name in ("nvidia10", "nvidia0", "nvidia2", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    return tmp_path


def test_all_gpus_of_the_machine_are_used_in_their_order(devices: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible_gpus(devices) == ["0", "2", "10"]


@pytest.mark.parametrize(("chosen", "gpus"), [("3, 1", ["3", "1"]), ("", []), ("GPU-8f,MIG-1", ["GPU-8f", "MIG-1"])])
def test_what_the_user_chose_is_used_instead(
    devices: Path, monkeypatch: pytest.MonkeyPatch, chosen: str, gpus: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    assert visible_gpus(devices) == gpus


def test_each_slot_sees_one_gpu_in_turn() -> None:
    told = [environ_of_slot(slot, ["3", "1"]) for slot in (1, 2, 3)]
    assert [environ["CUDA_VISIBLE_DEVICES"] for environ in told] == ["3", "1", "3"]


def test_without_a_gpu_a_slot_is_told_nothing() -> None:
    assert environ_of_slot(1, []) == {}
