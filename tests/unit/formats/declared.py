"""Declarations and files as users send them, for the tests of the readers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from service.contract.specs import DatasetDeclaration, ModelDeclaration
from workers.formats.datasets import read_dataset
from workers.formats.models import read_model

UPLOAD = "upl_" + "0" * 26
MAX_BYTES = 64 * 2**20


def declare_model(file: str, name: str = "mlp", **options: Any) -> ModelDeclaration:
    options = {"input_shape": [4], "num_classes": 3, "hidden": [5], **options} if name == "mlp" else options
    options = {key: value for key, value in options.items() if value is not None}
    return ModelDeclaration.model_validate(
        {"name": "m", "files": {file: UPLOAD}, "architecture": {"name": name, "options": options}}
    )


def declare_dataset(file: str = "data.npz", **fields: Any) -> DatasetDeclaration:
    return DatasetDeclaration.model_validate({"name": "d", "files": {file: UPLOAD}, **fields})


def read_model_in(folder: Path, declaration: ModelDeclaration) -> tuple[dict[str, Any], Path]:
    """The facts, and the folder of the canonical form."""
    out = folder / "canonical"
    out.mkdir()
    return read_model(folder, declaration, out), out


def read_dataset_in(
    folder: Path, file: str = "data.npz", max_bytes: int = MAX_BYTES, **fields: Any
) -> tuple[dict[str, Any], Path]:
    out = folder / "canonical"
    out.mkdir()
    return read_dataset(folder, declare_dataset(file, **fields), out, max_bytes=max_bytes), out


def read_arrays(folder: Path, fields: Mapping[str, Any] | None = None, /, **arrays: Any) -> tuple[dict[str, Any], Path]:
    """Save arrays as data.npz, compressed, and read them."""
    np.savez_compressed(folder / "data.npz", **arrays)
    return read_dataset_in(folder, **(fields or {}))
