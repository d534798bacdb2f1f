"""Hostile .npz archives."""

import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from service.contract.errors import InputRejected
from tests.unit.formats.declared import read_arrays, read_dataset_in

X = np.arange(60, dtype=np.float32).reshape(20, 3)


class Bomb:
    """Pickles as a call that would leave a marker file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, tuple[Path]]:
        return Path.touch, (self.marker,)


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def npy_header(descr: str, shape: str, data: bytes = b"", length: int | None = None) -> bytes:
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    return b"\x93NUMPY\x02\x00" + struct.pack("<I", len(text) if length is None else length) + text + data


def zipped(folder: Path, *members: tuple[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> Path:
    path = folder / "data.npz"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return path


def rejected(folder: Path, **fields: Any) -> InputRejected:
    with pytest.raises(InputRejected) as caught:
        read_dataset_in(folder, **fields)
    return caught.value


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_stored_and_deflated_archives_are_read(tmp_path: Path, compression: int) -> None:
    zipped(tmp_path, ("x.npy", npy(X)), compression=compression)
    _, out = read_dataset_in(tmp_path)
    np.testing.assert_array_equal(np.load(out / "x.npy"), X)


def test_an_object_array_is_refused_and_its_pickle_does_not_run(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    bomb = np.array([Bomb(marker)], dtype=object)
    with pytest.raises(InputRejected) as caught:
        read_arrays(tmp_path, x=bomb)
    assert caught.value.specific_code == "object_array_refused"
    assert "astype" in caught.value.detail
    assert not marker.exists()
    np.load(tmp_path / "data.npz", allow_pickle=True)["x"]
    assert marker.exists()  # the bomb is a real one


def test_a_pickle_in_place_of_an_array_is_refused(tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    zipped(tmp_path, ("x.npy", pickle.dumps(Bomb(marker))))
    assert rejected(tmp_path).specific_code == "npy_refused"
    assert not marker.exists()


def test_a_bomb_is_refused_by_its_declared_size(tmp_path: Path) -> None:
    path = zipped(tmp_path, ("x.npy", npy(np.zeros((2**21, 64), np.uint8))))
    assert path.stat().st_size < 2**20
    assert rejected(tmp_path).specific_code == "too_large"
    assert not list((tmp_path / "canonical").iterdir())


def test_sizes_are_summed_over_all_arrays(tmp_path: Path) -> None:
    zipped(tmp_path, *((f"x_{split}.npy", npy(np.zeros((1000, 100)))) for split in ("train", "validation", "test")))
    assert rejected(tmp_path, max_bytes=2 * 10**6).specific_code == "too_large"


def test_a_bomb_whose_table_lies_yields_no_more_than_declared(tmp_path: Path) -> None:
    path = zipped(tmp_path, ("x.npy", npy(np.zeros((2**20, 8), np.uint8))))
    data = path.read_bytes()
    size = len(npy(np.zeros((2**20, 8), np.uint8)))
    assert data.count(struct.pack("<I", size)) == 2
    path.write_bytes(data.replace(struct.pack("<I", size), struct.pack("<I", 1000)))
    assert rejected(tmp_path).specific_code == "truncated"


@pytest.mark.parametrize(
    ("shape", "code"),
    [
        ("(10**9, 3)", "npy_refused"),
        ("(1000000000, 3)", "truncated"),
        ("(9223372036854775807, 9223372036854775807)", "truncated"),
        ("(99999999999999999999999,)", "npy_refused"),
        ("(1, 3)", "npy_refused"),
        ("(-1, 3)", "npy_refused"),
        ("(True, 3)", "npy_refused"),
        ("[20, 3]", "npy_refused"),
        ("(20, " + "1, " * 40 + ")", "npy_refused"),
        ("__import__('os').getcwd()", "npy_refused"),
        ("(" * 5000, "npy_refused"),
    ],
)
def test_a_header_that_lies_about_its_shape_is_refused(tmp_path: Path, shape: str, code: str) -> None:
    zipped(tmp_path, ("x.npy", npy_header("'<f4'", shape, X.tobytes())))
    assert rejected(tmp_path).specific_code == code


def test_a_header_that_declares_gigabytes_for_itself_is_refused(tmp_path: Path) -> None:
    zipped(tmp_path, ("x.npy", npy_header("'<f4'", "(20, 3)", X.tobytes(), length=2**32 - 1)))
    assert rejected(tmp_path).specific_code == "too_large"


@pytest.mark.parametrize("keep", [0, 10, 100, 250, -1])
def test_a_truncated_archive_is_refused(tmp_path: Path, keep: int) -> None:
    path = zipped(tmp_path, ("x.npy", npy(X)))
    path.write_bytes(path.read_bytes()[:keep])
    assert rejected(tmp_path).specific_code == "truncated"


def test_damaged_data_are_refused_by_their_checksum(tmp_path: Path) -> None:
    path = zipped(tmp_path, ("x.npy", npy(X)), compression=zipfile.ZIP_STORED)
    data = bytearray(path.read_bytes())
    data[data.index(X.tobytes()) + 17] ^= 1
    path.write_bytes(data)
    assert rejected(tmp_path).specific_code == "truncated"


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("../x.npy", "archive_refused"),
        ("/x.npy", "archive_refused"),
        ("a\\x.npy", "archive_refused"),
        ("C:x.npy", "archive_refused"),
        ("a//x.npy", "archive_refused"),
        ("x\n.npy", "archive_refused"),
        ("a/x.npy", "unexpected_array"),
        ("x", "unexpected_array"),
        ("arr_0.npy", "unexpected_array"),
    ],
)
def test_members_of_other_names_are_refused(tmp_path: Path, name: str, code: str) -> None:
    zipped(tmp_path, (name, npy(X)))
    assert rejected(tmp_path).specific_code == code
    assert not (tmp_path / "x.npy").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_member_that_occurs_twice_is_refused(tmp_path: Path) -> None:
    zipped(tmp_path, ("x.npy", npy(X)), ("x.npy", npy(X + 1)))
    error = rejected(tmp_path)
    assert error.specific_code == "archive_refused"
    assert "twice" in error.detail


def test_members_that_share_their_bytes_are_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path, ("x_train.npy", npy(X)), ("x_testa.npy", npy(X)))
    data = bytearray(path.read_bytes())
    second = data.rindex(b"PK\x01\x02")
    data[second + 42 : second + 46] = struct.pack("<I", 0)  # the offset of the first member
    path.write_bytes(data)
    error = rejected(tmp_path)
    assert error.specific_code == "archive_refused"
    assert "overlaps" in error.detail


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    path = zipped(tmp_path, ("x.npy", npy(X)))
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    assert "encrypted" in rejected(tmp_path).detail


def test_symbolic_links_are_refused(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("x.npy")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr(link, "/etc/hostname")
    assert "symbolic link" in rejected(tmp_path).detail


def test_an_unusual_compression_is_refused(tmp_path: Path) -> None:
    zipped(tmp_path, ("x.npy", npy(X)), compression=zipfile.ZIP_LZMA)
    assert rejected(tmp_path).specific_code == "archive_refused"


def test_an_archive_of_400_000_entries_is_refused_by_its_end_record(tmp_path: Path) -> None:
    entry = b"PK\x01\x02" + b"\0" * 24 + struct.pack("<H", 1) + b"\0" * 16 + b"a"
    entries = entry * 400_000
    end64 = b"PK\x06\x06" + struct.pack("<QHHIIQQQQ", 44, 45, 45, 0, 0, 400_000, 400_000, len(entries), 0)
    locator = b"PK\x06\x07" + struct.pack("<IQI", 0, len(entries), 1)
    end = b"PK\x05\x06" + struct.pack("<HHHHIIH", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    (tmp_path / "data.npz").write_bytes(entries + end64 + locator + end)
    error = rejected(tmp_path)
    assert error.specific_code == "too_large"
    assert "400000" in error.detail


def test_a_file_that_is_no_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.npz").write_bytes(b"x" * 10_000)
    assert rejected(tmp_path).specific_code == "truncated"
