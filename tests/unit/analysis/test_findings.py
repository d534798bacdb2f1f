"""What an analysis says in words, and when it keeps silent."""

from typing import Any

import pytest

from service.contract.analysis import (
    GroupActivity,
    Importance,
    Layers,
    ModelAnalysis,
    Preview,
    Redundancy,
    UnitValues,
)
from service.contract.reports import Comparison, Interval, McNemar, Measures, ReliabilityBin
from workers.analysis.findings import find


def near(value: float) -> Interval:
    return Interval(value=value, low=value - 0.01, high=value + 0.01)


def values(middle: float, mean: float | None = None) -> UnitValues:
    shares = {str(share): middle for share in (0, 5, 25, 50, 75, 95, 100)}
    return UnitValues(mean=middle if mean is None else mean, quantiles=shares, lowest=(), highest=())


def measures(**changes: Any) -> Measures:
    known = {
        "accuracy": near(0.9), "nll": 0.3, "predictive_entropy": 0.2, "marginal_entropy": 2.2,
        "claimed_information": 2.0, "label_information": 1.8, "calibration_error": 0.01,
        "reliability": (ReliabilityBin(confidence=0.9, accuracy=0.9, examples=100),),
        "parameters": 10, "macs": 20, "bytes": 30,
    }  # fmt: skip
    return Measures(**{**known, **changes})


def group(**changes: Any) -> GroupActivity:
    known: dict[str, Any] = {
        "name": "fc1", "kind": "channels", "units": 64, "macs_per_unit": 1, "parameters_per_unit": 1,
        "entropy": values(2.0), "label_information": values(0.5), "label_information_chance": 0.05,
        "redundancy": Redundancy(explained=values(0.4), chance=0.1, rows=512),
    }  # fmt: skip
    return GroupActivity(**{**known, **changes})


def layers(*groups: GroupActivity) -> Layers:
    return Layers(split="train", examples=512, bins=16, groups=groups)


def model(name: str = "mdl_1", **changes: Any) -> ModelAnalysis:
    return ModelAnalysis(**{"model": name, "measures": measures(), **changes})


def texts(*models: ModelAnalysis, comparison: Comparison | None = None) -> str:
    return "\n".join(finding.text for finding in find(models, comparison))


def test_what_outputs_claim_stands_beside_what_they_tell() -> None:
    said = texts(model())
    assert "claim 2 nats about the input, and its answers tell 1.8 nats about the label" in said
    assert "90.0% [89.0%, 91.0%]" in said


def test_without_labels_only_the_claim_is_left() -> None:
    bare = dict.fromkeys(["accuracy", "nll", "label_information", "calibration_error"])
    said = texts(model(measures=measures(**bare, reliability=())))
    assert "without labels" in said
    assert "calibrated" not in said


@pytest.mark.parametrize(("error", "verdict"), [(0.01, "about the"), (0.2, "more than the")])
def test_a_calibration_error_is_held_against_chance(error: float, verdict: str) -> None:
    assert verdict in texts(model(measures=measures(calibration_error=error)))


def test_dead_units_are_counted_and_located() -> None:
    said = texts(model(layers=layers(group(dead=3), group(name="fc2", dead=1))))
    assert "4 of 128 units never change on 512 inputs (3 in fc1, 1 in fc2)" in said
    assert "never change" not in texts(model(layers=layers(group())))


@pytest.mark.parametrize(("explained", "chance", "told"), [(0.95, 0.1, True), (0.8, 0.1, False), (0.95, 0.9, False)])
def test_redundancy_is_told_where_chance_does_not_explain_it(explained: float, chance: float, told: bool) -> None:
    redundancy = Redundancy(explained=values(explained), chance=chance, rows=512)
    assert ("units to spare" in texts(model(layers=layers(group(redundancy=redundancy))))) is told


@pytest.mark.parametrize(("mean", "told"), [(0.05, True), (0.07, True), (0.5, False), (-0.01, True)])
def test_units_that_know_the_label_no_better_than_chance_are_told(mean: float, told: bool) -> None:
    said = texts(model(layers=layers(group(label_information=values(mean)))))
    assert ("tell no more of the label than chance" in said) is told


def test_every_preview_and_its_numbers_are_told() -> None:
    preview = Preview(
        target=0.5, macs=10, parameters=5, allocation="per_mac", removed=7, share_of_score=0.02, reached=True
    )
    judged = Importance(
        criterion={"name": "l2"}, comparable=True, examples=0, groups={}, preview=preview, reading="By l2, 7 would go."
    )
    (finding,) = [each for each in find((model(importance=(judged,)),), None) if "l2" in each.text]
    assert finding.text == "mdl_1: By l2, 7 would go."
    assert finding.numbers == {"removed": 7, "macs": 10, "target": 0.5, "share_of_score": 0.02}


@pytest.mark.parametrize(("p", "verdict"), [(0.001, ": a difference in"), (0.4, "no difference that these")])
def test_a_pair_is_compared_and_a_difference_claimed_only_where_there_is_one(p: float, verdict: str) -> None:
    compared = Comparison(
        agreement=near(0.97), kl_teacher_student=near(0.04), kl_student_teacher=near(0.05), jensen_shannon=near(0.01),
        mcnemar=McNemar(b=4, c=9, p_value=p), latency_ratio=1, macs_ratio=1, parameters_ratio=1,
    )  # fmt: skip
    said = texts(model(), model("mdl_2"), comparison=compared)
    assert "mdl_2 answers as mdl_1 does on 97.0%" in said
    assert "9 examples only mdl_2 has right, 4 only mdl_1" in said
    assert verdict in said
