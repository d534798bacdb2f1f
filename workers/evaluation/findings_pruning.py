"""What a pruning did, in plain words: how far it came, what each stage bought, and what does as well.

Stages are judged on the split that the pruning names, while the search goes on; the final comparison is on the split
of the report. Each finding says which.
"""

import re
from collections.abc import Iterator

from service.contract.reports import Advantage, Finding, Pruning, Report, StageOutcome
from workers.evaluation.phrases import SIGNIFICANT, counted, ends, listed, p_value, percent, points

ENDS = {
    "target": "until its target was reached",
    "limit": "until one more step would have broken a limit",
    "floor": "until nothing more may go",
}
#: The stages that change the network, in order, and how each is called.
STAGES = {"loading": "before", "removing": "removal alone", "refitting": "with the refit", "recovering": "recovered"}
#: Undecided units, as a share of those that went, from which their choice is called chance.
MUCH_CHANCE = 0.1
NUMBER = re.compile(r"[+-]?\d[\d.,]*")


def pruning_findings(report: Report) -> tuple[Finding, ...]:
    """All that there is to say about a report's pruning; nothing where there is none."""
    if report.pruning is None:
        return ()
    return tuple(_findings(report, report.pruning))


def _findings(report: Report, pruning: Pruning) -> Iterator[Finding]:
    yield how_far(report, pruning)
    if (bought := what_stages_bought(report, pruning)) is not None:
        yield bought
    yield from what_controls_do(report, pruning)
    if (undecided := not_told_from_the_cut(pruning)) is not None:
        yield undecided
    yield from notes_of_scores(pruning)


def how_far(report: Report, pruning: Pruning) -> Finding:
    """How many units went, by which criterion, and what ended it."""
    before = sum(group.units_before for group in pruning.groups)
    after = sum(group.units_after for group in pruning.groups)
    untouched = sum(group.units_after == group.units_before for group in pruning.groups)
    left = f" {counted(untouched, 'group')} kept all units." if untouched else ""
    text = (
        f"Pruned by {pruning.criterion} {ENDS[pruning.stopped_by]}, in {counted(len(pruning.steps), 'step')}: "
        f"{after:,} of {before:,} units are left, and {percent(report.comparison.macs_ratio)} of the MACs.{left}"
    )
    numbers = {
        "units_before": float(before),
        "units_after": float(after),
        "steps": float(len(pruning.steps)),
        "macs_ratio": report.comparison.macs_ratio,
    }
    return Finding(text=text, numbers=numbers)


def what_stages_bought(report: Report, pruning: Pruning) -> Finding | None:
    """Where the network stood after each stage."""
    found = {stage.name: stage for stage in report.stages if stage.name in STAGES and stage.kl is not None}
    stood = [found[name] for name in STAGES if name in found]
    if len(stood) < 2:
        return None
    numbers: dict[str, float] = {}
    for stage in stood:
        numbers |= {f"{stage.name}_kl": stage.kl or 0.0}
        numbers |= {} if stage.accuracy is None else {f"{stage.name}_accuracy": stage.accuracy}
    quantities = "accuracy and KL from the teacher" if stood[0].accuracy is not None else "KL from the teacher"
    standing = "; ".join(f"{STAGES[stage.name]} {_standing(stage)}" for stage in stood)
    text = f"What each stage bought, in {quantities} on the {pruning.split} split: {standing}."
    return Finding(text=text, numbers=numbers)


def _standing(stage: StageOutcome) -> str:
    accuracy = "" if stage.accuracy is None else f"{percent(stage.accuracy)}, "
    return f"{accuracy}{stage.kl:.3g} nats"


