"""Does what was written compute what was trained? Asked in a fresh process, of the files alone.

    python -m workers.formats.verify FOLDER X.npy EXPECTED.npy

loads `model.pt2` (our own, just written), `model.safetensors` and, where there is one, `model.onnx` from
FOLDER, runs each on the inputs by the tool that its user would take, and prints as JSON how far each is from the
expected outputs.
"""

import argparse
import hashlib
import json
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workers.formats.graph_models import PROGRAM
from workers.formats.models import WEIGHTS, load_model
from workers.formats.onnx_file import run_session

ONNX = "model.onnx"
BATCH = 256
Network = Callable[[Tensor], Tensor]


def load_program(folder: Path) -> Network:
    """The exported program, by torch's own loader, which may see this archive since we have just written it."""
    network: Network = torch.export.load(folder / PROGRAM).module()
    return network


def load_session(folder: Path) -> Network:
    return run_session(folder / ONNX)


# File -> the distribution that reads it, what of it does, and how.
TOOLS: Mapping[str, tuple[str, str, Callable[[Path], Network]]] = {
    PROGRAM: ("torch", "torch.export.load", load_program),
    WEIGHTS: ("safetensors", "safetensors.torch.load_model", load_model),
    ONNX: ("onnxruntime", "onnxruntime.InferenceSession", load_session),
}


def verify(folder: Path, x: Path, expected: Path) -> list[dict[str, Any]]:
    """Compare the outputs of the written files with those that are expected.

    Parameters
    ----------
    folder
        Holds `model.pt2` and `model.safetensors` (with its architecture in the metadata, or else for the
        network of `model.pt2`), and may hold `model.onnx`.
    x
        .npy of inputs, (B, …) float32, already scaled, or int64 token ids.
    expected
        .npy of the trained model's outputs for them, (B, …) float32.

    Returns
    -------
    list
        For each file: "file", "sha256" of its bytes, "tool" and "version" of what ran it, "examples" (B), and
        "max_abs_difference", the largest from the expected outputs on all inputs or the first alone; None where
        an output is not finite or of another shape.

    """
    inputs = torch.from_numpy(np.load(x))
    wanted = torch.from_numpy(np.load(expected)).float()
    if len(inputs) != len(wanted) or not len(inputs):
        raise ValueError(f"{len(inputs)} inputs and {len(wanted)} expected outputs; need as many, and at least one")
    return [
        {
            "file": name,
            "sha256": sha256_of(folder / name),
            "tool": tool,
            "version": version(distribution),
            "examples": len(inputs),
            "max_abs_difference": difference(load(folder), inputs, wanted),
        }
        for name, (distribution, tool, load) in TOOLS.items()
        if name != ONNX or (folder / name).exists()
    ]


def difference(network: Network, inputs: Tensor, wanted: Tensor) -> float | None:
    """The largest difference of a network's outputs, on all inputs and on the first alone, which is another batch."""
    all_at_once = largest_difference(outputs_of(network, inputs), wanted)
    alone = largest_difference(outputs_of(network, inputs[:1]), wanted[:1])
    return None if all_at_once is None or alone is None else max(all_at_once, alone)


def outputs_of(network: Network, inputs: Tensor) -> Tensor:
    """Outputs of a network, batch by batch."""
    with torch.no_grad():
        return torch.cat([network(batch) for batch in torch.split(inputs, BATCH)])


def largest_difference(one: Tensor, other: Tensor) -> float | None:
    """The largest |one - other|; None where the shapes differ or a value is not finite."""
    if one.shape != other.shape or not one.isfinite().all():
        return None
    found = (one - other).abs().max()
    return found.item() if found.isfinite() else None


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def main() -> None:
    """Read the arguments and print the result."""
    parser = argparse.ArgumentParser(description="Compare written model files with expected outputs.")
    for name in ("folder", "x", "expected"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    found = verify(arguments.folder, arguments.x, arguments.expected)
    print(json.dumps(found, allow_nan=False))  # noqa: T201  its output is its result


if __name__ == "__main__":
    main()
