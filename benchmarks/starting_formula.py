"""The starting formula of entropy pruning beside criteria that keep their sign, on perceptrons trained on digits.

Importance(i) = H(output with i) - H(output without i), and the units of low importance go. scikit-learn's 1,797
digits, 64-128-64-10 perceptrons; units are judged on 512 of the 1,257 training examples, as in jobs, and 540 examples
are to test. All scores are exact, by zero ablation of every unit in turn. For each criterion: the share of units whose
score is negative; Spearman's rank correlation with the rise of the loss when the unit goes, on the examples that the
units were judged on, and on the test examples; and the test accuracy when the 30% of all units that it holds least
important are gone, with no repair. All of it after 12 epochs, when the networks still leave probability to other
classes, and after 60, when they leave next to none.

    python -m benchmarks.starting_formula [seeds, 8]
"""

import sys
from collections.abc import Mapping

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from service.contract.criteria import (
    CriterionOptions,
    InformationDrop,
    LossDelta,
    OutputEntropy,
    OutputKl,
    RandomOrder,
)
from workers.formats.tracing import as_graph
from workers.graph.groups import Groups, find_groups
from workers.graph.layer_graph import LayerGraph
from workers.graph.surgery import remove
from workers.journal import Silent
from workers.pruning.calibration import Calibration
from workers.pruning.criteria.criteria import score
from workers.pruning.ranks import spearman
from workers.pruning.reads import find_reads
from workers.pruning.scores import Scores
from workers.students.architectures import build
from workers.training.data import Scaling, Split

EPOCHS = (12, 60)
REMOVED = 0.3  # of all units
MEMORY_BYTES = 2**28
TRAIN, JUDGE, TEST = range(1257), range(512), range(1257, 1797)
ENTROPY = OutputEntropy(name="output_entropy", ablation="zero")
RISE = LossDelta(name="loss_delta", ablation="zero")
CRITERIA: Mapping[str, CriterionOptions] = {
    "output_entropy, predictive, literal": ENTROPY,
    "output_entropy, predictive, absolute": ENTROPY.model_copy(update={"absolute": True}),
    "output_entropy, marginal, literal": ENTROPY.model_copy(update={"reading": "marginal"}),
    "information_drop": InformationDrop(name="information_drop", ablation="zero"),
    "output_kl": OutputKl(mode="exact", ablation="zero", reference="current"),
    "loss_delta, with labels": RISE,
    "random": RandomOrder(name="random"),
}


def digits(seed: int) -> tuple[Tensor, Tensor]:
    """(1797, 1, 8, 8) float32 in 0…1 and classes, shuffled by seed."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    return torch.from_numpy(x[order]).float().div(16).view(-1, 1, 8, 8), torch.from_numpy(y[order]).long()


def trained(x: Tensor, y: Tensor, epochs: int, seed: int) -> LayerGraph:
    """A 64-128-64-10 perceptron."""
    network = build("mlp", {"hidden": [128, 64]}, input_shape=(1, 8, 8), num_classes=10, seed=seed)
    optimizer = torch.optim.Adam(network.parameters(), 0.003)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=generator).split(64):
            optimizer.zero_grad()
            F.cross_entropy(network(x[rows]), y[rows]).backward()
            optimizer.step()
    return as_graph(network.eval(), (1, 8, 8))


def calibration(x: Tensor, y: Tensor, rows: range) -> Calibration:
    """These examples as calibration inputs."""
    split = Split(x.numpy(), y.numpy(), np.array(rows), Scaling())
    return Calibration(split, np.arange(len(rows)))


def judged(network: LayerGraph, groups: Groups, inputs: Calibration, options: CriterionOptions, seed: int) -> Scores:
    """What a criterion says of every unit."""
    return score(
        network,
        groups,
        find_reads(groups),
        inputs,
        options,
        reference=None,
        seed=seed,
        memory_bytes=MEMORY_BYTES,
        journal=Silent(),
    )


def flat(scores: Scores, groups: Groups) -> Tensor:
    """(units,) of all groups."""
    return torch.cat([scores.values[name].double() for name in groups])


def accuracy_without(network: LayerGraph, groups: Groups, scores: Tensor, x: Tensor, y: Tensor) -> float:
    """Of the network without the units of lowest score."""
    units = [(name, unit) for name, group in groups.items() for unit in range(group.num_units)]
    gone = [units[place] for place in scores.argsort(stable=True)[: round(REMOVED * len(units))].tolist()]
    selection = {name: [unit for owner, unit in gone if owner == name] for name in groups}
    small = remove(network, {name: chosen for name, chosen in selection.items() if chosen}, groups).eval()
    with torch.no_grad():
        return float((small(x).argmax(1) == y).double().mean())


def measured(epochs: int, seeds: int) -> tuple[float, dict[str, Tensor]]:
    """The test accuracy of the whole network, and for every criterion the numbers of its row: (seeds, 4)."""
    found: dict[str, list[tuple[float, ...]]] = {name: [] for name in CRITERIA}
    whole = []
    for seed in range(seeds):
        x, y = digits(seed)
        network = trained(x[: len(TRAIN)], y[: len(TRAIN)], epochs, seed)
        groups = find_groups(network)
        judging, testing = calibration(x, y, JUDGE), calibration(x, y, TEST)
        unseen_x, unseen_y = x[TEST.start :], y[TEST.start :]
        with torch.no_grad():
            whole.append(float((network(unseen_x).argmax(1) == unseen_y).double().mean()))
        rises = [flat(judged(network, groups, inputs, RISE, seed), groups) for inputs in (judging, testing)]
        for name, options in CRITERIA.items():
            scores = flat(judged(network, groups, judging, options, seed), groups)
            accuracy = accuracy_without(network, groups, scores, unseen_x, unseen_y)
            alike = [spearman(scores, rise) for rise in rises]
            found[name].append((float((scores < 0).double().mean()), *alike, accuracy))
    return float(np.mean(whole)), {name: torch.tensor(rows, dtype=torch.float64) for name, rows in found.items()}


def main() -> None:
    torch.set_num_threads(1)
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 8
    for epochs in EPOCHS:
        whole, found = measured(epochs, seeds)
        print(f"\n{epochs} epochs, {seeds} seeds, mean ± standard deviation; the whole network: {whole:.1%}\n")
        print(f"| criterion | negative | rank, judged | rank, test | accuracy without {REMOVED:.0%} of the units |")
        print("|---|---|---|---|---|")
        for name, rows in found.items():
            mean, spread = rows.mean(0).tolist(), rows.std(0, correction=0).tolist()
            alike = " | ".join(f"{mean[place]:+.2f} ± {spread[place]:.2f}" for place in (1, 2))
            print(f"| {name} | {mean[0]:.0%} | {alike} | {mean[3]:.1%} ± {spread[3]:.1%} |")


if __name__ == "__main__":
    main()
