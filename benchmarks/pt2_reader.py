"""How fast an uploaded archive is read: the strict reader against torch.export.load, on the same files, in one run.

ResNet-50, BERT-base and ViT-B with random weights (transformers' definitions) are exported with a dynamic batch and
saved; then each is opened by both in turn, several times, and the medians and their ratio are printed. "read" is
`read_pt2`, the counterpart of torch.export.load; "lift" is what follows here: layers, and all shapes computed
anew. Each program's outputs are compared before anything is timed.
"""

import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from workers.formats.pt2_reader import read_pt2
from workers.graph.lifting import lift

ROUNDS = 5
TARGET = 5.0


class Logits(nn.Module):
    """A transformers model as a plain function of one tensor."""

    def __init__(self, model: nn.Module, argument: str) -> None:
        super().__init__()
        self.model = model
        self.argument = argument

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(**{self.argument: x}).logits
        return logits


def networks() -> dict[str, tuple[Callable[[], nn.Module], Tensor]]:
    import transformers

    pixels = torch.randn(2, 3, 224, 224)
    tokens = torch.randint(0, 30_000, (2, 128))
    return {
        "ResNet-50": (
            lambda: Logits(transformers.ResNetForImageClassification(transformers.ResNetConfig()), "pixel_values"),
            pixels,
        ),
        "BERT-base": (
            lambda: Logits(transformers.BertForSequenceClassification(transformers.BertConfig()), "input_ids"),
            tokens,
        ),
        "ViT-B": (
            lambda: Logits(transformers.ViTForImageClassification(transformers.ViTConfig()), "pixel_values"),
            pixels,
        ),
    }


def save(build: Callable[[], nn.Module], example: Tensor, path: Path) -> None:
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    torch.export.save(torch.export.export(build().eval(), (example,), dynamic_shapes=dynamic), path)


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def agree(path: Path, example: Tensor) -> bool:
    """Whether both ways compute the same bits."""
    with torch.no_grad():
        theirs = torch.export.load(path).module()(example)
        return torch.equal(theirs, lift(read_pt2(path))(example))


def measure(path: Path) -> tuple[float, float, float]:
    """Median seconds of torch.export.load, of reading, and of reading and lifting, taken in turn."""
    theirs, read, lifted = [], [], []
    for _ in range(ROUNDS):
        theirs.append(seconds(lambda: torch.export.load(path)))
        read.append(seconds(lambda: read_pt2(path)))
        lifted.append(seconds(lambda: lift(read_pt2(path))))
    return statistics.median(theirs), statistics.median(read), statistics.median(lifted)


def main() -> None:
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    print("network        MiB  torch.export.load    read_pt2   ratio  read and lift   ratio")
    missed = []
    for name, (build, example) in networks().items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.pt2"
            save(build, example, path)
            if not agree(path, example):
                sys.exit(f"{name}: the two readers disagree")
            theirs, read, lifted = measure(path)
            size = path.stat().st_size / 2**20
        ratios = f"{read:8.3f} s {theirs / read:6.1f}x {lifted:12.3f} s {theirs / lifted:6.1f}x"
        print(f"{name:12} {size:5.0f} {theirs:16.3f} s {ratios}")
        if theirs / read < TARGET:
            missed.append(name)
    if missed:
        sys.exit(f"Below {TARGET:.0f} times: {', '.join(missed)}")


if __name__ == "__main__":
    main()
