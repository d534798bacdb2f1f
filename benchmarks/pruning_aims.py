"""How small networks become on the whole of MNIST, beside the records of the literature.

    MNIST_FOLDER=… python -m benchmarks.pruning_aims [networks, lenet_300_100,lenet5,resnet14] [seeds, 0] [epochs, 20]

Each network is pruned as a job prunes it by default, then distilled from its teacher for some epochs, the last of which
counts. No input pixel is pruned. The records: VIBNet (Dai et al. 2018) has LeNet-300-100 at 97-71-33, with input pixels
pruned too, and LeNet-5 at 5-10-76-16. MNIST_FOLDER holds the four IDX files of MNIST.
"""

import sys
import time
import warnings

import torch

from benchmarks.pruning_data import load
from benchmarks.pruning_networks import CPU, recipe_of, teacher
from benchmarks.pruning_quality import RESULTS, SOFT, note, read
from benchmarks.pruning_ways import WAYS, Subject, accuracy, outputs
from workers.journal import Silent
from workers.training.loop import train

# Network -> MACs that are aimed at; shares where they are below 1.
AIMS: dict[str, tuple[float, ...]] = {
    "lenet_300_100": (32_000, 17_000),
    "mlp": (32_000, 17_000),
    "lenet5": (158_000, 70_000),
    "resnet14": (0.25, 0.125),
    "resnet8": (0.25, 0.125),
}


def measure(name: str, seed: int, epochs: int) -> None:
    data = load("mnist")
    subject = Subject.of(teacher(name, data, seed), data, seed)
    whole = accuracy(subject.graph, data.test)
    taught = {"train": outputs(subject.graph, data.train).numpy()}
    budgets = [aim if aim < 1 else aim / subject.macs for aim in AIMS[name]]
    started = time.perf_counter()
    for offer in WAYS["ours"](subject, budgets):
        network, macs = offer.refitted, subject.groups.size_without(offer.gone).macs
        assert network is not None
        units = {group: part.num_units - len(offer.gone.get(group, ())) for group, part in subject.groups.items()}
        line = {"kind": "aim", "network": name, "data": "mnist", "seed": seed, "teacher": whole, "budget": offer.budget}
        line |= {"macs": macs, "units": units, "refitted": accuracy(network, data.test), "epochs": epochs}
        line["seconds"] = time.perf_counter() - started
        training = recipe_of(name, data).recovery(epochs)
        train(network, data.for_training, SOFT, training, seed=seed, device=CPU, journal=Silent(),
              teacher_logits=taught)  # fmt: skip
        note({**line, "recovered": accuracy(network, data.test)})


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    given = [*sys.argv[1:], *("lenet_300_100,lenet5,resnet14", "0", "20")[len(sys.argv) - 1 :]]
    known = {(one["network"], one["seed"], one["epochs"]) for one in read(RESULTS) if one["kind"] == "aim"}
    for name in given[0].split(","):
        for seed in map(int, given[1].split(",")):
            if (name, seed, int(given[2])) not in known:
                measure(name, seed, int(given[2]))


if __name__ == "__main__":
    main()
