"""The sign of the starting formula, measured: every reading of output entropy beside the true rise of the loss.

    python -m benchmarks.pruning_sign [networks, mlp,lenet5] [data, digits] [seeds, 0,1,2]

For every unit of a trained network, by exact leave-one-out over 512 training inputs with the unit's mean in its place:
Spearman's rank correlation, over all units of the network, of each score with loss_delta, the rise in cross-entropy.
A score that is right about what to keep has +1; one that prunes the best units first has −1. Results are appended to
benchmarks/results/pruning.jsonl and stand in docs/pruning.md.
"""

import sys
import warnings

import torch
from torch import Tensor

from benchmarks.pruning_data import load
from benchmarks.pruning_networks import CPU, teacher
from benchmarks.pruning_quality import RESULTS, note, read
from benchmarks.pruning_ways import MEMORY, Subject
from workers.journal import Silent
from workers.pruning.calibration import drawn
from workers.pruning.criteria.leave_one_out import output_sums
from workers.pruning.labels import required_labels
from workers.pruning.ranks import spearman
from workers.pruning.reads import find_reads
from workers.pruning.replacement import fit
from workers.pruning.scores import Scores


def all_values(scores: Scores) -> Tensor:
    return torch.cat(list(scores.values.values()))


def correlations(subject: Subject) -> dict[str, float]:
    """Score -> its rank correlation with the loss's rise; and what share of units the literal reading has below 0."""
    calibration = drawn(subject.data.train, 512, subject.seed, CPU)
    judged = subject.graph, subject.groups, find_reads(subject.groups), calibration
    replacement = fit(*judged, "mean", memory_bytes=MEMORY)
    labels = required_labels(calibration, "loss_delta")
    sums = output_sums(*judged, replacement, labels=labels, memory_bytes=MEMORY, journal=Silent())
    truth = all_values(sums.loss_delta())
    scores = {
        "predictive": sums.output_entropy("predictive", absolute=False),
        "predictive_absolute": sums.output_entropy("predictive", absolute=True),
        "marginal": sums.output_entropy("marginal", absolute=False),
        "marginal_absolute": sums.output_entropy("marginal", absolute=True),
        "information_drop": sums.information_drop(),
        "output_kl": sums.output_kl(),
    }
    found = {name: spearman(all_values(one), truth) for name, one in scores.items()}
    return {**found, "negative": float((all_values(scores["predictive"]) < 0).double().mean())}


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    given = [*sys.argv[1:], *("mlp,lenet5", "digits", "0,1,2")[len(sys.argv) - 1 :]]
    networks, sources, seeds = (text.split(",") for text in given)
    known = {(one["network"], one["data"], one["seed"]) for one in read(RESULTS) if one["kind"] == "sign"}
    for seed in map(int, seeds):
        for source in sources:
            for name in networks:
                if (name, source, seed) not in known:
                    data = load(source)
                    subject = Subject.of(teacher(name, data, seed), data, seed)
                    line = {"kind": "sign", "network": name, "data": source, "seed": seed}
                    note({**line, **correlations(subject)})


if __name__ == "__main__":
    main()
