"""The command line's side of analyses: the command, and the table that is printed."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from service.tables_analysis import group_rows, print_analysis
from tests.unit.service.test_cli import Run, api, pushed, run, service  # noqa: F401  fixtures

VALUES = {"mean": 1.0, "quantiles": {"50": 1.25}, "lowest": [], "highest": [], "values": None}
SHARE = {"value": 0.9, "low": 0.8, "high": 0.95}
MEASURES = {
    "accuracy": SHARE, "nll": 0.1, "predictive_entropy": 0.2, "marginal_entropy": 2.3, "claimed_information": 2.1,
    "label_information": 2.0, "calibration_error": 0.01, "parameters": 1000, "macs": 2000, "bytes": 4000,
}  # fmt: skip
GROUP = {
    "name": "fc1", "units": 64, "dead": 3, "macs_per_unit": 74, "entropy": VALUES, "label_information": VALUES,
    "label_information_chance": 0.03, "redundancy": {"explained": VALUES, "chance": 0.2},
}  # fmt: skip
SILENT = GROUP | {"name": "fc9", "entropy": None, "label_information": None, "label_information_chance": None,
                  "redundancy": None}  # fmt: skip


def judged(name: str) -> dict[str, Any]:
    return {"criterion": {"name": name}, "groups": {"fc1": {"removed": 40}, "fc9": {"removed": 0}}}


def model(name: str, **changes: Any) -> dict[str, Any]:
    layers = {"split": "train", "examples": 512, "groups": [GROUP, SILENT]}
    parts = {"layers": layers, "importance": [judged("output_kl"), judged("l2")], "notes": []}
    return {"model": name, "measures": MEASURES, **parts, **changes}


def printed(report: dict[str, Any]) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123  closed with it
    print_analysis(console, report)
    console.file.close()
    return console.export_text()


def report(*models: dict[str, Any], comparison: Any = None) -> dict[str, Any]:
    return {
        "kind": "analysis", "split": "test", "examples": 361, "models": list(models), "comparison": comparison,
        "environment": {"device": "cpu", "threads": 2, "precision": "float32"},
        "findings": [{"text": "By output_kl, half would go.", "numbers": {}}],
    }  # fmt: skip


def test_one_model_is_printed_with_its_groups_and_findings() -> None:
    text = printed(report(model("mdl_1")))
    assert "361 examples of the test split" in text
    assert "Inside mdl_1, on 512 inputs of the train split" in text
    for part in ("90.0% [80.0, 95.0]", "1.2500 (0.2000)", "1.0000 (0.0300)", "output_kl: 40, l2: 40"):
        assert part in text
    assert "• By output_kl, half would go." in text
    assert "agreement" not in text


def test_a_pair_is_compared_with_the_second_in_its_own_column() -> None:
    compared = {
        "agreement": SHARE, "agreement_on_teacher_errors": None, "kl_teacher_student": SHARE,
        "kl_student_teacher": SHARE, "jensen_shannon": SHARE, "mcnemar": None,
    }  # fmt: skip
    text = printed(report(model("mdl_1"), model("mdl_2"), comparison=compared))
    for part in ("agreement with the first", "KL(first, second), nats", "KL(second, first), nats"):
        assert part in text
    assert "teacher" not in text


def test_what_was_not_measured_is_left_open() -> None:
    bare = model("mdl_1", layers=None)
    assert group_rows(bare)[0] == ["fc1", "", "", "", "", "", "", "output_kl: 40, l2: 40"]
    assert group_rows(model("mdl_1", layers=None, importance=[])) == []
    assert "its units are not known" in printed(report(model("m", layers=None, importance=[],
                                                             notes=["its units are not known"])))  # fmt: skip


@pytest.mark.usefixtures("service")
def test_an_analysis_is_submitted_from_options(run: Run, tmp_path: Path) -> None:  # noqa: F811  the fixture's value
    one, dataset = pushed(run, tmp_path)
    asked = ["--criterion", "l2", "--criterion", "output_kl", "--no-layers", "--examples", "64", "--seed", "3"]
    said = run("analyze", one, "--dataset", dataset, *asked)
    assert said.code == 0, said.err
    spec = json.loads(run("show", said.out.strip()).out)["spec"]
    assert (spec["type"], spec["models"], spec["seed"]) == ("analyze", [one], 3)
    config = spec["config"]
    assert [criterion["name"] for criterion in config["criteria"]] == ["l2", "output_kl"]
    assert (config["layers"], config["calibration"], config["split"]) == (False, {"examples": 64}, "test")


@pytest.mark.usefixtures("service")
def test_three_models_are_one_message(run: Run) -> None:  # noqa: F811
    said = run("analyze", "a", "b", "c", "--dataset", "d")
    assert (said.code, said.err.count("\n")) == (2, 1)
    assert "one model or two" in said.err
