"""Pruned networks side by side: ours, the same schedule with other criteria, and peers as their authors use them.

    python -m benchmarks.pruning_quality --networks mlp,lenet5 --data mnist5k --seeds 0,1,2 --budgets 0.5,0.25,0.12,0.06
    python -m benchmarks.pruning_quality --tables          # docs/pruning.md from what was measured

A cell is (network, data, seed, way, budget); what is measured is appended to benchmarks/results/pruning.jsonl, and a
cell that is there is not measured again, so that a benchmark may be stopped at any time and go on later. Cells come in
an order that gives a whole picture early: every network once, before the second seed. Test accuracy is taken once for
each stage of each cell, of the network as it is after its last epoch; validation data judge the steps of schedules,
and nothing else. One thread.
"""

import argparse
import itertools
import json
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks import pruning_tables
from benchmarks.pruning_data import Data, load
from benchmarks.pruning_networks import CPU, NETWORKS, by_labels, cache_folder, recipe_of, teacher
from benchmarks.pruning_ways import WAYS, Offer, Subject, accuracy, judge_by, outputs, removed
from service.contract.objectives import KdObjective
from workers.distillation.objectives import objective
from workers.graph.layer_graph import LayerGraph
from workers.graph.redrawing import redraw
from workers.journal import Silent
from workers.training.loop import train

RESULTS = Path(__file__).parent / "results" / "pruning.jsonl"
SOFT = objective(KdObjective(alpha=0.0, temperature=4.0))
# The network that our way made, with new weights: (as long as which training, how many times).
SCRATCH = {
    "scratch": ("recovery", 1),
    "scratch_x4": ("recovery", 4),
    "scratch_long": ("teacher", 1),
    "scratch_long_x4": ("teacher", 4),
}
FIRST = ("ours", "tp_l2", "tp_l2_local", "tp_taylor", "luo_wu", "random_uniform", "l2", "taylor", "random")
Key = tuple[str, str, int, str, float]


def main() -> None:
    arguments = parsed()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    if arguments.tables:
        pruning_tables.write(list(read(RESULTS)))
        return
    known = {key_of(line) for line in read(RESULTS) if line["kind"] == "cell"}
    deadline = time.monotonic() + 60 * arguments.minutes
    for (name, data, seed), ways in tasks(arguments):
        missing = {way: [one for one in arguments.budgets if (name, data, seed, way, one) not in known] for way in ways}
        if any(missing.values()):
            run(name, load(data), seed, missing, deadline)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = {"type": lambda text: text.split(",")}
    parser.add_argument("--networks", default=["mlp", "lenet5"], **names, help=", ".join(NETWORKS))
    parser.add_argument("--data", default=["digits", "mnist5k"], **names)
    parser.add_argument("--seeds", default=[0, 1, 2], type=lambda text: [int(seed) for seed in text.split(",")])
    parser.add_argument(
        "--budgets", default=[0.5, 0.25, 0.12, 0.06], type=lambda text: [float(one) for one in text.split(",")]
    )
    parser.add_argument("--ways", default=[*WAYS, *SCRATCH], **names, help=", ".join([*WAYS, *SCRATCH]))
    parser.add_argument("--minutes", default=1e9, type=float, help="after which no new way is begun")
    parser.add_argument("--tables", action="store_true")
    return parser.parse_args()


def tasks(arguments: argparse.Namespace) -> Iterator[tuple[tuple[str, str, int], list[str]]]:
    """Every network and seed, first with the ways that matter most, then with the others."""
    for seed in arguments.seeds:
        for early in (True, False):
            ways = [way for way in arguments.ways if (way in FIRST) == early]
            for name, data in itertools.product(arguments.networks, arguments.data):
                yield (name, data, seed), ways