def what_controls_do(report: Report, pruning: Pruning) -> Iterator[Finding]:
    """How each control compares with the result; those that do as well first, in one sentence."""
    advantages = {name: c.advantage for name, c in report.controls.items() if c.advantage is not None}
    tested = {name: a.mcnemar.p_value for name, a in advantages.items() if a.mcnemar is not None}
    as_well = [name for name, p in tested.items() if p >= SIGNIFICANT]
    if as_well:
        verb = "does" if len(as_well) == 1 else "do"
        text = (
            f"At the same cost {listed(as_well)} {verb} as well, as far as {report.examples} examples of the "
            f"{report.split} split tell: {pruning.criterion} was not shown to keep more accuracy."
        )
        numbers = {f"{name}_p_value": tested[name] for name in as_well}
        yield Finding(text=text, numbers={"examples": float(report.examples), **numbers})
    for name, advantage in advantages.items():
        yield _against(name, advantage, report)


def _against(name: str, advantage: Advantage, report: Report) -> Finding:
    """One control beside the result."""
    numbers = ends("kl_difference", advantage.kl_difference)
    sentences = []
    accuracy, student = report.controls[name].measures.accuracy, report.student.accuracy
    difference, test = advantage.accuracy_difference, advantage.mcnemar
    if accuracy is not None and student is not None and difference is not None and test is not None:
        numbers |= {"student_accuracy": student.value, "control_accuracy": accuracy.value, "p_value": test.p_value}
        numbers |= ends("accuracy_difference", difference)
        sentences.append(
            f"the student has {percent(student.value)}, it has {percent(accuracy.value)}, a difference of "
            f"{points(difference)}, McNemar's exact test p {p_value(test.p_value)}"
        )
    sentences.append(_closer(name, advantage))
    return Finding(text=f"Beside the control {name}: {'; '.join(sentences)}.", numbers=numbers)


def _closer(name: str, advantage: Advantage) -> str:
    kl = advantage.kl_difference
    amount = f"(KL lower by {-kl.value:.3g} nats [{-kl.high:.3g}, {-kl.low:.3g}])"
    if kl.high < 0:
        return f"the student's probabilities are closer to the teacher's {amount}"
    if kl.low > 0:
        amount = f"(KL lower by {kl.value:.3g} nats [{kl.low:.3g}, {kl.high:.3g}])"
        return f"the probabilities of {name} are closer to the teacher's than the student's {amount}"
    return f"neither was shown to be closer to the teacher's probabilities {amount}"


def not_told_from_the_cut(pruning: Pruning) -> Finding | None:
    """That chance had a part in which units went."""
    undecided = sum(step.undecided for step in pruning.steps)
    if not undecided:
        return None
    gone = sum(group.units_before - group.units_after for group in pruning.groups)
    steps = sum(step.undecided > 0 for step in pruning.steps)
    judged = max(step.calibration_examples for step in pruning.steps)
    text = (
        f"Over all steps {counted(undecided, 'unit')} could not be told from the cut (within two standard errors of "
        f"it, in {steps} of {counted(len(pruning.steps), 'step')}), while {gone:,} went"
    )
    chance = undecided > MUCH_CHANCE * gone
    advice = f": on other than these {judged:,} calibration examples, others of them would have gone" if chance else ""
    numbers = {"undecided": undecided, "removed": gone, "steps": steps, "calibration_examples": judged}
    return Finding(text=f"{text}{advice}.", numbers={name: float(value) for name, value in numbers.items()})


def notes_of_scores(pruning: Pruning) -> Iterator[Finding]:
    """What the scores said of themselves; notes that differ in their numbers alone are told once, as the first says."""
    first: dict[str, str] = {}
    steps: dict[str, list[int]] = {}
    for step in pruning.steps:
        for note in step.notes:
            kind = NUMBER.sub("#", note)
            first.setdefault(kind, note)
            steps.setdefault(kind, []).append(step.index)
    for kind, note in first.items():
        indexes = steps[kind]
        also = f" The same was noted in {counted(len(indexes) - 1, 'later step')}." if len(indexes) > 1 else ""
        text = f"Of the scores in step {indexes[0]}: {note.removesuffix('.')}.{also}"
        yield Finding(text=text, numbers={"first_step": float(indexes[0]), "steps": float(len(indexes))})
