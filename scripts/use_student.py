"""Use a downloaded student as anybody would who has PyTorch and never heard of Stillhouse.

    python -I scripts/use_student.py ARTIFACT_FOLDER DIGITS.npz

Loads `model.pt2` with torch.export.load alone, scales the test digits as `manifest.json` says, and
prints how many it classifies and how many of them right, as JSON.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch


def main(folder: Path, digits: Path) -> None:
    """Print {"examples": …, "right": …, "parameters": …}."""
    model = torch.export.load(folder / "model.pt2").module()
    scaling = json.loads((folder / "manifest.json").read_text())["inputs"]["scaling"]
    with np.load(digits) as arrays:
        x, y = torch.from_numpy(arrays["x_test"]).float(), torch.from_numpy(arrays["y_test"])
    mean, std = (torch.tensor(scaling[name]).reshape(1, -1, 1, 1) for name in ("mean", "std"))
    with torch.no_grad():
        predicted = model((x * scaling["factor"] - mean) / std).argmax(1)
    foreign = [name for name in sys.modules if name.partition(".")[0] in {"service", "workers"}]
    if foreign:
        sys.exit(f"a student must load without Stillhouse, but this was imported: {', '.join(foreign)}")
    found = {
        "examples": len(y),
        "right": int((predicted == y).sum()),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
