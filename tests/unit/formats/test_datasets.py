"""Reading datasets: arrays of every kind that is taken, and what their records say."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from service.contract.errors import InputRejected
from tests.unit.formats.declared import MAX_BYTES, declare_dataset, read_arrays, read_dataset_in
from workers.formats import arrays as arrays_module
from workers.formats.datasets import load_dataset, read_dataset
from workers.training.data import Split

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (60, 1, 4, 5)).astype(np.uint8)
LABELS = np.repeat(np.arange(3), 20)


def rejected(folder: Path, fields: dict[str, Any] | None = None, **arrays: Any) -> InputRejected:
    with pytest.raises(InputRejected) as caught:
        read_arrays(folder, fields, **arrays)
    return caught.value


def everything(split: Split | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    assert split is not None
    return split.batch(np.arange(len(split)), torch.device("cpu"))


def test_one_split_is_divided_and_every_row_is_found_again(tmp_path: Path) -> None:
    facts, out = read_arrays(tmp_path, x=IMAGES, y=LABELS)
    dataset = load_dataset(out)
    assert facts["splits"] == {"train": 42, "validation": 6, "test": 12}
    assert facts["class_counts"] == {"train": [14, 14, 14], "validation": [2, 2, 2], "test": [4, 4, 4]}
    assert facts["division"] == {"named": False, "seed": 0, "stratify": True, "validation": 0.1, "test": 0.2}
    rows = []
    for split in (dataset.train, dataset.validation, dataset.test):
        assert split is not None
        x, y = everything(split)
        torch.testing.assert_close(x, torch.from_numpy(IMAGES[split.rows]).float() / 255)
        assert y is not None
        assert torch.equal(y, torch.from_numpy(LABELS[split.rows]))
        rows += split.rows.tolist()
    assert sorted(rows) == list(range(60))
    assert (dataset.num_classes, dataset.input_shape) == (3, (1, 4, 5))


def test_the_record_says_what_the_data_are(tmp_path: Path) -> None:
    facts, out = read_arrays(tmp_path, x=IMAGES, y=LABELS)
    assert facts["input_shape"] == [1, 4, 5]
    assert facts["dtype"] == "uint8"
    assert facts["range"] == [int(IMAGES.min()), int(IMAGES.max())]
    assert facts["scaling"] == {"factor": 1 / 255, "mean": [0.0], "std": [1.0]}
    assert facts["num_classes"] == 3
    assert facts["labelled"] is True
    assert facts["task"] == "classification"
    assert facts["classes"] is None
    assert facts["bytes"] == (out / "x.npy").stat().st_size + (out / "y.npy").stat().st_size
    assert sorted(path.name for path in out.iterdir()) == [
        "dataset.json", "test.npy", "train.npy", "validation.npy", "x.npy", "y.npy",
    ]  # fmt: skip


def test_named_splits_keep_their_rows(tmp_path: Path) -> None:
    named = {f"{axis}_{split}": values for split, (axis_x, axis_y) in {
        "train": (IMAGES[:30], LABELS[:30]), "validation": (IMAGES[30:40], LABELS[30:40]),
        "test": (IMAGES[40:], LABELS[40:]),
    }.items() for axis, values in (("x", axis_x), ("y", axis_y))}  # fmt: skip
    facts, out = read_arrays(tmp_path, **named)
    dataset = load_dataset(out)
    assert facts["division"] == {"named": True, "seed": None, "stratify": False, "validation": None, "test": None}
    assert dataset.train is not None
    assert dataset.train.rows.tolist() == list(range(30))
    x, y = everything(dataset.test)
    torch.testing.assert_close(x, torch.from_numpy(IMAGES[40:]).float() / 255)
    assert y is not None
    assert y.tolist() == LABELS[40:].tolist()


def test_a_missing_validation_split_is_divided_off_the_training_split(tmp_path: Path) -> None:
    arrays = {"x_train": IMAGES[:40], "y_train": LABELS[:40], "x_test": IMAGES[40:], "y_test": LABELS[40:]}
    facts, _ = read_arrays(tmp_path, {"splits": {"validation": 0.25, "seed": 3}}, **arrays)
    assert facts["splits"] == {"train": 30, "validation": 10, "test": 20}
    assert facts["division"] == {"named": True, "seed": 3, "stratify": True, "validation": 0.25, "test": None}


def test_unlabelled_data_have_no_labels(tmp_path: Path) -> None:
    facts, out = read_arrays(tmp_path, x=IMAGES)
    assert (facts["labelled"], facts["num_classes"], facts["class_counts"]) == (False, None, None)
    assert facts["division"]["stratify"] is False
    assert everything(load_dataset(out).train)[1] is None
    assert not (out / "y.npy").exists()


def test_an_unlabelled_training_split_goes_with_a_labelled_test_split(tmp_path: Path) -> None:
    facts, out = read_arrays(tmp_path, x_train=IMAGES[:40], x_test=IMAGES[40:], y_test=LABELS[40:])
    dataset = load_dataset(out)
    assert facts["labelled"] is False
    assert list(facts["class_counts"]) == ["test"]
    assert everything(dataset.train)[1] is None
    assert everything(dataset.validation)[1] is None
    y = everything(dataset.test)[1]
    assert y is not None
    assert y.tolist() == LABELS[40:].tolist()


def test_a_labelled_training_split_needs_a_labelled_test_split(tmp_path: Path) -> None:
    error = rejected(tmp_path, x_train=IMAGES[:40], y_train=LABELS[:40], x_test=IMAGES[40:])
    assert error.specific_code == "labels_missing"
    assert "y_test" in error.detail


def test_pictures_without_a_channel_axis_get_one(tmp_path: Path) -> None:
    facts, out = read_arrays(tmp_path, x=IMAGES[:, 0], y=LABELS)
    assert facts["input_shape"] == [1, 4, 5]
    assert load_dataset(out).input_shape == (1, 4, 5)


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "u2", "u4", "u8", "f2", "f4", "f8", ">f4", "?"])
def test_every_type_of_number_trains(tmp_path: Path, dtype: str) -> None:
    x = RNG.integers(0, 2, (60, 7)).astype(dtype)
    facts, out = read_arrays(tmp_path, x=x, y=LABELS)
    batch, _ = everything(load_dataset(out).train)
    rows = load_dataset(out).train.rows  # type: ignore[union-attr]  # read above
    factor = 1 / 255 if dtype == "u1" else 1.0
    assert facts["scaling"]["factor"] == factor
    assert batch.dtype == torch.float32
    torch.testing.assert_close(batch, torch.from_numpy(x[rows].astype("f4")) * factor)


def test_integer_images_of_other_widths_are_scaled_too(tmp_path: Path) -> None:
    facts, _ = read_arrays(tmp_path, x=IMAGES.astype(np.int64), y=LABELS)
    assert facts["scaling"]["factor"] == 1 / 255


def test_column_major_arrays_are_turned(tmp_path: Path) -> None:
    x = np.asfortranarray(RNG.normal(size=(60, 7)))
    facts, out = read_arrays(tmp_path, x=x, y=LABELS)
    np.testing.assert_array_equal(np.load(out / "x.npy"), x)
    assert facts["input_shape"] == [7]
    assert not (out / "scratch").exists()


def test_measured_normalisation_is_that_of_the_training_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrays_module, "BLOCK_BYTES", 500)  # many blocks
    x = RNG.normal(5, 3, (60, 2, 4, 5)).astype(np.float32)
    x[:, 1] = 7
    facts, out = read_arrays(tmp_path, {"transform": {"normalize": "auto"}}, x=x, y=LABELS)
    dataset = load_dataset(out)
    assert dataset.train is not None
    chosen = x[dataset.train.rows].astype(np.float64)
    np.testing.assert_allclose(facts["scaling"]["mean"], chosen.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(facts["scaling"]["std"], [chosen[:, 0].std(), 1.0], rtol=1e-12)
    batch, _ = everything(dataset.train)
    assert abs(float(batch[:, 0].mean())) < 1e-5
    assert abs(float(batch[:, 0].std(correction=0)) - 1) < 1e-5
    assert batch[:, 1].abs().max() < 1e-6


def test_measured_normalisation_comes_after_the_scaling_of_bytes(tmp_path: Path) -> None:
    facts, out = read_arrays(tmp_path, {"transform": {"normalize": "auto"}}, x=IMAGES, y=LABELS)
    rows = np.load(out / "train.npy")
    np.testing.assert_allclose(facts["scaling"]["mean"], [IMAGES[rows].mean() / 255])
    np.testing.assert_allclose(facts["scaling"]["std"], [IMAGES[rows].std() / 255])


def test_given_normalisation_is_kept(tmp_path: Path) -> None:
    fields = {"transform": {"normalize": {"mean": [0.13], "std": [0.31]}}}
    facts, _ = read_arrays(tmp_path, fields, x=IMAGES, y=LABELS)
    assert facts["scaling"] == {"factor": 1 / 255, "mean": [0.13], "std": [0.31]}


def test_normalisation_for_other_channels_is_refused(tmp_path: Path) -> None:
    fields = {"transform": {"normalize": {"mean": [0, 0, 0], "std": [1, 1, 1]}}}
    error = rejected(tmp_path, fields, x=IMAGES, y=LABELS)
    assert error.specific_code == "normalization_mismatch"


def test_multilabel_rows_become_float_targets(tmp_path: Path) -> None:
    y = RNG.integers(0, 2, (60, 4))
    facts, out = read_arrays(tmp_path, {"task": "multilabel"}, x=IMAGES, y=y)
    assert (facts["num_classes"], facts["task"]) == (4, "multilabel")
    assert np.sum(list(facts["class_counts"].values()), axis=0).tolist() == y.sum(axis=0).tolist()
    target = everything(load_dataset(out).train)[1]
    assert target is not None
    assert (target.dtype, target.shape[1]) == (torch.float32, 4)


def test_regression_targets_are_floats(tmp_path: Path) -> None:
    facts, out = read_arrays(tmp_path, {"task": "regression"}, x=IMAGES, y=RNG.normal(size=60))
    assert (facts["num_classes"], facts["class_counts"]) == (None, None)
    target = everything(load_dataset(out).train)[1]
    assert target is not None
    assert target.dtype == torch.float32


def test_a_class_without_examples_is_allowed_in_between(tmp_path: Path) -> None:
    facts, _ = read_arrays(tmp_path, x=IMAGES, y=LABELS * 2)
    assert facts["num_classes"] == 5
    assert facts["class_counts"]["test"] == [4, 0, 4, 0, 4]


@pytest.mark.parametrize("dtype", ["i1", "u2", "i4", "f4", "f8", "u8"])
def test_labels_of_any_type_become_int64(tmp_path: Path, dtype: str) -> None:
    _, out = read_arrays(tmp_path, x=IMAGES, y=LABELS.astype(dtype))
    assert np.load(out / "y.npy").dtype == np.int64
    assert np.load(out / "y.npy").tolist() == LABELS.tolist()


@pytest.mark.parametrize(
    ("y", "code", "text"),
    [
        (np.where(np.arange(60) == 17, -1, LABELS), "labels_out_of_range", "-1 in row 17"),
        (np.where(np.arange(60) == 17, 10**6, LABELS), "labels_out_of_range", "1000000 in row 17"),
        (np.full(60, 2**64 - 1, np.uint64), "labels_out_of_range", "18446744073709551615"),
        (LABELS + np.where(np.arange(60) == 5, 0.5, 0), "labels_not_integers", "0.5 in row 5"),
        (np.where(np.arange(60) == 5, np.nan, 0.0), "not_finite", "row 5"),
        (np.eye(3)[LABELS], "labels_shape", "argmax"),
        (LABELS[:59], "rows_mismatch", "60 rows"),
    ],
)
def test_labels_that_are_no_classes_are_refused(tmp_path: Path, y: Any, code: str, text: str) -> None:
    error = rejected(tmp_path, x=IMAGES, y=y)
    assert error.specific_code == code
    assert text in error.detail


def test_multilabel_rows_of_other_values_are_refused(tmp_path: Path) -> None:
    error = rejected(tmp_path, {"task": "multilabel"}, x=IMAGES, y=np.full((60, 2), 2))
    assert error.specific_code == "labels_out_of_range"


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
def test_inputs_that_are_not_finite_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bad: float) -> None:
    monkeypatch.setattr(arrays_module, "BLOCK_BYTES", 200)
    x = RNG.normal(size=(60, 7))
    x[41, 3] = x[50, :2] = bad
    error = rejected(tmp_path, x=x, y=LABELS)
    assert error.specific_code == "not_finite"
    assert "3 values" in error.detail
    assert "row 41" in error.detail


@pytest.mark.parametrize(
    ("arrays", "code"),
    [
        ({"x": IMAGES[:0], "y": LABELS[:0]}, "empty_split"),
        ({"x_train": IMAGES, "y_train": LABELS, "x_test": IMAGES[:0], "y_test": LABELS[:0]}, "empty_split"),
        ({"x": IMAGES[:2], "y": LABELS[:2]}, "empty_split"),
        ({"y": LABELS}, "arrays_missing"),
        ({"x_test": IMAGES, "y_test": LABELS}, "arrays_missing"),
        ({"x": IMAGES, "y_train": LABELS}, "arrays_missing"),
        ({"x_train": IMAGES, "y_test": LABELS}, "arrays_missing"),
        ({"images": IMAGES}, "unexpected_array"),
        ({"x": LABELS}, "shape_refused"),
        ({"x": np.zeros((3, 0))}, "shape_refused"),
        ({"x_train": IMAGES, "x_test": IMAGES[:, 0, 0]}, "shape_mismatch"),
        ({"x_train": IMAGES, "x_test": IMAGES.astype("f4")}, "shape_mismatch"),
        ({"x": IMAGES.astype(complex)}, "dtype_refused"),
        ({"x": np.array(["a", "b"])}, "dtype_refused"),
        ({"x": np.zeros(3, [("a", "f4")])}, "npy_refused"),
    ],
)
def test_arrays_that_make_no_dataset_are_refused(tmp_path: Path, arrays: dict[str, Any], code: str) -> None:
    assert rejected(tmp_path, **arrays).specific_code == code


def test_safetensors_hold_the_same_dataset(tmp_path: Path) -> None:
    x, y = torch.from_numpy(IMAGES), torch.from_numpy(LABELS)
    safetensors.torch.save_file({"x": x, "y": y}, tmp_path / "data.safetensors")
    facts, out = read_dataset_in(tmp_path, "data.safetensors")
    np.testing.assert_array_equal(np.load(out / "x.npy"), IMAGES)
    np.testing.assert_array_equal(np.load(out / "y.npy"), LABELS)
    (tmp_path / "b").mkdir()
    assert read_arrays(tmp_path / "b", x=IMAGES, y=LABELS)[0] == facts


def test_bfloat16_inputs_are_widened(tmp_path: Path) -> None:
    x = torch.randn(60, 3).bfloat16()
    safetensors.torch.save_file({"x": x}, tmp_path / "data.safetensors")
    _, out = read_dataset_in(tmp_path, "data.safetensors")
    np.testing.assert_array_equal(np.load(out / "x.npy"), x.float().numpy())


def test_a_tensor_of_another_name_is_refused(tmp_path: Path) -> None:
    safetensors.torch.save_file({"images": torch.zeros(3, 3)}, tmp_path / "data.safetensors")
    with pytest.raises(InputRejected) as caught:
        read_dataset_in(tmp_path, "data.safetensors")
    assert caught.value.specific_code == "unexpected_array"


def test_more_bytes_than_taken_are_refused_before_they_are_read(tmp_path: Path) -> None:
    safetensors.torch.save_file({"x": torch.zeros(100, 100)}, tmp_path / "data.safetensors")
    with pytest.raises(InputRejected) as caught:
        read_dataset_in(tmp_path, "data.safetensors", max_bytes=39_999)
    assert caught.value.specific_code == "too_large"
    assert not (tmp_path / "canonical/x.npy").exists()


def test_several_files_are_refused(tmp_path: Path) -> None:
    upload = "upl_" + "0" * 26
    declaration = declare_dataset().model_copy(update={"files": {"data.npz": upload, "images.zip": upload}})
    with pytest.raises(InputRejected) as caught:
        read_dataset(tmp_path, declaration, tmp_path, max_bytes=MAX_BYTES)
    assert caught.value.specific_code == "unexpected_files"


def test_blocks_of_any_size_give_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    for name, block_bytes in (("a", 2**20), ("b", 1), ("c", 1000)):
        monkeypatch.setattr(arrays_module, "BLOCK_BYTES", block_bytes)
        (tmp_path / name).mkdir()
        _, out = read_arrays(tmp_path / name, x=IMAGES, y=LABELS)
        written.append([path.read_bytes() for path in sorted(out.iterdir())])
    assert written[0] == written[1] == written[2]