def read(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        yield from map(json.loads, path.read_text().splitlines())


def key_of(line: Mapping[str, Any]) -> Key:
    return line["network"], line["data"], line["seed"], line["way"], line["budget"]


def note(line: Mapping[str, Any]) -> None:
    text = json.dumps({name: round(value, 6) if isinstance(value, float) else value for name, value in line.items()})
    RESULTS.parent.mkdir(exist_ok=True)
    with RESULTS.open("a") as file:
        file.write(text + "\n")
    print(text, flush=True)


def run(name: str, data: Data, seed: int, missing: Mapping[str, Sequence[float]], deadline: float) -> None:
    """Measure the cells of one network and seed, way by way."""
    network = teacher(name, data, seed)
    subject = Subject.of(network, data, seed)
    whole = {"network": name, "data": data.name, "seed": seed, "teacher": accuracy(subject.graph, data.test)}
    for way, budgets in missing.items():
        if not budgets:
            continue
        if time.monotonic() > deadline:
            return
        if way in SCRATCH:
            for line in from_scratch(name, subject, way, budgets):
                note({"kind": "cell", **whole, **line})
            continue
        started = time.perf_counter()
        for offer in WAYS[way](subject, budgets):
            seconds = time.perf_counter() - started
            note({"kind": "cell", **whole, "way": way, **measured(name, subject, offer, way), "seconds": seconds})
            started = time.perf_counter()


def measured(name: str, subject: Subject, offer: Offer, way: str) -> dict[str, Any]:
    """What a cell says of the network that a way made."""
    size, test = subject.groups.size_without(offer.gone), subject.data.test
    plain = removed(subject, offer.gone)
    line: dict[str, Any] = {"budget": offer.budget, "macs": size.macs, "share": size.macs / subject.macs}
    line |= {"params": size.parameters, "removed": accuracy(plain, test)}
    network = plain
    if offer.refitted is not None:
        network = offer.refitted
        line |= {"refitted": accuracy(network, test), "kl": judge_by(subject)(network).kl}
    if way == "ours":
        remember(name, subject, offer)
        line["speed"] = speed(subject, network)
    line["units"] = {group: part.num_units - len(offer.gone.get(group, ())) for group, part in subject.groups.items()}
    recovered = plain if way in pruning_tables.PEERS else network  # as their authors use them: without our refit
    recover(name, subject, recovered)
    return {**line, "recovered": accuracy(recovered, test)}


def recover(name: str, subject: Subject, network: LayerGraph) -> None:
    """Distil the teacher for some epochs, in place."""
    data = subject.data
    taught = {"train": outputs(subject.graph, data.train).numpy()}
    training = recipe_of(name, data).recovery()
    train(network, data.for_training, SOFT, training, seed=subject.seed, device=CPU, journal=Silent(),
          teacher_logits=taught)  # fmt: skip


def place_of(name: str, subject: Subject, budget: float) -> Path:
    return cache_folder() / f"ours-{name}-{subject.data.name}-{subject.seed}-{budget:g}.json"


def remember(name: str, subject: Subject, offer: Offer) -> None:
    """Which units are gone, for those who train the same network anew."""
    gone = {group: list(units) for group, units in offer.gone.items()}
    place_of(name, subject, offer.budget).write_text(json.dumps(gone))


def from_scratch(name: str, subject: Subject, way: str, budgets: Sequence[float]) -> Iterator[dict[str, Any]]:
    """The network that our way made, with new weights, trained on the labels."""
    data, (like, times) = subject.data, SCRATCH[way]
    recipe = recipe_of(name, data)
    epochs = times * (recipe.epochs if like == "teacher" else recipe.recovery_epochs)
    for budget in budgets:
        place = place_of(name, subject, budget)
        if not place.exists():
            continue
        gone = json.loads(place.read_text())
        network, size = removed(subject, gone), subject.groups.size_without(gone)
        try:
            redraw(network, subject.seed)
        except ValueError:
            return  # a network with parameters of its own, which only its code could draw anew
        training = recipe.training(epochs)
        started = time.perf_counter()
        train(network, data.for_training, by_labels, training, seed=subject.seed, device=CPU, journal=Silent())
        line = {"way": way, "budget": budget, "macs": size.macs, "share": size.macs / subject.macs}
        seconds = time.perf_counter() - started
        yield {**line, "epochs": epochs, "recovered": accuracy(network, data.test), "seconds": seconds}


@torch.no_grad()
def speed(subject: Subject, network: nn.Module, rounds: int = 50) -> dict[str, float]:
    """How many times faster than its teacher, at batches of 1 and 64: by the fastest of passes in alternation.

    The fastest, since passes of a millisecond on a shared machine are now and then interrupted for ten.
    """
    found = {}
    for size in (1, 64):
        x = subject.data.test.batch(torch.arange(size).numpy(), CPU)[0]
        seconds: dict[str, list[float]] = {"teacher": [], "pruned": []}
        for _ in range(rounds):
            for which, one in (("teacher", subject.graph), ("pruned", network)):
                started = time.perf_counter()
                one(x)
                seconds[which].append(time.perf_counter() - started)
        found[str(size)] = min(seconds["teacher"]) / min(seconds["pruned"])
    return found


if __name__ == "__main__":
    main()
