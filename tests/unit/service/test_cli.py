"""The command line against a real API in this process; what needs workers is under acceptance."""

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from service import cli, embedded
from service.client import Client
from service.contract.database import Database
from service.contract.errors import Conflict
from service.contract.migrate import migrate
from service.contract.settings import Settings
from service.data_folder import exclusive
from service.keys import create_key
from service.tables import print_report
from service.watching import follow_in_lines, headline, latest

SPEC = {"type": "distill", "student": {"architecture": {"name": "mlp"}}}


@dataclass
class Said:
    """How a command ended."""

    code: int
    out: str
    err: str


Run = Callable[..., Said]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `stillhouse ARGUMENTS…` in this process."""
    for name in [name for name in os.environ if name.startswith("STILLHOUSE_")]:
        monkeypatch.delenv(name)

    def run(*arguments: str, stdin: str = "", **environ: str) -> Said:
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(sys, "argv", ["stillhouse", *arguments])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return Said(int(ended.value.code or 0), said.out, said.err)

    return run


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """A real API in a process of its own, without broker and workers; its URL and a key."""
    data = tmp_path_factory.mktemp("data")
    migrate(Settings(data_dir=data).database)
    database = Database(Settings(data_dir=data).database)
    with database.write() as session:
        key = create_key(session, "ann")
    database.close()
    with embedded.listen("127.0.0.1", 0) as listener:
        command = [sys.executable, "-m", "uvicorn", "--factory", "service.app:application"]
        with subprocess.Popen(
            [*command, "--fd", str(listener.fileno())],
            env=os.environ | {"STILLHOUSE_DATA_DIR": str(data)},
            pass_fds=[listener.fileno()],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as process:
            while not embedded.is_live(listener):
                assert process.poll() is None
            yield "http://{}:{}".format(*listener.getsockname()), key
            process.kill()


@pytest.fixture
def service(api: tuple[str, str], run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment in which commands find the API."""
    monkeypatch.setenv("STILLHOUSE_URL", api[0])
    monkeypatch.setenv("STILLHOUSE_API_KEY", api[1])


def pushed(run: Run, tmp_path: Path) -> tuple[str, str]:
    weights, digits = tmp_path / "net.safetensors", tmp_path / "digits.npz"
    weights.write_bytes(b"weights")
    digits.write_bytes(b"digits")
    options = ["--architecture", "mlp", "--option", "input_shape=[1,8,8]", "--option", "num_classes=10"]
    model = run("push", "model", str(weights), "--name", "net", *options, "--label", "team=vision", "--no-wait")
    dataset = run("push", "dataset", str(digits), "--name", "digits", "--validation", "0.2", "--no-wait")
    assert (model.code, dataset.code) == (0, 0), model.err + dataset.err
    return model.out.strip(), dataset.out.strip()


