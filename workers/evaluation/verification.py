"""Before anything leaves: a fresh process opens each file as its user will, and must compute what was trained.

The process has nothing but the files. What it finds becomes part of the report, with the hashes of the bytes that it
saw, so that whoever has the artifact can tell what was compared with what.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from service.contract.errors import VerificationFailed
from service.contract.reports import FileVerification
from workers.evaluation.placement import on_cpu

#: Of logits, relative to the largest of them (or 1): far above what float32 rounds differently between kernels,
#: far below what a wrong weight does.
TOLERANCE = 1e-4
VERIFICATION_SECONDS = 900


def verify_models(folder: Path, model: nn.Module, example_inputs: Tensor) -> tuple[FileVerification, ...]:
    """Load each model file of `folder` in a fresh process and compare its outputs with the trained model's.

    `example_inputs` (≥1, …) are real inputs, scaled, of the model's type. Raises VerificationFailed where a
    difference is beyond the tolerance, or the files cannot be loaded.
    """
    examples = example_inputs.detach().cpu()
    with torch.no_grad():
        expected = on_cpu(model)(examples)
    tolerance = TOLERANCE * max(1.0, float(expected.abs().max()))
    found = found_by_fresh_process(folder, examples, expected)
    if any(not within(file["max_abs_difference"], tolerance) for file in found):
        differences = ", ".join(f"{file['file']} by {shown(file['max_abs_difference'])}" for file in found)
        raise VerificationFailed(
            f"Loaded in a fresh process, the files' logits differ from the trained model's: {differences}; expected "
            f"at most {tolerance:.3g}. Nothing was published; please report this architecture."
        )
    return tuple(FileVerification(**file, tolerance=tolerance) for file in found)


def within(difference: float | None, tolerance: float) -> bool:
    """Whether a comparison could be made, and its difference is small enough."""
    return difference is not None and difference <= tolerance


def shown(difference: float | None) -> str:
    return "no finite number" if difference is None else f"{difference:.3g}"


def found_by_fresh_process(folder: Path, examples: Tensor, expected: Tensor) -> list[dict[str, Any]]:
    """What `python -m workers.formats.verify` says of the folder's files."""
    with TemporaryDirectory() as scratch:
        files = {"x.npy": examples, "expected.npy": expected}
        for name, rows in files.items():
            np.save(Path(scratch) / name, rows.numpy())
        command = [sys.executable, "-m", "workers.formats.verify", str(folder.resolve())]
        try:
            done = subprocess.run(  # noqa: S603  our own interpreter and module, no shell
                [*command, *(str(Path(scratch) / name) for name in files)],
                cwd=Path(__file__).parents[2],
                # As many threads as here: the order of a sum depends on them.
                env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
                capture_output=True,
                text=True,
                timeout=VERIFICATION_SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise VerificationFailed(
                f"A fresh process did not finish checking the files within {VERIFICATION_SECONDS} seconds."
            ) from error
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise VerificationFailed(f"A fresh process could not load and run the files: {reason}")
    verdict: list[dict[str, Any]] = json.loads(done.stdout)
    return verdict
