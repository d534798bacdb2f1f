"""Does what was written compute what was trained? Asked in a fresh process, of the files alone.

    python -m workers.formats.verify FOLDER X.npy EXPECTED.npy

loads `model.pt2` (our own, just written), `model.safetensors` and, where there is one, `model.onnx` from
FOLDER, runs each on the inputs by the tool that its user would take, and prints as JSON how far each is from the
expected outputs.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workers.formats.graph_models import PROGRAM
from workers.formats.models import load_model
from workers.formats.onnx_file import run_session

ONNX = "model.onnx"
BATCH = 256


def verify(folder: Path, x: Path, expected: Path) -> dict[str, Any]:
    """Compare the outputs of the written files with those that are expected.

    Parameters
    ----------
    folder
        Holds `model.pt2` and `model.safetensors` (with its architecture in the metadata, or else for the
        network of `model.pt2`), and may hold `model.onnx`.
    x
        .npy of inputs, (B, …) float32, already scaled.
    expected
        .npy of the trained model's outputs for them, (B, …) float32.

    Returns
    -------
    dict
        "examples": B; "finite": whether all outputs are; "pt2" and "safetensors": the largest absolute
        difference from the expected outputs; "single": that of `model.pt2` on the first example alone;
        "onnx": the largest on all examples or the first alone, None without such a file.

    """
    inputs = torch.from_numpy(np.load(x)).float()
    wanted = torch.from_numpy(np.load(expected)).float()
    if len(inputs) != len(wanted) or not len(inputs):
        raise ValueError(f"{len(inputs)} inputs and {len(wanted)} expected outputs; need as many, and at least one")
    program = torch.export.load(folder / PROGRAM).module()
    network = load_model(folder)
    from_program, from_weights = outputs_of(program, inputs), outputs_of(network, inputs)
    return {
        "examples": len(inputs),
        "finite": bool(from_program.isfinite().all() and from_weights.isfinite().all()),
        "pt2": largest_difference(from_program, wanted),
        "safetensors": largest_difference(from_weights, wanted),
        "single": largest_difference(outputs_of(program, inputs[:1]), wanted[:1]),
        "onnx": onnx_difference(folder / ONNX, inputs, wanted) if (folder / ONNX).exists() else None,
    }


def onnx_difference(path: Path, inputs: Tensor, wanted: Tensor) -> float:
    """The largest difference of an ONNX file's outputs, on all inputs and on the first alone."""
    run = run_session(path)
    alone = largest_difference(outputs_of(run, inputs[:1]), wanted[:1])
    return max(alone, largest_difference(outputs_of(run, inputs), wanted))


def outputs_of(model: Callable[[Tensor], Tensor], inputs: Tensor) -> Tensor:
    """Outputs of a model, batch by batch."""
    with torch.no_grad():
        return torch.cat([model(batch) for batch in torch.split(inputs, BATCH)])


def largest_difference(one: Tensor, other: Tensor) -> float:
    """The largest |one - other|; infinite where the shapes differ or a value is NaN."""
    if one.shape != other.shape:
        return float("inf")
    difference = (one - other).abs().max().item()
    return difference if difference == difference else float("inf")  # noqa: PLR0124  NaN alone differs from itself


def main() -> None:
    """Read the arguments and print the result."""
    parser = argparse.ArgumentParser(description="Compare written model files with expected outputs.")
    for name in ("folder", "x", "expected"):
        parser.add_argument(name, type=Path)
    arguments = parser.parse_args()
    print(json.dumps(verify(arguments.folder, arguments.x, arguments.expected)))  # noqa: T201  its output is its result


if __name__ == "__main__":
    main()