def test_help_starts_quickly_and_without_heavy_imports() -> None:
    code = (
        "import sys, service.cli; print([name for name in ('httpx', 'sqlalchemy', 'pydantic', 'celery', 'torch', "
        "'fastapi', 'rich.console') if name in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_push_registers_files_under_the_roles_that_their_endings_tell(service: None, run: Run, tmp_path: Path) -> None:
    model, dataset = pushed(run, tmp_path)
    shown = json.loads(run("show", model).out)
    assert [file["path"] for file in shown["files"]] == ["model.safetensors"]
    assert shown["architecture"]["options"]["input_shape"] == [1, 8, 8]
    assert shown["labels"] == {"team": "vision"}
    assert [file["path"] for file in json.loads(run("show", dataset).out)["files"]] == ["data.npz"]


def test_lists_show_what_is_there_and_filter_it(service: None, run: Run, tmp_path: Path) -> None:
    model, dataset = pushed(run, tmp_path)
    assert model in run("models").out
    assert model in run("models", "--label", "team=vision").out
    assert model not in run("models", "--label", "team=sound").out
    assert model not in run("models", "--state", "ready").out
    newest = run("datasets", "--json", "--limit", "1").out
    assert json.loads(newest)["id"] == dataset


def test_a_job_is_submitted_from_options_and_cancelled(service: None, run: Run, tmp_path: Path) -> None:
    model, dataset = pushed(run, tmp_path)
    options = ["--teacher", model, "--dataset", dataset, "--student", "mlp", "--option", "hidden=[4]"]
    job = run("submit", *options, "--temperature", "4", "--epochs", "3", "--lr", "0.01", "--control").out.strip()
    spec = json.loads(run("show", job).out)["spec"]
    assert spec["student"]["architecture"]["options"]["hidden"] == [4]
    assert spec["config"]["objective"]["temperature"] == 4
    assert spec["config"]["training"]["epochs"] == 3
    assert spec["config"]["training"]["optimizer"]["lr"] == 0.01
    assert spec["config"]["control"] is True
    assert "is cancelled" in run("cancel", job).err
    watched = run("watch", job)
    assert (watched.code, "cancelled" in watched.err) == (1, True)
    assert "attempt 2" in run("retry", job).err
    assert "has made no model" in run("pull", job, "--to", str(tmp_path / "out")).err


def test_a_job_is_submitted_from_a_file_and_from_stdin(service: None, run: Run, tmp_path: Path) -> None:
    model, dataset = pushed(run, tmp_path)
    text = json.dumps({**SPEC, "teacher": model, "dataset": dataset})
    (tmp_path / "job.json").write_text(text)
    first = run("submit", str(tmp_path / "job.json"), "--idempotency-key", "once").out.strip()
    again = run("submit", "-", "--idempotency-key", "once", stdin=text).out.strip()
    assert first.startswith("job_")
    assert again == first
    assert first in run("jobs").out


def test_a_job_that_is_refused_shows_what_was_wrong_and_where(service: None, run: Run, tmp_path: Path) -> None:
    model, dataset = pushed(run, tmp_path)
    spec = {**SPEC, "teacher": model, "dataset": dataset, "config": {"objective": {"temperature": 0}, "colour": 1}}
    said = run("submit", "-", stdin=json.dumps(spec))
    assert (said.code, said.out) == (1, "")
    assert "/config/objective/temperature" in said.err
    assert "/config/colour" in said.err
    assert "Traceback" not in said.err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["submit", "-"], "is not JSON"),
        (["submit", "missing.json"], "there is no file missing.json"),
        (["submit"], "give a FILE.json"),
        (["submit", "--teacher", "mdl_1"], "--dataset and --student"),
        (["push", "model", "missing.pt", "--name", "x"], "there is no file missing.pt"),
        (["push", "model", "missing.pt", "--name", "x", "--option", "depth"], "takes KEY=VALUE"),
        (["show", "xyz"], "ids begin with job_, mdl_ or dat_"),
    ],
)
def test_a_wrong_command_is_one_message_and_exit_code_2(
    run: Run, arguments: list[str], expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    said = run(*arguments, STILLHOUSE_API_KEY="sh_key")
    assert (said.code, said.out) == (2, "")
    assert expected in said.err
    assert said.err.count("\n") == 1


def test_without_a_key_the_message_says_where_to_get_one(run: Run) -> None:
    said = run("jobs")
    assert (said.code, "set STILLHOUSE_API_KEY" in said.err) == (2, True)


def test_a_service_that_does_not_answer_is_one_message(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.connection.FIRST_PAUSE", 0.0)
    said = run("jobs", STILLHOUSE_URL="http://127.0.0.1:1", STILLHOUSE_API_KEY="sh_key")
    assert (said.code, "is Stillhouse running there" in said.err) == (1, True)


def test_a_wrong_key_is_the_services_own_message(service: None, run: Run) -> None:
    said = run("jobs", STILLHOUSE_API_KEY="sh_wrong")
    assert (said.code, "stillhouse keys create" in said.err) == (1, True)


def test_keys_are_made_listed_and_revoked(run: Run, tmp_path: Path) -> None:
    key = run("keys", "create", "ann", "--scope", "read", "--data", str(tmp_path)).out.strip()
    assert key.startswith("sh_")
    listed = run("keys", "list", "--data", str(tmp_path)).out
    assert "ann" in listed
    assert key not in listed
    key_id = next(word for word in listed.split() if word.startswith("key_"))
    assert run("keys", "revoke", key_id, "--data", str(tmp_path)).code == 0
    assert "revoked" in run("keys", "list", "--data", str(tmp_path)).out


def test_keys_refuse_an_unknown_scope_and_a_folder_that_is_not_there(run: Run, tmp_path: Path) -> None:
    said = run("keys", "create", "ann", "--scope", "all", "--data", str(tmp_path))
    assert (said.code, "read, submit, admin" in said.err) == (2, True)
    said = run("keys", "list", "--data", str(tmp_path / "nowhere"))
    assert (said.code, "there is no data folder" in said.err) == (2, True)


def test_settings_are_listed_with_their_variables_and_secrets_are_masked(run: Run) -> None:
    said = run("settings", STILLHOUSE_LEASE_SECONDS="7", STILLHOUSE_DATABASE_URL="postgresql://u:secret@db/x")
    rows = {line.split()[0]: line for line in said.out.splitlines() if line.strip().startswith("STILLHOUSE_")}
    assert set(rows) == {f"STILLHOUSE_{name.upper()}" for name in Settings.model_fields}
    assert "7.0" in rows["STILLHOUSE_LEASE_SECONDS"]
    assert "30.0" in rows["STILLHOUSE_LEASE_SECONDS"]
    assert "secret" not in said.out
    assert "***" in rows["STILLHOUSE_DATABASE_URL"]


def test_a_wrong_setting_is_named_by_its_variable(run: Run) -> None:
    said = run("settings", STILLHOUSE_LEASE_SECONDS="soon")
    assert (said.code, said.err.startswith("stillhouse: STILLHOUSE_LEASE_SECONDS: ")) == (2, True)
    assert "'soon'" in said.err


def test_the_version_is_that_of_the_package(run: Run) -> None:
    assert run("version").out.strip()[0].isdigit()


def test_a_taken_port_is_one_message_and_exit_code_2(run: Run, tmp_path: Path) -> None:
    with embedded.listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        said = run("serve", "--data", str(tmp_path), "--port", str(port))
    assert said.code == 2
    assert f"cannot listen on 127.0.0.1 port {port}: another program uses it" in said.err


def test_a_folder_in_use_is_refused_with_the_number_of_its_process(run: Run, tmp_path: Path) -> None:
    with exclusive(tmp_path), pytest.raises(Conflict, match=f"process {os.getpid()}"), exclusive(tmp_path):
        pass
    with exclusive(tmp_path):
        said = run("serve", "--data", str(tmp_path), "--port", "0")
    assert (said.code, f"(process {os.getpid()})" in said.err) == (1, True)


def job(state: str, fraction: float, *, stage: str | None = "training", **members: Any) -> dict[str, Any]:
    return {
        "state": state,
        "done": state == "succeeded",
        "stage": {"name": stage, "index": 3, "total": 7} if stage else None,
        "progress": {"fraction": fraction, "eta_seconds": 65.4},
        **members,
    }


def test_without_a_terminal_a_job_is_followed_in_lines_worth_printing() -> None:
    out = io.StringIO()
    jobs = [job("queued", 0.0, stage=None, queue_position=2), *(job("running", n / 100) for n in range(100))]
    list(follow_in_lines(iter([*jobs, job("succeeded", 0.3)]), lambda _: "", Console(file=out, width=200)))
    lines = out.getvalue().splitlines()
    assert lines[0].split() == ["0%", "queued", "(place", "2)", "1:05", "left"]
    assert lines[1].split()[:4] == ["0%", "running:", "training", "(3/7)"]
    assert lines[-1].split() == ["100%", "succeeded"]
    assert len(lines) == 12


def test_a_waiting_job_says_why() -> None:
    assert headline(job("queued", 0, stage=None, reason="no worker has been seen yet")).endswith(
        "no worker has been seen yet"
    )


def test_the_latest_metrics_put_validation_first_and_leave_out_what_is_null() -> None:
    series = {"train/loss": [[1, 0.5], [2, 0.25]], "validation/accuracy": [[2, 0.875]], "x": [[2, None]], "y": []}
    assert latest(series, "training") == "validation/accuracy 0.875  train/loss 0.25"


def test_the_latest_metrics_are_those_of_the_stage_that_has_some() -> None:
    series = {"validation/accuracy": [[9, 0.875]], "control/validation/accuracy": [[1, 0.5]]}
    assert latest(series, "control") == "control/validation/accuracy 0.5"


INTERVAL = {"value": 0.5, "low": 0.4, "high": 0.6}
MEASURES = {
    "accuracy": INTERVAL, "nll": 0.1234, "predictive_entropy": 0.2, "claimed_information": 2.1,
    "label_information": 2.0, "calibration_error": None, "parameters": 78666, "macs": 9_600_000, "bytes": 320_000,
    "latency": [{"batch": 1, "median_seconds": 0.00125, "iqr_seconds": 0.0001}],
}  # fmt: skip
COMPARISON = {
    "agreement": INTERVAL, "agreement_on_teacher_errors": None, "kl_teacher_student": INTERVAL,
    "kl_student_teacher": INTERVAL, "jensen_shannon": INTERVAL, "mcnemar": {"b": 1, "c": 2, "p_value": 0.75},
}  # fmt: skip
REPORT = {
    "split": "test", "examples": 1000, "teacher": MEASURES, "student": MEASURES, "control": MEASURES,
    "comparison": COMPARISON, "control_comparison": COMPARISON, "selection": {"selected": "best", "epoch": 9},
    "environment": {"device": "cpu", "threads": 2, "precision": "float32"}, "findings": [{"text": "It is [small]."}],
}  # fmt: skip


def printed(report: dict[str, Any]) -> list[str]:
    out = io.StringIO()
    print_report(Console(file=out, width=400), report)
    return [" ".join(line.split()) for line in out.getvalue().splitlines()]


def test_a_report_is_a_table_with_intervals_units_and_the_findings_in_words() -> None:
    lines = printed(REPORT)
    assert "1000 examples of the test split teacher student control" in lines
    assert "accuracy" + " 50.0% [40.0, 60.0]" * 3 in lines
    assert "KL(teacher, it), nats" + " 0.5000 [0.4000, 0.6000]" * 2 in lines
    assert "parameters" + " 78,666" * 3 in lines
    assert "latency of a batch of 1, ms" + " 1.250 (IQR 0.100)" * 3 in lines
    assert "calibration error – – –" in lines
    assert lines[-1] == "• It is [small]."


def test_a_report_says_how_far_each_file_is_from_the_trained_model() -> None:
    file = {"file": "model.onnx", "tool": "onnxruntime.InferenceSession", "version": "1.27.0"}
    numbers = {"sha256": "ab", "examples": 64, "max_abs_difference": 2.9e-06, "tolerance": 0.0011}
    expected = (
        "model.onnx, opened by onnxruntime.InferenceSession 1.27.0, differs from the trained model by at most 2.9e-06 "
        "in its logits (tolerance 0.0011)."
    )
    assert expected in printed({**REPORT, "verification": [file | numbers]})


def test_a_report_without_a_control_has_no_column_for_it() -> None:
    lines = printed({**REPORT, "control": None, "control_comparison": None})
    assert "1000 examples of the test split teacher student" in lines
    assert "parameters" + " 78,666" * 2 in lines


GROUP = {"name": "conv1", "kind": "channels", "units_before": 64, "units_after": 16, "macs_per_unit": 5000}
STAGE = {"name": "refitting", "seconds": 4.0, "accuracy": 0.93, "kl": 0.125}


def test_a_report_on_pruning_has_a_column_for_each_control_and_rows_for_groups_and_stages() -> None:
    contender = {"measures": MEASURES, "comparison": COMPARISON}
    pruned = {"control": None, "selection": None, "controls": {"l2": contender, "random": contender}}
    lines = printed({**REPORT, **pruned, "pruning": {"groups": [GROUP]}, "stages": [STAGE, {**STAGE, "kl": None}]})
    assert "1000 examples of the test split teacher student l2 random" in lines
    assert "parameters" + " 78,666" * 4 in lines
    assert "KL(teacher, it), nats" + " 0.5000 [0.4000, 0.6000]" * 3 in lines
    assert "conv1 64 16 25.0% 5,000" in lines
    assert "refitting 4.0 93.0% 0.1250" in lines
    assert not any(line.startswith("The student is") for line in lines)


def answering(handler: Callable[[httpx.Request], httpx.Response]) -> Callable[[], Client]:
    return lambda: Client("http://stillhouse.test", "sh_key", transport=httpx.MockTransport(handler))


def test_a_report_is_printed_as_the_page_that_the_service_has(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    page = "<!DOCTYPE html>\n<p>KL(p‖q)</p>\n"

    def service(request: httpx.Request) -> httpx.Response:
        assert (request.url.path, request.headers["accept"]) == ("/v1/jobs/job_1/report", "text/html")
        return httpx.Response(200, content=page.encode(), headers={"Content-Type": "text/html; charset=utf-8"})

    monkeypatch.setattr("service.cli_jobs.connect", answering(service))
    said = run("report", "job_1", "--html")
    assert (said.code, said.out, said.err) == (0, page, "")


def test_a_report_has_one_form(run: Run) -> None:
    said = run("report", "job_1", "--html", "--json")
    assert (said.code, said.out) == (2, "")
    assert "exclude each other" in said.err
