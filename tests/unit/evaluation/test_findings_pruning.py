import re
from typing import Any

import pytest

from service.contract.reports import Finding, Report
from tests.unit.evaluation.reports import STAGES, present, pruned_report, pruning, report
from workers.evaluation.findings import find
from workers.evaluation.findings_pruning import not_told_from_the_cut, notes_of_scores, pruning_findings
from workers.evaluation.phrases import counted, listed

PRUNED = pruned_report()


def starting(found: tuple[Finding, ...], start: str) -> Finding:
    (finding,) = [finding for finding in found if finding.text.startswith(start)]
    return finding


def changed(found: Report, **changes: Any) -> Report:
    return found.model_copy(update={"pruning": present(found.pruning).model_copy(update=changes)})


def test_a_report_without_pruning_has_nothing_to_say_of_it() -> None:
    assert pruning_findings(report()) == ()


def test_what_was_found_of_the_pruning_is_among_the_reports_findings() -> None:
    assert {finding.text for finding in pruning_findings(PRUNED)} <= {finding.text for finding in PRUNED.findings}
    assert PRUNED.findings == find(PRUNED)


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("target", "until its target was reached"),
        ("limit", "until one more step would have broken a limit"),
        ("floor", "until nothing more may go"),
    ],
)
def test_it_says_what_ended_the_pruning_and_how_much_is_left(reason: str, said: str) -> None:
    found = starting(pruning_findings(changed(PRUNED, stopped_by=reason)), "Pruned by")
    assert said in found.text
    assert "40 of 64 units are left, and 25.0% of the MACs" in found.text
    assert (found.numbers["units_before"], found.numbers["units_after"]) == (64, 40)


def test_groups_that_kept_all_are_counted() -> None:
    groups = present(PRUNED.pruning).groups
    whole = (groups[0], groups[1].model_copy(update={"units_after": 32}))
    assert "1 group kept all units" in pruning_findings(changed(PRUNED, groups=whole))[0].text


def test_it_says_what_each_stage_bought_in_the_order_in_which_the_network_passed_them() -> None:
    found = starting(pruning_findings(PRUNED), "What each stage bought")
    assert found.text.endswith(
        "on the validation split: before 96.0%, 0 nats; removal alone 61.0%, 1.25 nats; with the refit 93.0%, "
        "0.125 nats; recovered 95.0%, 0.0625 nats."
    )
    assert (found.numbers["removing_accuracy"], found.numbers["refitting_kl"]) == (0.61, 0.125)


def test_without_labels_stages_are_told_by_divergence_alone() -> None:
    found = starting(pruning_findings(pruned_report(labelled=False)), "What each stage bought")
    assert "%" not in found.text
    assert "removal alone 1.25 nats" in found.text


def test_stages_that_were_not_judged_are_not_told() -> None:
    bare = PRUNED.model_copy(update={"stages": STAGES[1:2]})
    assert not [each for each in pruning_findings(bare) if each.text.startswith("What each stage")]


def test_a_control_that_does_as_well_is_named_plainly() -> None:
    found = starting(pruning_findings(PRUNED), "At the same cost random does as well")
    assert "output_kl was not shown to keep more accuracy" in found.text
    assert found.numbers["random_p_value"] == 1.0
    assert "l2 do" not in found.text


def test_a_control_that_does_worse_is_told_with_its_difference() -> None:
    found = starting(pruning_findings(PRUNED), "Beside the control l2")
    difference = present(present(PRUNED.controls["l2"].advantage).accuracy_difference)
    assert difference.low > 0
    assert f"a difference of {100 * difference.value:+.1f} points" in found.text
    assert "the student's probabilities are closer" in found.text
    assert found.numbers["kl_difference"] < 0


def test_units_that_cannot_be_told_from_the_cut_are_counted() -> None:
    found = present(not_told_from_the_cut(pruning()))
    assert "12 units could not be told from the cut" in found.text
    assert "while 24 went" in found.text
    assert found.numbers == {"undecided": 12, "removed": 24, "steps": 3, "calibration_examples": 256}
    calm = pruning().model_copy(
        update={"steps": tuple(step.model_copy(update={"undecided": 0}) for step in pruning().steps)}
    )
    assert not_told_from_the_cut(calm) is None


def test_a_note_that_differs_in_its_numbers_is_told_once() -> None:
    (found,) = notes_of_scores(pruning(signed=True))
    assert found.text == (
        "Of the scores in step 1: output_entropy was taken literally (predictive, signed): 41% of the units have a "
        "negative score. The same was noted in 2 later steps."
    )
    assert found.numbers == {"first_step": 1, "steps": 3}


@pytest.mark.parametrize(
    ("split", "use"), [("validation", "judged every step of the pruning"), ("train", "the units were judged on")]
)
def test_numbers_from_a_split_that_pruning_saw_are_called_flattering(split: str, use: str) -> None:
    assert use in " ".join(finding.text for finding in pruned_report(split=split).findings)


def test_every_percentage_of_a_finding_is_among_its_numbers() -> None:
    for finding in pruning_findings(PRUNED):
        shown = {float(number) for number in re.findall(r"([\d.]+)%", finding.text)}
        known = {round(100 * abs(value), 1) for value in finding.numbers.values()}
        assert all(any(abs(number - value) <= 0.1 for value in known) for number in shown), finding


def test_names_and_counts_are_said_as_people_say_them() -> None:
    assert [listed(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
    assert (counted(1, "unit"), counted(1200, "unit")) == ("1 unit", "1,200 units")
