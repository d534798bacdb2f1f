"""An uploaded dataset -> our canonical form, and back to memory-mapped arrays.

    x.npy            (N, …) inputs of all splits, in the type in which they came
    y.npy            (N,) int64 classes, or float32 targets; absent when nothing is labelled
    train.npy, validation.npy, test.npy     (n,) int64 row numbers, ascending; absent when empty
    dataset.json     the facts, and which splits are labelled

Bytes lie on disk once: a split is a list of row numbers. Everything passes through in blocks of a
few megabytes; in memory are only labels, row numbers and keys, a few bytes for each example.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np

from service.contract.errors import InputRejected
from service.contract.specs import DatasetDeclaration, Splits, Task
from workers.formats import image_folders, npz, parquet, tensor_arrays
from workers.formats.arrays import SPLITS, Array, Arrays, Source
from workers.formats.division import Fractions, Rows, divide
from workers.formats.inputs import Part, Written, are_tokens, check_total, parts_of, write_inputs
from workers.formats.labels import Labels, class_counts, read_labels
from workers.formats.normalization import scale_factor, scaling_of
from workers.training.data import Dataset, Scaling, Split

Reader = Callable[[Path, Path, int], AbstractContextManager[Arrays]]

READERS: Mapping[str, Reader] = {
    "data.npz": npz.arrays_of,
    "data.safetensors": tensor_arrays.arrays_of,
    "data.parquet": parquet.arrays_of,
    "images.zip": image_folders.arrays_of,
}
X, Y, DESCRIPTION = "x.npy", "y.npy", "dataset.json"


def read_dataset(folder: Path, declaration: DatasetDeclaration, out: Path, *, max_bytes: int) -> dict[str, Any]:
    """Read the uploaded file of a dataset, write its canonical form into `out`, return its facts.

    Parameters
    ----------
    folder
        Where the uploaded file lies, under its declared name.
    declaration
        What its owner says of it: how to divide and normalise it, and its task.
    out
        An existing, empty folder.
    max_bytes
        Most bytes that inputs and labels may have once unpacked.

    Raises
    ------
    InputRejected
        With a `code` and what to do.

    """
    name, reader = choose_reader(declaration)
    scratch = out / "scratch"
    scratch.mkdir()
    try:
        with reader(folder / name, scratch, max_bytes) as arrays:
            parts = parts_of(arrays)
            check_total(parts, max_bytes, (folder / name).stat().st_size)
            written = write_inputs(parts, out / X)
            labels, classes = labels_of(parts, declaration.task), arrays.classes
    finally:
        shutil.rmtree(scratch)
    num_classes = len(classes) if classes is not None else labels_classes(labels)
    y = None if labels[0] is None and not any(labels) else joined(parts, labels)
    rows, division = split_rows(parts, labels, declaration)
    scaling = input_scaling(parts[0].x, written, declaration, out / X, rows["train"])
    labelled = [s for s in rows if is_labelled(s, parts)]
    facts = {
        **input_facts(written, scaling),
        "splits": {split: len(rows.get(split, ())) for split in SPLITS},
        "task": declaration.task,
        "num_classes": num_classes,
        "class_counts": counts_of(y, rows, labelled, num_classes),
        "classes": None if classes is None else list(classes),
        "labelled": len(labelled) == len(rows),
        "division": division,
    }
    return write_description(facts, labelled, y, rows, out)


def input_scaling(
    source: Source, written: Written, declaration: DatasetDeclaration, x: Path, rows: Rows
) -> Scaling | None:
    """How inputs become float32; None for token ids, which stay what they are.

    Raises `InputRejected`: "tokens_refused" for a normalisation of token ids, else as `scaling_of`.
    """
    normalize = declaration.transform.normalize
    if not are_tokens(source):
        factor = scale_factor(source.dtype, written.example_shape)
        return scaling_of(normalize, factor, x, rows, written.example_shape[0])
    if normalize is not None:
        raise InputRejected(
            f"{source.name} has type {source.dtype} and shape {list(source.shape)}: these are token ids, which cannot "
            "be normalised. Leave normalize out, or save features as floats: x.astype('float32').",
            code="tokens_refused",
        )
    return None


def choose_reader(declaration: DatasetDeclaration) -> tuple[str, Reader]:
    """The one file's name and reader."""
    names = list(declaration.files)
    if len(names) != 1 or names[0] not in READERS:
        raise InputRejected(
            f"A dataset is one file, one of {', '.join(READERS)}; got {', '.join(names)}.", code="unexpected_files"
        )
    return names[0], READERS[names[0]]


def labels_of(parts: Sequence[Part], task: Task) -> list[Labels | None]:
    """The labels of each part, alike in shape. `InputRejected` as `read_labels`."""
    labels = [None if part.y is None else read_labels(part.y, task) for part in parts]
    shapes = {found.values.shape[1:] for found in labels if found is not None}
    if len(shapes) > 1:
        raise InputRejected(
            f"The labels of the splits differ in shape: {', '.join(str(list(shape)) for shape in sorted(shapes))} "
            "per example; expected one.",
            code="labels_shape",
        )
    return labels


def labels_classes(labels: Sequence[Labels | None]) -> int | None:
    """K over all parts, or None for regression and unlabelled data."""
    found = [part.num_classes for part in labels if part is not None and part.num_classes is not None]
    return max(found, default=None)


