"""Jobs made of options: what is asked for is what is sent, and what makes no job says what to do."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

from service import cli, cli_jobs
from service.cli_resources import MODEL_ROLES, existing
from service.terminal import Mistake

MODEL, DATASET = "mdl_" + 26 * "1", "dat_" + 26 * "2"
PRUNE = ["submit", "--model", MODEL, "--dataset", DATASET]
DISTILL = ["submit", "--teacher", MODEL, "--dataset", DATASET, "--student", "lenet5"]


class Service:
    """Takes the job down; stands in for the client."""

    sent: dict[str, Any]
    reachable = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def submit(self, spec: dict[str, Any], _key: str | None) -> dict[str, Any]:
        self.sent = spec
        return {"id": "job_1", "warnings": ["it is small"]}

    def validate(self, spec: dict[str, Any]) -> dict[str, Any]:
        self.sent = spec
        return {"valid": self.reachable, "reachable": self.reachable, "warnings": []}


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    found = Service()
    monkeypatch.setattr(cli_jobs, "connect", lambda: found)
    return found


Run = Callable[..., int]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run `stillhouse ARGUMENTS…` in this process; its exit code."""

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["stillhouse", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        return int(ended.value.code or 0)

    return run


def test_a_pruning_is_made_of_options(service: Service, run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--macs", "0.25", "--max-kl", "0.1", "--criterion", "l2", "--recover", "3", "--lr", "0.01"]
    assert run(*PRUNE, *options, "--temperature", "2", "--seed", "7", "--label", "team=vision") == 0
    recovery = {
        "objective": {"temperature": 2.0},
        "training": {"epochs": 3, "optimizer": {"name": "adamw", "lr": 0.01}},
    }
    assert service.sent == {
        "type": "prune",
        "model": MODEL,
        "dataset": DATASET,
        "seed": 7,
        "labels": {"team": "vision"},
        "config": {"target": {"macs": 0.25, "max_kl": 0.1}, "criterion": {"name": "l2"}, "recovery": recovery},
    }
    said = capsys.readouterr()
    assert (said.out, said.err) == ("job_1\n", "warning: it is small\n")


def test_what_is_not_asked_for_is_left_to_the_service(service: Service, run: Run) -> None:
    assert run(*PRUNE, "--bytes", "0.5") == 0
    assert service.sent["config"] == {"target": {"bytes": 0.5}}
    assert run(*DISTILL, "--alpha", "0", "--seed", "0") == 0
    assert service.sent["config"] == {"objective": {"alpha": 0.0}, "control": False}
    assert service.sent["seed"] == 0


def test_only_asking_prints_the_answer_and_fails_where_the_job_would_be_refused(
    service: Service, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*PRUNE, "--macs", "0.25", "--validate-only") == 0
    assert json.loads(capsys.readouterr().out)["reachable"] is True
    service.reachable = False
    assert run(*PRUNE, "--macs", "0.01", "--validate-only") == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (PRUNE, "say how small: --macs 0.25"),
        ([*PRUNE, "--macs", "0.25", "--epochs", "3"], "--epochs: not of a pruning"),
        ([*PRUNE, "--macs", "0.25", "--student", "mlp", "--control"], "--student, --control: not of a pruning"),
        ([*PRUNE, "--macs", "0.25", "--lr", "0.1"], "add --recover EPOCHS"),
        ([*DISTILL, "--macs", "0.25", "--criterion", "l2"], "--criterion, --macs: not of a distillation"),
        ([*PRUNE, "--teacher", MODEL, "--macs", "0.25"], "or --model, --dataset and a target"),
        (["submit", "--model", MODEL, "--macs", "0.25"], "or --model, --dataset and a target"),
    ],
)
def test_what_makes_no_job_is_one_message(
    service: Service, run: Run, capsys: pytest.CaptureFixture[str], arguments: list[str], expected: str
) -> None:
    assert run(*arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert expected in said.err
    assert said.err.count("\n") == 1


def test_a_file_of_another_model_is_pushed_by_its_id() -> None:
    step = f"{MODEL}/step-003.pt2"
    assert existing([Path(step)], MODEL_ROLES) == {"model.pt2": step}
    with pytest.raises(Mistake, match="there is no file mdl_1"):
        existing([Path("mdl_1/step-003.pt2")], MODEL_ROLES)
