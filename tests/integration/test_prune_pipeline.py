"""The pruning job on real handwritten digits, in this process: from canonical folders to a verified artifact."""

import json
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from service.contract.errors import Invalid
from service.contract.prune_spec import PruneSpec
from service.contract.reports import Report
from service.contract.specs import ModelDeclaration
from tests.integration.pipelines import DATASET, TEACHER, UPLOAD, context_of, run
from tests.unit.training.blobs import CPU, Crash, Interrupting, Listening, fingerprint
from workers.formats.datasets import load_dataset
from workers.formats.models import load_model, read_model
from workers.job import JobResult
from workers.journal import Stopped
from workers.pipeline import stages_of
from workers.training.checkpoint import load_checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


def spec_of(**config: Any) -> PruneSpec:
    config = {"target": {"macs": 0.25}, "calibration": {"examples": 256}, "refit": {"examples": 600}, **config}
    return PruneSpec.model_validate(
        {"type": "prune", "model": TEACHER, "dataset": DATASET, "config": config, "seed": 3}
    )


@pytest.fixture(scope="module")
def finished(
    inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> tuple[JobResult, Listening, PruneSpec]:
    recovery = {"training": {"epochs": 2, "batch_size": 64}}
    spec, journal = spec_of(recovery=recovery, controls=["random", "scratch"]), Listening()
    return run(context_of(spec, inputs, tmp_path_factory.mktemp("work"), journal=journal)), journal, spec


def test_the_network_meets_its_target_and_stays_close_to_its_teacher(
    finished: tuple[JobResult, Listening, PruneSpec],
) -> None:
    report = Report.model_validate(finished[0].report)
    assert report.teacher.accuracy is not None
    assert report.student.accuracy is not None
    assert report.comparison.macs_ratio <= 0.25
    assert report.comparison.macs_ratio > 0.24
    assert report.student.accuracy.value > report.teacher.accuracy.value - 0.03
    assert report.pruning is not None
    assert report.pruning.stopped_by == "target"
    assert sum(group.units_after for group in report.pruning.groups) < 100


def test_every_network_on_the_way_is_there_smaller_than_the_one_before(
    finished: tuple[JobResult, Listening, PruneSpec],
) -> None:
    result = finished[0]
    report = Report.model_validate(result.report)
    assert report.pruning is not None
    steps = report.pruning.steps
    assert len(steps) > 5
    assert [step.index for step in steps] == list(range(1, len(steps) + 1))
    assert all(after.macs < before.macs for before, after in pairwise(steps))
    assert steps[-1].macs == report.student.macs
    for step in steps:
        assert step.file is not None
        program = torch.export.load(result.folder / step.file)
        assert sum(tensor.numel() for tensor in program.state_dict.values()) == step.parameters


def test_the_last_network_on_the_way_is_the_one_before_its_recovery(
    finished: tuple[JobResult, Listening, PruneSpec],
) -> None:
    result = finished[0]
    steps = sorted(result.folder.glob("step-*.pt2"))
    last, recovered = (torch.export.load(path).state_dict for path in (steps[-1], result.folder / "model.pt2"))
    assert last.keys() == recovered.keys()
    assert not any(torch.equal(last[name], recovered[name]) for name in last)


def test_each_stage_says_what_it_bought(finished: tuple[JobResult, Listening, PruneSpec]) -> None:
    stages = {stage.name: stage for stage in Report.model_validate(finished[0].report).stages}
    kls = [stages[name].kl for name in ("loading", "removing", "refitting", "recovering")]
    assert all(kl is not None for kl in kls)
    loading, removing, refitting, _ = [float(kl or 0) for kl in kls]
    assert loading == pytest.approx(0, abs=1e-6)
    assert removing > 5 * refitting > 0
    assert set(finished[1].stages) == set(stages_of(finished[2]))


def test_controls_stand_beside_it_at_the_same_cost(finished: tuple[JobResult, Listening, PruneSpec]) -> None:
    report = Report.model_validate(finished[0].report)
    assert list(report.controls) == ["random", "scratch"]
    for control in report.controls.values():
        assert control.measures.macs <= report.student.macs
        assert control.measures.macs > 0.95 * report.student.macs
    assert report.comparison.kl_teacher_student.value < report.controls["scratch"].comparison.kl_teacher_student.value


def test_the_findings_say_what_stages_bought_and_which_control_does_as_well(
    finished: tuple[JobResult, Listening, PruneSpec],
) -> None:
    report = Report.model_validate(finished[0].report)
    (bought,) = [finding for finding in report.findings if finding.text.startswith("What each stage bought")]
    stages = {stage.name: stage for stage in report.stages}
    assert bought.numbers["refitting_kl"] == stages["refitting"].kl
    advantage = report.controls["scratch"].advantage
    assert advantage is not None
    assert advantage.kl_difference.high < 0
    assert [finding for finding in report.findings if finding.text.startswith("Beside the control scratch")]


def test_the_page_and_the_card_show_what_was_removed(finished: tuple[JobResult, Listening, PruneSpec]) -> None:
    folder = finished[0].folder
    page, card = (folder / "report.html").read_text(), (folder / "README.md").read_text()
    assert (folder / "pruning.svg").read_bytes().startswith(b"<?xml")
    assert card.startswith("# Pruned network\n")
    assert "| `fc1` | channels | 128 |" in card
    assert all(text in page for text in ("What was removed", "step-001.pt2", "scratch"))


def test_the_artifact_verifies_and_is_a_model_like_any_other(
    finished: tuple[JobResult, Listening, PruneSpec], inputs: dict[str, Path], tmp_path: Path
) -> None:
    result = finished[0]
    manifest = json.loads((result.folder / "manifest.json").read_text())
    assert [file["file"] for file in manifest["verification"]] == ["model.pt2", "model.safetensors", "model.onnx"]
    out = tmp_path / "canonical"
    out.mkdir()
    declared = {"name": "smaller", "files": {"model.pt2": UPLOAD}}
    facts = read_model(result.folder, ModelDeclaration.model_validate(declared), out)
    assert facts["macs"] == result.facts["macs"]
    assert facts["units"] == result.facts["units"]
    again = run(context_of(spec_of(target={"macs": 0.5}), {**inputs, TEACHER: out}, tmp_path / "work"))
    assert again.facts["macs"] <= 0.5 * facts["macs"]


@pytest.mark.parametrize(
    "config",
    [
        {"criterion": {"name": "l2"}, "schedule": {"name": "one_shot"}, "refit": None},
        {"criterion": {"mode": "exact", "ablation": "mean"}, "schedule": {"name": "iterative", "step": 0.4}},
        {"criterion": {"mode": "screened"}, "schedule": {"step": 0.4}, "allocation": "best"},
        {"criterion": {"name": "information_drop"}, "schedule": {"step": 0.5}},
        {"criterion": {"name": "output_entropy"}, "schedule": {"name": "one_shot"}, "refit": None, "fold_means": False},
        {"criterion": {"name": "activation_entropy"}, "schedule": {"step": 0.5}},
        {"criterion": {"name": "label_information"}, "schedule": {"step": 0.5}},
        {"criterion": {"name": "information_bottleneck", "epochs": 5}, "schedule": {"step": 0.5}},
        {"criterion": {"name": "taylor"}, "schedule": {"step": 0.4}, "allocation": "global", "round_to": 8},
        {"target": {"params": 0.3}, "criterion": {"name": "loss_delta"}, "allocation": "per_parameter"},
        {
            "target": {"bytes": {"absolute": 20_000}},
            "allocation": "per_byte",
            "criterion": {"name": "output_kl_fisher"},
        },
    ],
)
def test_every_criterion_and_schedule_goes_the_whole_way(
    inputs: dict[str, Path], tmp_path: Path, config: dict[str, Any]
) -> None:
    journal = UntilEvaluation()
    states = prune_all(spec_of(**config), inputs, tmp_path / "work", journal)
    assert states["reason"] == "target"
    warnings = [data["text"] for kind, data in journal.events if kind == "warning"]
    literal = config.get("criterion", {}).get("name") == "output_entropy"
    assert any("useful units come out negative" in text for text in warnings) == literal


def test_folded_means_are_better_than_nothing_and_do_not_add_up(inputs: dict[str, Path], tmp_path: Path) -> None:
    found = {
        (schedule, fold): prune_all(
            spec_of(
                target={"macs": 0.7},
                criterion={"ablation": "mean"},
                schedule={"name": schedule},
                refit=None,
                fold_means=fold,
            ),
            inputs,
            tmp_path / f"{schedule}-{fold}",
            UntilEvaluation(),
        )["steps"]
        for schedule in ("one_shot", "interleaved")
        for fold in (True, False)
    }
    for schedule in ("one_shot", "interleaved"):
        assert found[schedule, True][-1]["kl"] < 0.8 * found[schedule, False][-1]["kl"]


def test_a_limit_stops_the_search_at_the_last_network_that_holds(inputs: dict[str, Path], tmp_path: Path) -> None:
    target = {"max_accuracy_drop": 0.02, "max_kl": 0.1}
    states = prune_all(spec_of(target=target), inputs, tmp_path / "work", UntilEvaluation())
    assert states["reason"] in ("limit", "floor")
    whole, steps = states["whole"], states["steps"]
    assert steps
    assert all(step["kl"] <= 0.1 and whole["accuracy"] - step["accuracy"] <= 0.02 + 1e-9 for step in steps)


def test_a_target_below_the_floor_is_told_before_anything_is_removed(inputs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(Invalid, match="cannot be reached"):
        run(context_of(spec_of(target={"macs": 0.0001}), inputs, tmp_path / "work"))


def test_unlabelled_data_are_enough(inputs: dict[str, Path], tmp_path: Path) -> None:
    folder = inputs[DATASET]
    assert load_dataset(folder).train is not None
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in folder.iterdir():
        if not path.name.startswith("y"):
            (bare / path.name).write_bytes(path.read_bytes())
    described = json.loads((bare / "dataset.json").read_text())
    described["facts"]["labelled"] = False
    (bare / "dataset.json").write_text(json.dumps(described))
    with_labels = prune_all(spec_of(schedule={"step": 0.4}), inputs, tmp_path / "a", UntilEvaluation())
    without = prune_all(spec_of(schedule={"step": 0.4}), {**inputs, DATASET: bare}, tmp_path / "b", UntilEvaluation())
    assert fingerprint(with_labels["pruned"]["tensors"]) == fingerprint(without["pruned"]["tensors"])


# Resuming -------------------------------------------------------------------------------------------------------------


@dataclass
class UntilEvaluation(Interrupting):
    """Ends the process when the network is made; it is in the last checkpoint."""

    def stage(self, name: str) -> None:
        super().stage(name)
        if name == "exporting":
            raise Crash


def prune_all(spec: PruneSpec, inputs: dict[str, Path], work_dir: Path, journal: UntilEvaluation) -> dict[str, Any]:
    """Run the job up to its export; return what the pruning left behind."""
    with pytest.raises(Crash):
        run(context_of(spec, inputs, work_dir, journal=journal))
    found: dict[str, Any] = load_checkpoint(journal.checkpoints[-1][0])["finished"]["pruned"]
    return found


@pytest.mark.parametrize("after", [3, 17, 40, 77, 100])
def test_resumed_anywhere_it_ends_with_the_same_bits(inputs: dict[str, Path], tmp_path: Path, after: int) -> None:
    spec = spec_of(schedule={"step": 0.4}, criterion={"mode": "exact", "ablation": "mean"})
    plain = prune_all(spec, inputs, tmp_path / "plain", UntilEvaluation())
    journal = Interrupting(stop_at=after)
    with pytest.raises(Stopped):
        run(context_of(spec, inputs, tmp_path / "first", journal=journal))
    assert journal.checkpoints
    checkpoint = journal.checkpoints[-1][0]
    again = UntilEvaluation()
    with pytest.raises(Crash):
        run(context_of(spec, inputs, tmp_path / "second", journal=again, checkpoint=checkpoint))
    last = again.checkpoints[-1][0] if again.checkpoints else checkpoint  # nothing was left to prune
    resumed = load_checkpoint(last)["finished"]["pruned"]
    assert fingerprint(resumed["pruned"]["tensors"]) == fingerprint(plain["pruned"]["tensors"])
    assert list(resumed["on_the_way"]) == list(plain["on_the_way"])
    assert [step["kl"] for step in resumed["steps"]] == [step["kl"] for step in plain["steps"]]


def test_the_result_loads_with_its_own_weights(finished: tuple[JobResult, Listening, PruneSpec]) -> None:
    network = load_model(finished[0].folder)
    assert sum(weight.numel() for weight in network.parameters()) == finished[0].facts["parameters"]
    assert network(torch.zeros(3, 1, 8, 8, device=CPU)).shape == (3, 10)
