import os
from pathlib import Path

import pytest

from workers.cache import Evicted, evict, link, touch


def entered(cache: Path, name: str, size: int, used_at: float) -> Path:
    entry = cache / name
    (entry / "canonical" / "arrays").mkdir(parents=True)
    (entry / "canonical" / "arrays" / "x.npy").write_bytes(b"x" * size)
    (entry / "facts.json").write_text("{}")
    os.utime(entry, (used_at, used_at))
    return entry


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    (tmp_path / "cache").mkdir()
    return tmp_path / "cache"


def test_the_least_recently_used_entries_go_until_the_rest_fits(cache: Path) -> None:
    oldest, used, new = (entered(cache, name, 100_000, at) for name, at in (("a", 1), ("b", 2), ("c", 3)))
    touch(oldest)
    assert evict(cache, 250_000, keep=new) == [used.name]
    assert oldest.exists()
    assert new.exists()
    assert list((cache / "incoming").iterdir()) == []


def test_what_a_job_uses_stays_and_is_not_counted_as_gone(cache: Path, tmp_path: Path) -> None:
    used, other = entered(cache, "a", 100_000, 1), entered(cache, "b", 100_000, 2)
    inputs = link(used / "canonical", tmp_path / "job" / "inputs" / "dat_1")
    assert evict(cache, 0, keep=cache / "none") == [other.name]
    assert (inputs / "arrays" / "x.npy").samefile(used / "canonical" / "arrays" / "x.npy")


def test_a_jobs_inputs_outlive_the_entry(cache: Path, tmp_path: Path) -> None:
    entry = entered(cache, "a", 10, 1)
    inputs = link(entry / "canonical", tmp_path / "inputs")
    entry.rename(tmp_path / "gone")
    assert (inputs / "arrays" / "x.npy").read_bytes() == b"x" * 10


def test_the_newest_entry_stays_however_large_it_is_and_a_cache_that_fits_is_left_alone(cache: Path) -> None:
    new = entered(cache, "a", 100_000, 1)
    assert evict(cache, 0, keep=new) == []
    entered(cache, "b", 100_000, 2)
    assert evict(cache, 10**9, keep=new) == []


def test_locks_readings_under_way_and_half_entries_are_none_of_its_business(cache: Path) -> None:
    for name in ("locks", "incoming", "half"):
        (cache / name / "canonical").mkdir(parents=True)
        (cache / name / "canonical" / "x").write_bytes(b"x" * 100_000)
    assert evict(cache, 0, keep=cache / "none") == []


def test_an_entry_that_went_while_it_was_linked_is_told_and_leaves_nothing(cache: Path, tmp_path: Path) -> None:
    with pytest.raises(Evicted):
        link(cache / "gone" / "canonical", tmp_path / "inputs")
    assert not (tmp_path / "inputs").exists()


def test_a_disk_that_takes_no_links_gets_copies(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entry = entered(cache, "a", 10, 1)

    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    inputs = link(entry / "canonical", tmp_path / "inputs")
    assert (inputs / "arrays" / "x.npy").read_bytes() == b"x" * 10
