"""Datasets of encoded pictures: zips of folders, and Parquet columns."""

import io
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from service.contract.errors import InputRejected
from tests.unit.formats.declared import read_dataset_in
from workers.formats.datasets import load_dataset

RNG = np.random.default_rng(0)


def encoded(pixels: Any, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def grey(height: int = 4, width: int = 5) -> Any:
    return RNG.integers(0, 256, (height, width)).astype(np.uint8)


def colour(height: int = 4, width: int = 5) -> Any:
    return RNG.integers(0, 256, (height, width, 3)).astype(np.uint8)


def zipped(folder: Path, members: dict[str, bytes]) -> None:
    with zipfile.ZipFile(folder / "images.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def rejected(folder: Path, file: str = "images.zip", **fields: Any) -> InputRejected:
    with pytest.raises(InputRejected) as caught:
        read_dataset_in(folder, file, **fields)
    return caught.value


def test_a_folder_for_each_class_is_a_dataset(tmp_path: Path) -> None:
    pictures = {f"{label}/{i}.png": grey() for label in ("dog", "cat") for i in range(5)}
    zipped(tmp_path, {name: encoded(pixels) for name, pixels in pictures.items()})
    facts, out = read_dataset_in(tmp_path, "images.zip")
    assert facts["classes"] == ["cat", "dog"]
    assert facts["num_classes"] == 2
    assert facts["input_shape"] == [1, 4, 5]
    assert sum(facts["splits"].values()) == 10
    in_order = np.stack([pictures[name] for name in sorted(pictures)])
    np.testing.assert_array_equal(np.load(out / "x.npy")[:, 0], in_order)
    assert np.load(out / "y.npy").tolist() == [0] * 5 + [1] * 5
    assert load_dataset(out).num_classes == 2


def test_folders_of_splits_are_kept(tmp_path: Path) -> None:
    members = {f"{split}/{label}/{i}.png": encoded(grey()) for split in ("train", "val", "test") for label in "ab" for i in range(3)}  # fmt: skip  # noqa: E501  one table
    zipped(tmp_path, members)
    facts, _ = read_dataset_in(tmp_path, "images.zip")
    assert facts["splits"] == {"train": 6, "validation": 6, "test": 6}
    assert facts["division"]["named"] is True
    assert facts["classes"] == ["a", "b"]


def test_a_folder_around_everything_and_desktop_files_are_looked_through(tmp_path: Path) -> None:
    members = {f"pets/{label}/{i}.png": encoded(grey()) for label in "ab" for i in range(5)}
    zipped(tmp_path, members | {"pets/.DS_Store": b"?", "__MACOSX/pets/a/._0.png": b"?", "pets/a/": b""})
    facts, _ = read_dataset_in(tmp_path, "images.zip")
    assert facts["classes"] == ["a", "b"]
    assert sum(facts["splits"].values()) == 10


def test_one_colour_picture_makes_all_of_them_colour(tmp_path: Path) -> None:
    pixels = colour()
    members = {f"{label}/{i}.png": encoded(grey()) for label in "ab" for i in range(5)}
    zipped(tmp_path, members | {"b/9.png": encoded(pixels)})
    facts, out = read_dataset_in(tmp_path, "images.zip")
    assert facts["input_shape"] == [3, 4, 5]
    np.testing.assert_array_equal(np.load(out / "x.npy")[-1], pixels.transpose(2, 0, 1))


def test_jpeg_pictures_are_read(tmp_path: Path) -> None:
    zipped(tmp_path, {f"{label}/{i}.jpg": encoded(colour(8, 8), "JPEG") for label in "ab" for i in range(5)})
    facts, _ = read_dataset_in(tmp_path, "images.zip")
    assert facts["input_shape"] == [3, 8, 8]


def test_the_first_two_pictures_of_different_size_are_named(tmp_path: Path) -> None:
    zipped(tmp_path, {"a/1.png": encoded(grey()), "a/2.png": encoded(grey()), "b/1.png": encoded(grey(6, 5))})
    error = rejected(tmp_path)
    assert error.specific_code == "image_sizes_differ"
    assert "a/1.png has 5 x 4" in error.detail
    assert "b/1.png has 5 x 6" in error.detail


def png_of(width: int, height: int) -> bytes:
    """A PNG whose header declares a size that its data need not have."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [6_000, 12_000, 20_000, 100_000])
def test_a_picture_bomb_is_refused_before_it_is_decoded(tmp_path: Path, side: int) -> None:
    zipped(tmp_path, {"a/1.png": png_of(side, side)})
    error = rejected(tmp_path)
    assert error.specific_code == "image_too_large"
    assert "a/1.png" in error.detail


def test_many_pictures_that_fit_one_by_one_must_fit_together(tmp_path: Path) -> None:
    zipped(tmp_path, {f"a/{i}.png": png_of(5000, 5000) for i in range(10)})
    assert rejected(tmp_path, max_bytes=200 * 10**6).specific_code == "too_large"


@pytest.mark.parametrize(
    ("members", "code"),
    [
        ({"a/1.png": b"no picture"}, "image_refused"),
        ({"a/1.png": encoded(grey())[:-40]}, "image_refused"),
        ({"a/1.png": encoded(grey(), "GIF")}, "image_refused"),
        ({"a/1.png": encoded(RNG.integers(0, 2**16, (4, 5)).astype(np.uint16))}, "image_refused"),
        ({"1.png": encoded(grey())}, "layout_refused"),
        ({"a/b/c/1.png": encoded(grey()), "a/1.png": encoded(grey())}, "layout_refused"),
        ({"a/1.png": encoded(grey()), "a/labels.csv": b"1"}, "layout_refused"),
        ({"../a/1.png": encoded(grey())}, "archive_refused"),
        ({}, "empty_split"),
    ],
)
def test_archives_that_make_no_dataset_are_refused(tmp_path: Path, members: dict[str, bytes], code: str) -> None:
    zipped(tmp_path, members)
    assert rejected(tmp_path).specific_code == code


def table(folder: Path, **columns: Any) -> None:
    pq.write_table(pa.table(columns), folder / "data.parquet", row_group_size=7)


def test_numeric_columns_are_features(tmp_path: Path) -> None:
    height, age = RNG.normal(size=30), RNG.integers(0, 90, 30)
    table(tmp_path, height=height, y=np.repeat([0, 1, 2], 10), age=age)
    facts, out = read_dataset_in(tmp_path, "data.parquet")
    x = np.load(out / "x.npy")
    assert facts["input_shape"] == [2]
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x, np.stack([height, age], 1).astype(np.float32))
    assert np.load(out / "y.npy").tolist() == [0] * 10 + [1] * 10 + [2] * 10


@pytest.mark.parametrize("is_struct", [True, False])
def test_an_image_column_is_decoded(tmp_path: Path, is_struct: bool) -> None:
    pictures = [colour() for _ in range(20)]
    column = [{"bytes": encoded(p), "path": "p"} if is_struct else encoded(p) for p in pictures]
    table(tmp_path, image=column, y=[i % 2 for i in range(20)])
    facts, out = read_dataset_in(tmp_path, "data.parquet")
    assert facts["input_shape"] == [3, 4, 5]
    np.testing.assert_array_equal(np.load(out / "x.npy"), np.stack(pictures).transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("columns", "code"),
    [
        ({"text": ["a", "b"], "y": [0, 1]}, "not_available"),
        ({"a": ["1", "2"], "y": [0, 1]}, "columns_refused"),
        ({"a": [1, 2], "y": ["cat", "dog"]}, "columns_refused"),
        ({"a": [1, None], "y": [0, 1]}, "missing_values"),
        ({"a": [1.0, float("nan")], "y": [0, 1]}, "not_finite"),
        ({"y": [0, 1]}, "columns_refused"),
        ({"image": [b"x", b"y"], "label": [0, 1]}, "columns_refused"),
        ({"image": [b"x", b"y"], "y": [0, 1]}, "image_refused"),
        ({"image": [b"x", None], "y": [0, 1]}, "missing_values"),
        ({"image": ["x", "y"], "y": [0, 1]}, "columns_refused"),
        ({"image": [png_of(10**5, 10**5)], "y": [0]}, "image_too_large"),
        ({"a": pa.array([], pa.float32())}, "empty_split"),
    ],
)
def test_tables_that_make_no_dataset_are_refused(tmp_path: Path, columns: dict[str, Any], code: str) -> None:
    table(tmp_path, **columns)
    assert rejected(tmp_path, "data.parquet").specific_code == code


@pytest.mark.parametrize("keep", [0, 3, 100, -1, -200])
def test_a_truncated_table_is_refused(tmp_path: Path, keep: int) -> None:
    table(tmp_path, a=np.arange(1000.0), y=np.arange(1000) % 2)
    path = tmp_path / "data.parquet"
    path.write_bytes(path.read_bytes()[:keep])
    assert rejected(tmp_path, "data.parquet").specific_code == "truncated"


def test_a_damaged_table_is_refused(tmp_path: Path) -> None:
    table(tmp_path, a=np.arange(1000.0), y=np.arange(1000) % 2)
    path = tmp_path / "data.parquet"
    data = bytearray(path.read_bytes())
    data[4:200] = b"\xff" * 196
    path.write_bytes(data)
    assert rejected(tmp_path, "data.parquet").specific_code == "truncated"


def test_a_table_of_too_many_bytes_is_refused(tmp_path: Path) -> None:
    table(tmp_path, a=np.arange(1000.0), y=np.zeros(1000, np.int64))
    assert rejected(tmp_path, "data.parquet", max_bytes=10**4).specific_code == "too_large"
