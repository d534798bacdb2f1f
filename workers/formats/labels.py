"""Labels of a task: checked, and brought into the one type that training reads.

classification: whole numbers 0 .. K-1, shape (N,), int64; K is the largest label plus one, and a class
in between may have no examples. multilabel: 0/1 rows (N, K), float32. regression: finite values (N,) or
(N, K), float32. vae: labels are optional and read as classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from service.contract.errors import InputRejected
from service.contract.specs import Task
from workers.formats.arrays import Array, Source

MAX_CLASSES = 1_000_000
MAX_COUNTED_CLASSES = 10_000  # beyond, a record does not list the count of each class


@dataclass(frozen=True)
class Labels:
    """The labels of one source."""

    values: Array  # int64 (N,), or float32 (N,) or (N, K)
    num_classes: int | None


def read_labels(source: Source, task: Task) -> Labels:
    """Read and check the labels of a source; they fit into memory, a few bytes for each example.

    Raises `InputRejected`: "labels_shape", "labels_not_integers", "labels_out_of_range", "not_finite".
    """
    values = source.whole()
    if values.ndim == 2 and values.shape[1] == 1 and task != "multilabel":
        values = values[:, 0]
    if values.dtype.kind == "f":
        check_finite(source.name, values)
    return READERS[task](source.name, values)


def check_finite(name: str, values: Array) -> None:
    """Refuse NaN and infinity, with their count and first row."""
    bad = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    if bad.any():
        raise InputRejected(
            f"{name} holds NaN or infinity in {int(bad.sum())} rows, the first is row {int(bad.argmax())}; "
            "expected finite labels. Drop these rows.",
            code="not_finite",
        )


def classes(name: str, values: Array) -> Labels:
    """Whole numbers 0 .. K-1."""
    if values.ndim != 1:
        raise InputRejected(
            f"{name} has shape {list(values.shape)}; expected one class number for each example. "
            "For one-hot rows use y.argmax(1); for several labels per example declare the task multilabel.",
            code="labels_shape",
        )
    if values.dtype.kind == "f" and (fractional := values != np.floor(values)).any():
        row = int(fractional.argmax())
        raise InputRejected(
            f"{name} holds {values[row]} in row {row}; classes are whole numbers 0 to K - 1. "
            "For continuous targets declare the task regression.",
            code="labels_not_integers",
        )
    if not len(values):
        return Labels(values.astype(np.int64), 1)
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= MAX_CLASSES:
        row = int(values.argmin() if low < 0 else values.argmax())
        raise InputRejected(
            f"{name} holds the label {low if low < 0 else high} in row {row}; classes are whole numbers from 0 "
            f"to K - 1, with K at most {MAX_CLASSES}. Number the classes from 0.",
            code="labels_out_of_range",
        )
    return Labels(values.astype(np.int64), high + 1)


def zero_one_rows(name: str, values: Array) -> Labels:
    """Rows of 0 and 1, one column for each label."""
    if values.ndim != 2 or values.shape[1] > MAX_CLASSES:
        raise InputRejected(
            f"{name} has shape {list(values.shape)}; a multilabel task needs 0/1 rows of shape (N, K).",
            code="labels_shape",
        )
    wrong = ((values != 0) & (values != 1)).any(axis=1)
    if wrong.any():
        raise InputRejected(
            f"{name} holds values other than 0 and 1, first in row {int(wrong.argmax())}; "
            "a multilabel task needs a 1 for each label that applies and a 0 for each that does not.",
            code="labels_out_of_range",
        )
    return Labels(values.astype(np.float32), values.shape[1])


def continuous(name: str, values: Array) -> Labels:
    """Finite values to regress on."""
    if values.ndim not in {1, 2}:
        raise InputRejected(
            f"{name} has shape {list(values.shape)}; regression needs (N,) or (N, K).", code="labels_shape"
        )
    with np.errstate(over="ignore"):  # what overflows float32 is refused on the next line
        narrow = values.astype(np.float32)
    check_finite(name, narrow)
    return Labels(narrow, None)


READERS: Mapping[Task, Callable[[str, Array], Labels]] = {
    "classification": classes,
    "multilabel": zero_one_rows,
    "regression": continuous,
    "vae": classes,
}


def class_counts(values: Array, num_classes: int | None) -> list[int] | None:
    """Examples of each class (or with each label) among int64 classes or 0/1 rows."""
    if num_classes is None or num_classes > MAX_COUNTED_CLASSES:
        return None
    counts: Any = values.sum(axis=0, dtype=np.int64) if values.ndim == 2 else np.bincount(values, minlength=num_classes)
    return [int(count) for count in counts]