def joined(parts: Sequence[Part], labels: Sequence[Labels | None]) -> Array:
    """Labels of all rows; those of unlabelled parts are 0 and never read."""
    like = next(found.values for found in labels if found is not None)
    blocks = [
        np.zeros((part.x.shape[0], *like.shape[1:]), like.dtype) if found is None else found.values
        for part, found in zip(parts, labels, strict=True)
    ]
    return np.concatenate(blocks)


def split_rows(
    parts: Sequence[Part], labels: Sequence[Labels | None], declaration: DatasetDeclaration
) -> tuple[dict[str, Rows], dict[str, Any]]:
    """Row numbers of each split, and in words of the record how they came about.

    Splits that the file names keep their rows; a missing validation or test split is divided off the
    training rows, which come first in the file.
    """
    splits = declaration.splits or Splits()
    named = parts[0].split is not None
    given = {part.split for part in parts}
    validation = None if "validation" in given else splits.validation
    test = None if "test" in given else splits.test
    first = labels[0].values if labels[0] is not None and declaration.task in {"classification", "vae"} else None
    stratify = splits.stratify and first is not None
    num_rows = parts[0].x.shape[0]
    rows = divide(num_rows, first if stratify else None, Fractions(validation or 0.0, test or 0.0), splits.seed)
    check_split_sizes(rows, num_rows)
    for part in parts[1:]:
        assert part.split is not None  # noqa: S101  parts without a name come alone
        rows[part.split] = np.arange(num_rows, num_rows + part.x.shape[0])
        num_rows += part.x.shape[0]
    divided = bool(validation or test)
    division = {
        "named": named,
        "seed": splits.seed if divided else None,
        "stratify": stratify and divided,
        "validation": validation,
        "test": test,
    }
    return {split: rows[split] for split in SPLITS if split in rows}, division


def check_split_sizes(rows: Mapping[str, Rows], num_rows: int) -> None:
    """Refuse a division that leaves a split without rows."""
    empty = [split for split, chosen in rows.items() if not len(chosen)]
    if empty:
        raise InputRejected(
            f"Dividing {num_rows} examples leaves nothing for {', '.join(empty)}; upload more examples, give larger "
            "fractions, or set the fraction to 0 to have no such split.",
            code="empty_split",
        )


def is_labelled(split: str, parts: Sequence[Part]) -> bool:
    """Whether a split's rows have labels: its own part's, or those of the part it was divided off."""
    own = next((part for part in parts if part.split == split), parts[0])
    return own.y is not None


def counts_of(
    y: Array | None, rows: Mapping[str, Rows], labelled: Sequence[str], num_classes: int | None
) -> dict[str, list[int]] | None:
    """Examples of each class in each labelled split."""
    if y is None:
        return None
    counts = {split: class_counts(y[rows[split]], num_classes) for split in labelled}
    known = {split: found for split, found in counts.items() if found is not None}
    return known or None


def input_facts(written: Written, scaling: Scaling | None) -> dict[str, Any]:
    """What a record says of the inputs; the range is that of the stored values, before scaling.

    "dtype" is the type in which they are stored, "input_dtype" the one in which a network gets them: int64 for token
    ids, which have no scaling, else float32.
    """
    values = None if scaling is None else {"factor": scaling.factor, "mean": [*scaling.mean], "std": [*scaling.std]}
    return {
        "input_shape": list(written.example_shape),
        "dtype": written.dtype.name,
        "range": [written.low, written.high],
        "input_dtype": "int64" if scaling is None else "float32",
        "scaling": values,
    }


def write_description(
    facts: dict[str, Any], labelled: Sequence[str], y: Array | None, rows: Mapping[str, Rows], out: Path
) -> dict[str, Any]:
    """Write labels, row numbers and facts; return the facts with the bytes of inputs and labels."""
    if y is not None:
        np.save(out / Y, y)
    for split, numbers in rows.items():
        np.save(out / f"{split}.npy", numbers.astype(np.int64))
    facts = facts | {"bytes": sum((out / name).stat().st_size for name in (X, Y) if (out / name).exists())}
    text = json.dumps({"facts": facts, "labelled_splits": list(labelled)}, indent=2, sort_keys=True)
    (out / DESCRIPTION).write_text(text + "\n", encoding="utf-8")
    return facts


def load_dataset(folder: Path) -> Dataset:
    """The dataset of a canonical folder; inputs and labels are memory-mapped and shared by its splits."""
    described = json.loads((folder / DESCRIPTION).read_bytes())
    facts, labelled = described["facts"], described["labelled_splits"]
    stored = facts["scaling"]
    scaling = None if stored is None else Scaling(stored["factor"], tuple(stored["mean"]), tuple(stored["std"]))
    x = np.load(folder / X, mmap_mode="r")
    y = np.load(folder / Y, mmap_mode="r") if (folder / Y).exists() else None

    def split(name: str) -> Split | None:
        if not facts["splits"][name]:
            return None
        return Split(x, y if name in labelled else None, np.load(folder / f"{name}.npy"), scaling)

    return Dataset(
        train=split("train"),
        validation=split("validation"),
        test=split("test"),
        num_classes=facts["num_classes"],
        input_shape=tuple(facts["input_shape"]),
    )
