"""Analyses as their users meet them: through HTTP and the command line, with real processes, on real digits."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from service.connection import ProblemError
from service.contract.analysis import AnalysisReport
from tests.acceptance.conftest import ARCHITECTURE, Stack
from tests.stillhouse_process import STILLHOUSE

Json = dict[str, Any]


def stillhouse(stack: Stack, *arguments: str) -> subprocess.CompletedProcess[str]:
    given = {"STILLHOUSE_URL": stack.url, "STILLHOUSE_API_KEY": stack.api_key, "COLUMNS": "250"}
    return subprocess.run(
        [*STILLHOUSE, *arguments], env=os.environ | given, capture_output=True, text=True, timeout=240, check=False
    )


@pytest.fixture(scope="module")
def other(stack: Stack, teacher_file: Path) -> str:
    """The id of a second model: the teacher once more."""
    made = stack.client.register_model("again", {"model.safetensors": teacher_file}, ARCHITECTURE)
    assert stack.client.wait_until_inspected(made["id"], timeout=180)["state"] == "ready"
    return str(made["id"])


@pytest.fixture(scope="module")
def done(stack: Stack, teacher: str, dataset: str) -> Json:
    """An analysis of the teacher by two criteria."""
    config = {"criteria": ["output_kl", {"name": "taylor"}], "calibration": {"examples": 128}}
    spec = {"type": "analyze", "models": [teacher], "dataset": dataset, "config": config}
    job = stack.client.wait(stack.client.submit(spec)["id"], timeout=240)
    assert (job["state"], job["error"]) == ("succeeded", None)
    return job


def test_it_makes_a_report_and_no_model(stack: Stack, done: Json, teacher: str, dataset: str) -> None:
    assert done["result"] == {"model_id": None, "report": f"/v1/jobs/{done['id']}/report"}
    report = AnalysisReport.model_validate(stack.client.report(done["id"]))
    (model,) = report.models
    assert (model.model, report.dataset, model.units) == (teacher, dataset, 64)
    assert model.measures.accuracy is not None
    assert model.measures.accuracy.value > 0.9
    assert [judged.criterion["name"] for judged in model.importance] == ["output_kl", "taylor"]
    assert all(lineage["lineage"] != {"job_id": done["id"]} for lineage in stack.client.models())
    stages = [event["data"]["name"] for event in stack.client.events(done["id"]) if event["kind"] == "stage"]
    assert stages == ["loading", "outputs", "layers", "importance", "reporting"]


def test_the_preview_is_what_a_pruning_at_once_does(stack: Stack, done: Json, teacher: str, dataset: str) -> None:
    preview = stack.client.report(done["id"])["models"][0]["importance"][0]
    config = {
        "target": {"macs": 0.5}, "schedule": {"name": "one_shot"}, "calibration": {"examples": 128}, "refit": None,
    }  # fmt: skip
    spec = {"type": "prune", "model": teacher, "dataset": dataset, "config": config}
    job = stack.client.wait(stack.client.submit(spec)["id"], timeout=240)
    (group,) = stack.client.report(job["id"])["pruning"]["groups"]
    assert group["units_before"] - group["units_after"] == preview["groups"]["fc1"]["removed"]
    assert stack.client.report(job["id"])["student"]["macs"] == preview["preview"]["macs"]


def test_the_command_line_analyses_a_pair_and_prints_a_table(
    stack: Stack, teacher: str, other: str, dataset: str
) -> None:
    ran = stillhouse(stack, "analyze", teacher, other, "--dataset", dataset, "--criterion", "l2", "--watch")
    assert ran.returncode == 0, ran.stderr
    job = ran.stdout.split()[0]
    assert f"{job} made a report and no model" in ran.stderr
    told = stillhouse(stack, "report", job)
    assert told.returncode == 0, told.stderr
    for text in (f"Inside {teacher}", "agreement with the first", "100.0%", "l2: ", "R² from the others"):
        assert text in told.stdout
    report = json.loads(stillhouse(stack, "report", job, "--json").stdout)
    assert report["comparison"]["kl_teacher_student"]["value"] == pytest.approx(0, abs=1e-9)
    assert "a report" in stillhouse(stack, "jobs").stdout


def test_there_is_nothing_to_pull(stack: Stack, done: Json, tmp_path: Path) -> None:
    ran = stillhouse(stack, "pull", done["id"], "--to", str(tmp_path / "nothing"))
    assert (ran.returncode, "has made no model" in ran.stderr) == (1, True)
    assert not (tmp_path / "nothing").exists()


def test_what_does_not_fit_is_refused(stack: Stack, teacher: str, dataset: str) -> None:
    spec = {"type": "analyze", "models": [teacher, teacher], "dataset": dataset}
    with pytest.raises(ProblemError, match="twice"):
        stack.client.submit(spec)
