"""Distilling networks that read tokens: a Hugging Face folder teaches a `.pt2` network, and another folder."""

import shutil
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from service.contract.reports import Report
from service.contract.specs import DatasetDeclaration, DistillSpec, ModelDeclaration
from tests.unit.formats.declared import UPLOAD
from tests.unit.formats.transformers_folders import VOCABULARY, declared, network_of, save
from tests.unit.training.blobs import CPU, Listening
from workers.formats.datasets import read_dataset
from workers.formats.models import read_model
from workers.job import JobContext, JobResult
from workers.pipeline import PIPELINES

TEACHER, SMALL, FOLDER, DATASET = ("mdl_" + 26 * "1", "mdl_" + 26 * "2", "mdl_" + 26 * "3", "dat_" + 26 * "4")
LENGTH = 12
DECLARED = ModelDeclaration.model_validate({"name": "m", "files": {"model.pt2": UPLOAD}})
DISTILBERT = "DistilBertForSequenceClassification"


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own
        yield
    torch.set_num_threads(before)


class Bag(nn.Module):
    """The mean of embeddings, classified."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.head = nn.Embedding(VOCABULARY, 8, padding_idx=0), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        there = (ids != 0).float().unsqueeze(-1)
        logits: Tensor = self.head((self.words(ids) * there).sum(1) / there.sum(1).clamp(min=1.0))
        return logits


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Canonical folders of a BERT, of two students and of sequences that end in padding."""
    root = tmp_path_factory.mktemp("inputs")
    folders = {name: root / name for name in (TEACHER, SMALL, FOLDER, DATASET)}
    for folder in folders.values():
        folder.mkdir()
    bert = network_of("BertForSequenceClassification", hidden_size=32)
    read_model(save(bert, root / "bert"), declared(), folders[TEACHER])
    read_model(save(network_of(DISTILBERT, n_layers=1), root / "distilbert"), declared(), folders[FOLDER])
    sizes = {0: Dim("batch"), 1: Dim("tokens", max=64)}
    program = torch.export.export(Bag(), (torch.ones(2, LENGTH, dtype=torch.int64),), dynamic_shapes=(sizes,))
    torch.export.save(program, root / "model.pt2")
    read_model(root, DECLARED, folders[SMALL])
    rng = np.random.default_rng(0)
    x = rng.integers(2, VOCABULARY, (400, LENGTH))
    x[np.arange(LENGTH) >= rng.integers(4, LENGTH + 1, (400, 1))] = 0
    np.savez(root / "data.npz", x=x, y=np.arange(400) % 3)
    dataset = DatasetDeclaration.model_validate({"name": "text", "files": {"data.npz": UPLOAD}})
    read_dataset(root, dataset, folders[DATASET], max_bytes=2**30)
    return folders


def run(inputs: dict[str, Path], work_dir: Path, student: dict[str, Any]) -> JobResult:
    training = {"epochs": 4, "batch_size": 32, "optimizer": {"name": "adamw", "lr": 0.01}}
    spec = DistillSpec.model_validate(
        {
            "type": "distill", "teacher": TEACHER, "dataset": DATASET, "student": student, "seed": 3,
            "config": {"objective": {"alpha": 0.0}, "training": training},
        }
    )  # fmt: skip
    work_dir.mkdir()
    context = JobContext(
        job_id="job_" + 26 * "5", spec=spec, inputs=inputs, work_dir=work_dir, seed=spec.seed, device=CPU,
        num_threads=1, checkpoint=None, journal=Listening(),
    )  # fmt: skip
    result: JobResult = PIPELINES[spec.type](context)
    points = [values["validation/kl"] for _, values in context.journal.metric_points if "validation/kl" in values]  # type: ignore[attr-defined]
    assert points[-1] < 0.8 * points[0]  # it has learnt from its teacher
    return result


@pytest.mark.parametrize("student", [{"model": SMALL}, {"model": FOLDER, "reset": True}])
def test_a_folder_teaches_a_smaller_network_of_tokens(
    inputs: dict[str, Path], tmp_path: Path, student: dict[str, Any]
) -> None:
    result = run(inputs, tmp_path / "work", student)
    report = Report.model_validate(result.report)
    assert report.student.parameters < report.teacher.parameters
    assert report.student.macs < report.teacher.macs
    assert {file.file for file in report.verification or ()} == {"model.pt2", "model.safetensors", "model.onnx"}
    assert result.facts["inputs"][0] == {**result.facts["inputs"][0], "shape": ["batch", "tokens"], "dtype": "int64"}
    assert result.facts["vocabulary"] == VOCABULARY
    again = tmp_path / "again"
    again.mkdir()
    assert read_model(result.folder, DECLARED, again)["inputs"] == result.facts["inputs"]
    card = (result.folder / "README.md").read_text()
    assert "int64" in card


def test_what_a_folder_s_network_learnt_loads_into_its_class(inputs: dict[str, Path], tmp_path: Path) -> None:
    result = run(inputs, tmp_path / "work", {"model": FOLDER})
    original = network_of(DISTILBERT, n_layers=1)
    folder = save(original, tmp_path / "distilbert")
    shutil.copy(result.folder / "model.safetensors", folder / "model.safetensors")
    trained = type(original).from_pretrained(folder, local_files_only=True).eval()  # type: ignore[attr-defined]
    program = torch.export.load(result.folder / "model.pt2").module()
    x = torch.randint(2, VOCABULARY, (5, 9), generator=torch.Generator().manual_seed(0))
    x[1, 4:] = 0
    with torch.no_grad():
        expected = trained(input_ids=x, attention_mask=(x != 0).long()).logits
        torch.testing.assert_close(program(x), expected, rtol=1e-4, atol=1e-5)
