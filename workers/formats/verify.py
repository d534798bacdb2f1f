"""Does what was written compute what was trained? Asked in a fresh process, of the files alone.

    python -m workers.formats.verify FOLDER X.npy EXPECTED.npy

loads `model.pt2` (our own, just written) and `model.safetensors` from FOLDER, runs both on the
inputs, and prints as JSON how far each is from the expected outputs.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from workers.formats.models import load_model

PROGRAM = "model.pt2"
BATCH = 256


def verify(folder: Path, x: Path, expected: Path) -> dict[str, Any]:
    """Compare the outputs of the written files with those that are expected.

    Parameters
    ----------
    folder
        Holds `model.pt2` and `model.safetensors` (with `model.json`, or its architecture in the metadata).
    x
        .npy of inputs, (B, …) float32, already scaled.
    expected
        .npy of the trained model's outputs for them, (B, …) float32.

    Returns
    -------
    dict
        "examples": B; "finite": whether all outputs are; "pt2" and "safetensors": the largest absolute
        difference from the expected outputs; "single": that of `model.pt2` on the first example alone.

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
    }


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
