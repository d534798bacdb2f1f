"""The analysis job on real handwritten digits, in this process: a model and a pair, from canonical folders."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from service.contract.analysis import AnalysisReport
from service.contract.analyze_spec import AnalyzeSpec
from service.contract.errors import Invalid
from service.contract.specs import DatasetDeclaration
from tests.integration.pipelines import DATASET, STUDENT, TEACHER, UPLOAD, canonical_digits, context_of, run
from tests.unit.training.blobs import Crash, Interrupting, Listening
from workers.evaluation.evaluation import evaluate
from workers.evaluation.quality import accuracy, output_information
from workers.formats.datasets import load_dataset, read_dataset
from workers.formats.models import load_model
from workers.job import JobReport
from workers.journal import Silent, Stopped
from workers.pipeline import stages_of

pytestmark = pytest.mark.usefixtures("one_thread")

UNLABELLED = "dat_" + 26 * "5"
CRITERIA = ["output_kl", {"name": "output_kl", "mode": "exact"}, "taylor", "l2", "activation_entropy"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("inputs")
    folders = canonical_digits(root)
    folders[UNLABELLED] = root / UNLABELLED
    folders[UNLABELLED].mkdir()
    np.savez(root / "data.npz", x=load_digits().images[:, None].astype(np.float32))
    declared = {"name": "digits", "files": {"data.npz": UPLOAD}, "transform": {"normalize": "auto"}}
    read_dataset(root, DatasetDeclaration.model_validate(declared), folders[UNLABELLED], max_bytes=2**30)
    return folders


def spec_of(*models: str, dataset: str = DATASET, **config: Any) -> AnalyzeSpec:
    config = {"calibration": {"examples": 200}, **config}
    body = {"type": "analyze", "models": models or [TEACHER], "dataset": dataset, "config": config, "seed": 3}
    return AnalyzeSpec.model_validate(body)


def analysed(spec: AnalyzeSpec, inputs: dict[str, Path], work_dir: Path, **changes: Any) -> AnalysisReport:
    result = run(context_of(spec, inputs, work_dir, **changes))
    assert isinstance(result, JobReport)
    json.dumps(result.report, allow_nan=False)  # as it is stored
    return AnalysisReport.model_validate(result.report)


def timeless(report: AnalysisReport) -> dict[str, Any]:
    """The report without what was measured by a clock."""
    plain = report.model_dump(mode="json", exclude={"stages"})
    for model in plain["models"]:
        del model["measures"]["latency"]
    if plain["comparison"] is not None:
        del plain["comparison"]["latency_ratio"]
    return plain


@pytest.fixture(scope="module")
def pair(inputs: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[AnalysisReport, Listening]:
    journal = Listening()
    spec = spec_of(TEACHER, STUDENT, criteria=CRITERIA)
    return analysed(spec, inputs, tmp_path_factory.mktemp("work"), journal=journal), journal


def test_the_outputs_are_measured_on_the_test_split(
    pair: tuple[AnalysisReport, Listening], inputs: dict[str, Path]
) -> None:
    report = pair[0]
    split = load_dataset(inputs[DATASET]).test
    assert split is not None
    logits, labels = evaluate({"it": load_model(inputs[TEACHER])}, split, torch.device("cpu"), 256, Silent())
    assert labels is not None
    measures = report.models[0].measures
    assert (report.split, report.examples) == ("test", len(split))
    assert measures.accuracy == accuracy(logits["it"], labels)
    assert measures.accuracy.value > 0.9
    for name, value in output_information(logits["it"]).items():
        assert getattr(measures, name) == pytest.approx(value, abs=1e-5)
    assert measures.calibration_error is not None
    assert measures.label_information is not None


def test_two_models_are_compared(pair: tuple[AnalysisReport, Listening]) -> None:
    report = pair[0]
    assert [model.model for model in report.models] == [TEACHER, STUDENT]
    assert report.comparison is not None
    assert report.comparison.mcnemar is not None
    assert report.comparison.macs_ratio == report.models[1].measures.macs / report.models[0].measures.macs
    assert report.by_input is not None
    assert report.by_class is not None


def test_every_group_and_every_unit_is_measured(pair: tuple[AnalysisReport, Listening]) -> None:
    model = pair[0].models[0]
    assert (model.groups, model.units) == (2, 192)
    assert model.layers is not None
    assert (model.layers.split, model.layers.examples) == ("train", 200)
    assert [group.name for group in model.layers.groups] == ["fc1", "fc2"]
    for group in model.layers.groups:
        assert group.entropy is not None
        assert group.entropy.values is not None
        assert len(group.entropy.values) == group.units
        assert group.label_information is not None
        assert group.label_information_chance is not None
        assert group.label_information.mean > 2 * group.label_information_chance, "it was trained on the labels"
        assert group.redundancy is not None
        assert group.redundancy.pairs is not None
        assert group.redundancy.pairs.mean > group.redundancy.pairs.chance
        for unit in group.dead_units:
            assert group.entropy.values[unit] == 0


def test_every_criterion_judges_every_unit_and_previews_pruning(pair: tuple[AnalysisReport, Listening]) -> None:
    for model in pair[0].models:
        assert [judged.criterion["name"] for judged in model.importance] == [
            "output_kl", "output_kl", "taylor", "l2", "activation_entropy"
        ]  # fmt: skip
        for judged in model.importance:
            assert judged.preview.reached
            assert judged.preview.macs <= 0.5 * model.measures.macs
            for group in judged.groups.values():
                assert group.scores is not None
                assert group.scores.values is not None
                assert None not in group.scores.values
        exact = model.importance[1]
        assert all(group.errors is not None and group.median_error for group in exact.groups.values())


def test_it_says_in_words_what_it_found(pair: tuple[AnalysisReport, Listening]) -> None:
    texts = [finding.text for finding in pair[0].findings]
    assert any("By taylor, pruning to 50% of the MACs would remove" in text for text in texts)
    assert any("McNemar" in text for text in texts)
    assert all(finding.numbers for finding in pair[0].findings)


def test_it_passes_through_its_stages(pair: tuple[AnalysisReport, Listening]) -> None:
    spec = spec_of(TEACHER, STUDENT)
    assert pair[1].stages == list(stages_of(spec))
    assert [stage.name for stage in pair[0].stages] == list(stages_of(spec))
    assert stages_of(spec_of(layers=False, criteria=[])) == ("loading", "outputs", "reporting")


def test_the_same_seed_gives_the_same_report(
    pair: tuple[AnalysisReport, Listening], inputs: dict[str, Path], tmp_path: Path
) -> None:
    again = analysed(spec_of(TEACHER, STUDENT, criteria=CRITERIA), inputs, tmp_path)
    assert timeless(again) == timeless(pair[0])


@pytest.mark.parametrize("kind", ["stop_at", "crash_at"])
def test_interrupted_anywhere_it_goes_on_and_says_the_same(
    pair: tuple[AnalysisReport, Listening], inputs: dict[str, Path], tmp_path: Path, kind: str
) -> None:
    spec = spec_of(TEACHER, STUDENT, criteria=CRITERIA)
    checkpoint: Path | None = None
    attempts, at = 0, 3
    while True:
        journal = Interrupting(**{kind: at})
        try:
            report = analysed(spec, inputs, tmp_path / str(attempts), journal=journal, checkpoint=checkpoint)
        except (Stopped, Crash):
            checkpoint = journal.checkpoints[-1][0] if journal.checkpoints else checkpoint
            attempts, at = attempts + 1, at + 3
        else:
            break
    assert attempts > 2
    assert timeless(report) == timeless(pair[0])


def test_what_is_in_the_checkpoint_is_not_done_again(
    inputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, journal = spec_of(TEACHER, STUDENT, criteria=["l2"]), Listening()
    whole = analysed(spec, inputs, tmp_path / "whole", journal=journal)
    assert [step for _, step in journal.checkpoints] == list(range(7)), "one for each piece of work"

    def again(*_: Any, **__: Any) -> None:
        raise AssertionError("done again")

    for name in ("evaluate", "measure_latency", "activities", "score"):
        monkeypatch.setattr(f"workers.analyze.{name}", again)
    resumed = analysed(spec, inputs, tmp_path / "resumed", checkpoint=journal.checkpoints[-1][0])
    assert resumed.model_copy(update={"stages": ()}) == whole.model_copy(update={"stages": ()})


def test_without_labels_it_says_what_can_be_said(inputs: dict[str, Path], tmp_path: Path) -> None:
    spec = spec_of(TEACHER, STUDENT, dataset=UNLABELLED, criteria=["output_kl"])
    report = analysed(spec, inputs, tmp_path / "a")
    model = report.models[0]
    assert (model.measures.accuracy, model.measures.label_information, report.by_class) == (None, None, None)
    assert report.comparison is not None
    assert report.comparison.mcnemar is None
    assert model.layers is not None
    assert all(group.label_information is None and group.entropy is not None for group in model.layers.groups)
    with pytest.raises(Invalid, match="taylor needs labels"):
        analysed(spec_of(dataset=UNLABELLED, criteria=["taylor"]), inputs, tmp_path / "b")


def test_what_is_not_asked_for_is_not_measured(inputs: dict[str, Path], tmp_path: Path) -> None:
    report = analysed(spec_of(layers=False, criteria=[], split="validation"), inputs, tmp_path)
    (model,) = report.models
    assert (model.layers, model.importance, report.comparison) == (None, (), None)
    assert report.split == "validation"


def test_a_model_whose_units_are_not_known_is_measured_from_outside(inputs: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    for file in inputs[TEACHER].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    described = json.loads((folder / "model.json").read_text())
    described["facts"] |= {"units": None, "notes": ["its units are not known, and it cannot be pruned: a reason"]}
    (folder / "model.json").write_text(json.dumps(described))
    report = analysed(spec_of(), {**inputs, TEACHER: folder}, tmp_path / "work")
    (model,) = report.models
    assert (model.groups, model.layers, model.importance) == (None, None, ())
    assert "a reason" in model.notes[0]
    assert model.measures.accuracy is not None
