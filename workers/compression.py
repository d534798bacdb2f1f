"""What all jobs that make a smaller network have in common: how they begin, and how they end.

loading      the canonical inputs become a dataset and networks
…            what the job does
evaluating   all models answer the held-out split, once, and are timed in alternation
exporting    the result becomes files
verifying    a fresh process loads the files and must compute what the result computes; report and card say so
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from service.contract.reports import Report, Selection
from service.contract.specs import Architecture
from workers.attempt import Attempt
from workers.evaluation.artifact import weights_size, write_artifact, write_models
from workers.evaluation.card import Inputs
from workers.evaluation.cost import measure_cost
from workers.evaluation.evaluation import evaluate
from workers.evaluation.findings import find
from workers.evaluation.latency import measure_latency
from workers.evaluation.plots import History
from workers.evaluation.report import build_report
from workers.evaluation.thumbnails import thumbnails
from workers.evaluation.verification import verify_models
from workers.formats.graph_models import graph_facts
from workers.formats.models import facts_of
from workers.graph.layer_graph import LayerGraph
from workers.job import JobResult, Spec_co
from workers.material import held_out
from workers.training.data import Dataset, Scaling

EVALUATION_BATCH = 256  # examples; a constant, since the last bits of sums depend on it
MAX_EXAMPLE_INPUTS = 64  # for timing, export and verification


class Compression(Attempt[Spec_co]):
    """One attempt at a job. Whoever derives from it sets `dataset`, `teacher`, `model` and what describes them."""

    dataset: Dataset
    teacher: nn.Module
    model: nn.Module  # the result
    architecture: Architecture | None = None  # of the result; None for a graph
    examples: Tensor  # some inputs of the held-out split, scaled, on the job's device
    scaling: Scaling | None  # of its inputs; None for token ids
    pictures: Mapping[int, bytes]  # of the inputs on which the result differs most from its teacher

    def evaluated(
        self,
        models: Mapping[str, nn.Module],
        architectures: Mapping[str, Architecture | None],
        *,
        other: nn.Module | None = None,
        selection: Selection | None = None,
        **more: Any,
    ) -> Report:
        """The report on "teacher", "student", and whatever stands beside them, all on the job's device.

        `other` is the student's epoch that was not chosen; `more` goes into the report as it is.
        """
        device = self.context.device
        name, split = held_out(self.dataset)
        others = {} if other is None else {"other": other}
        logits, labels = evaluate({**models, **others}, split, device, EVALUATION_BATCH, self.journal)
        self.examples, _ = split.batch(np.arange(min(len(split), MAX_EXAMPLE_INPUTS)), device)
        self.scaling = split.scaling
        report = build_report(
            job_id=self.context.job_id,
            split=name,
            logits=logits,
            labels=labels,
            costs={
                role: measure_cost(model, self.dataset.input_shape, dtype=self.examples.dtype)
                for role, model in models.items()
            },
            bytes_on_disk={role: weights_size(model, architectures.get(role)) for role, model in models.items()},
            latencies=measure_latency(models, self.examples, device=device),
            selection=selection,
            environment=self.environment(),
            stages=self.course.outcomes(),
            classes=self.classes(),
            **more,
        )
        different = () if report.by_input is None else report.by_input.most_different
        self.pictures = thumbnails(split, [each.row for each in different])
        return report

    def exported(self) -> tuple[Path, str | None]:
        """The folder with the result's files, and why there is none for ONNX, if so."""
        folder = self.context.work_dir / "artifact"
        without_onnx = write_models(
            folder, model=self.model, architecture=self.architecture, example_inputs=self.examples
        )
        if without_onnx is not None:
            self.journal.event("warning", {"text": f"the result has no model.onnx: {without_onnx}"})
        return folder, without_onnx

    def documented(
        self, folder: Path, report: Report, without_onnx: str | None, history: History, lineage: Mapping[str, str]
    ) -> Report:
        """Verify the files, and write beside them what is said of them; the report says how they were verified."""
        # Found again, since stages and verification may say more now than when the report was made.
        report = report.model_copy(update={"verification": verify_models(folder, self.model, self.examples)})
        report = report.model_copy(update={"findings": find(report)})
        dtype = str(self.examples.dtype).removeprefix("torch.")
        write_artifact(
            folder,
            report=report,
            without_onnx=without_onnx,
            architecture=self.architecture,
            inputs=Inputs(tuple(self.examples.shape[1:]), dtype, self.scaling),
            history=history,
            spec=self.spec,
            seed=self.context.seed,
            lineage={"job": self.context.job_id, **lineage},
            pictures=self.pictures,
        )
        return report

    def result(self, folder: Path, report: Report, name: str) -> JobResult:
        """What the record of the result says, as inspection would find it."""
        model = self.model.cpu()
        if self.architecture is None:
            assert isinstance(model, LayerGraph)  # noqa: S101  what has no architecture is a graph
            facts = graph_facts(model)
        else:
            facts = facts_of(self.architecture, model)
        return JobResult(
            folder=folder,
            name=name,
            declaration={
                "name": name,
                "architecture": None if self.architecture is None else self.architecture.model_dump(mode="json"),
                "labels": self.spec.labels,
            },
            facts=facts,
            report=report.model_dump(mode="json"),
        )
