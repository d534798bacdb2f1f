"""What an analysis means, in words, each statement with the numbers it rests on."""

from collections.abc import Iterator

from service.contract.analysis import GroupActivity, Importance, Layers, ModelAnalysis
from service.contract.reports import Comparison, Finding
from workers.evaluation.calibration import error_by_chance

CERTAIN = 0.05  # p-values from this on are no ground to speak of a difference
REDUNDANT = 0.9  # R² of the middle unit from which a group is worth a word
INFORMATIVE = 1.5  # times what chance gives


def find(models: tuple[ModelAnalysis, ...], comparison: Comparison | None) -> tuple[Finding, ...]:
    """Statements on every model, then on the two together."""
    found: list[Finding] = []
    for model in models:
        found += outputs(model)
        if model.layers is not None:
            found += inside(model.model, model.layers)
        found += previews(model.model, model.importance)
    if comparison is not None:
        found += together(models[0].model, models[1].model, comparison)
    return tuple(found)


def outputs(model: ModelAnalysis) -> Iterator[Finding]:
    """What the outputs claim, and what they tell."""
    measures, name = model.measures, model.model
    claimed = measures.claimed_information
    if measures.label_information is None or measures.accuracy is None:
        text = (
            f"{name}: its outputs claim {claimed:.3g} nats about the input; without labels, nothing shows if rightly."
        )
        yield Finding(text=text, numbers={"claimed_information": claimed})
        return
    told, accuracy = measures.label_information, measures.accuracy
    yield Finding(
        text=f"{name} is right on {accuracy.value:.1%} [{accuracy.low:.1%}, {accuracy.high:.1%}]; its outputs claim "
        f"{claimed:.3g} nats about the input, and its answers tell {told:.3g} nats about the label.",
        numbers={"accuracy": accuracy.value, "claimed_information": claimed, "label_information": told},
    )
    error, chance = measures.calibration_error, error_by_chance(measures.reliability)
    if error is not None:
        verdict = "more than" if error > INFORMATIVE * chance else "about"
        yield Finding(
            text=f"{name}: confidence and accuracy are {error:.3f} apart on average, {verdict} the {chance:.3f} that a "
            "calibrated model would show on as many examples.",
            numbers={"calibration_error": error, "calibration_error_by_chance": chance},
        )


def inside(name: str, layers: Layers) -> Iterator[Finding]:
    """What the groups hold that pruning can use."""
    dead = {group.name: group.dead for group in layers.groups if group.dead}
    if dead:
        named = ", ".join(f"{count} in {group}" for group, count in list(dead.items())[:3])
        units = sum(group.units for group in layers.groups)
        yield Finding(
            text=f"{name}: {sum(dead.values())} of {units:,} units never change on {layers.examples:,} inputs "
            f"({named}): they say nothing, and only their constant would be missed.",
            numbers={"dead": sum(dead.values()), "units": units, "examples": layers.examples},
        )
    told = max(layers.groups, key=middle_explained, default=None)
    if told is not None and told.redundancy is not None and middle_explained(told) >= REDUNDANT:
        chance = told.redundancy.chance or 0.0
        yield Finding(
            text=f"{name}: of the middle unit of {told.name}, {middle_explained(told):.1%} is said by the other units "
            f"of its group, linearly; unrelated units would show {chance:.1%}. It has units to spare.",
            numbers={"explained": middle_explained(told), "chance": chance},
        )
    silent = [group for group in layers.groups if uninformative(group)]
    if silent:
        group = silent[0]
        assert group.label_information is not None  # noqa: S101  it is uninformative for that
        chance = group.label_information_chance or 0.0
        yield Finding(
            text=f"{name}: single units of {', '.join(each.name for each in silent[:3])} tell no more of the label "
            f"than chance gives ({group.label_information.mean:.3g} nats on average, {chance:.3g} by chance).",
            numbers={"label_information": group.label_information.mean, "chance": chance},
        )


def middle_explained(group: GroupActivity) -> float:
    """The R² of a group's middle unit beyond the measure of chance; 0 where chance could give as much."""
    redundancy = group.redundancy
    if redundancy is None or redundancy.explained is None or redundancy.chance is None or redundancy.chance > 0.5:
        return 0.0
    return redundancy.explained.quantiles["50"]


def uninformative(group: GroupActivity) -> bool:
    """Whether the units of a group say no more of the label than chance does."""
    told, chance = group.label_information, group.label_information_chance
    return told is not None and chance is not None and told.mean <= max(0.0, INFORMATIVE * chance)


def previews(name: str, judged: tuple[Importance, ...]) -> Iterator[Finding]:
    """What each criterion would have pruning do."""
    for each in judged:
        preview = each.preview
        numbers = {"removed": float(preview.removed), "macs": float(preview.macs), "target": preview.target}
        if preview.share_of_score is not None:
            numbers["share_of_score"] = preview.share_of_score
        yield Finding(text=f"{name}: {each.reading}", numbers=numbers)


def together(first: str, second: str, comparison: Comparison) -> Iterator[Finding]:
    """How the second model stands to the first."""
    agreement, kl = comparison.agreement.value, comparison.kl_teacher_student.value
    yield Finding(
        text=f"{second} answers as {first} does on {agreement:.1%} of the examples, and is {kl:.3g} nats away from it "
        f"(KL, {first} first).",
        numbers={"agreement": agreement, "kl": kl},
    )
    test = comparison.mcnemar
    if test is not None:
        only = f"{test.c} examples only {second} has right, {test.b} only {first}"
        verdict = "a difference" if test.p_value < CERTAIN else "no difference that these examples could show"
        yield Finding(
            text=f"{only}: {verdict} in accuracy (McNemar's exact test, p = {test.p_value:.2g}).",
            numbers={"b": test.b, "c": test.c, "p_value": test.p_value},
        )
