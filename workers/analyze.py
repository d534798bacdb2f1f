"""The analysis job: a model, or two, measured from the outside and the inside, and nothing made of them.

    loading      the canonical inputs become a dataset and networks, whose units are found
    outputs      each model answers the split once, and is timed
    comparing    of two models: how far they are apart
    layers       what the units of every group say: entropy, label information, redundancy
    importance   what each criterion says of every unit
    reporting    the measures, what pruning would do by them, and both in words

What a stage found is kept in the checkpoint, model by model and criterion by criterion: an attempt that is
interrupted is taken up after the last of them.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor, nn

from service.contract import compatibility
from service.contract.analysis import AnalysisReport, ModelAnalysis
from service.contract.analyze_spec import AnalyzeSpec
from service.contract.criteria import CriterionOptions
from service.contract.errors import Invalid
from service.contract.reports import ByClass, ByInput, Comparison, Measures
from service.contract.specs import Architecture
from workers.analysis.activity import Activity, activities
from workers.analysis.findings import find
from workers.analysis.importance import importance, prospect
from workers.analysis.layers import layers
from workers.analysis.listing import Room
from workers.attempt import Attempt
from workers.compression import EVALUATION_BATCH, MAX_EXAMPLE_INPUTS
from workers.evaluation.artifact import weights_size
from workers.evaluation.by_class import by_class
from workers.evaluation.by_input import by_input
from workers.evaluation.comparison import compare
from workers.evaluation.cost import measure_cost
from workers.evaluation.evaluation import evaluate
from workers.evaluation.latency import measure_latency
from workers.evaluation.report import measure, ratios
from workers.evaluation.uncertainty import measure_intervals
from workers.formats.datasets import load_dataset
from workers.formats.models import load_architecture, load_as_graph, load_model
from workers.graph.groups import Groups, find_groups
from workers.graph.layer_graph import LayerGraph
from workers.job import JobContext, JobReport
from workers.material import recorded_facts
from workers.pruning.calibration import Calibration, drawn
from workers.pruning.criteria.criteria import score
from workers.pruning.reads import find_reads
from workers.pruning.schedule.account import CostLayout
from workers.pruning.scores import Scores
from workers.training.data import Dataset, Split
from workers.training.determinism import deterministic

MEMORY_BYTES = 2**30  # for intermediate values of measures and scores


def stages_of(spec: AnalyzeSpec) -> tuple[str, ...]:
    """The names of the stages, in order."""
    config = spec.config
    comparing = ("comparing",) if len(spec.models) > 1 else ()
    inside = ("layers",) if config.layers else ()
    judging = ("importance",) if config.criteria else ()
    return ("loading", "outputs", *comparing, *inside, *judging, "reporting")


def analyze(context: JobContext[AnalyzeSpec]) -> JobReport:
    """Measure what a model, or two, say and hold."""
    with deterministic(context.device):
        return Analysis(context).run()


@dataclass(frozen=True)
class Subject:
    """One model under analysis."""

    model: nn.Module  # on the job's device
    architecture: Architecture | None
    groups: Groups | None  # None where its units are not known
    notes: tuple[str, ...] = ()

    @property
    def graph(self) -> tuple[LayerGraph, Groups] | None:
        """The network and its groups, where it has any that are known."""
        if not self.groups:
            return None
        assert isinstance(self.model, LayerGraph)  # noqa: S101  groups are those of a graph
        return self.model, self.groups


Part = TypeVar("Part", bound=BaseModel)
Answers = tuple[dict[str, Tensor], Tensor | None]


class Analysis(Attempt[AnalyzeSpec]):
    """One attempt at an analysis."""

    answers: Answers | None = None  # of the models on the split, as long as they are needed
    num_pieces = 0  # of work, that are complete

    def run(self) -> JobReport:
        """Pass through all stages."""
        with self.course.stage("loading"):
            self._load()
        with self.course.stage("outputs"):
            found = self._piece("outputs", self._outputs)
            self.measures = {name: Measures.model_validate(plain) for name, plain in found.items()}
        pair: dict[str, Any] = {}
        if len(self.subjects) > 1:
            with self.course.stage("comparing"):
                pair = self._piece("comparing", self._compared)
        self.answers = None
        inside = self._layers()
        judged = self._importance()
        with self.course.stage("reporting"):
            report = self._report(pair, inside, judged)
        return JobReport(report.model_dump(mode="json"))

    # Loading -------------------------------------------------------------------------------------------------------

    def _load(self) -> None:
        spec, inputs = self.spec, self.context.inputs
        folders = [inputs[model] for model in spec.models]
        facts = [recorded_facts(folder) for folder in folders]
        compatibility.check_analysis(facts, recorded_facts(inputs[spec.dataset]), spec)
        self.dataset: Dataset = load_dataset(inputs[spec.dataset])
        splits: dict[str, Split | None] = {
            "train": self.dataset.train, "validation": self.dataset.validation, "test": self.dataset.test
        }  # fmt: skip
        split = splits[spec.config.split]
        if split is None:
            raise Invalid(f"/config/split: the dataset's {spec.config.split} split is empty")
        self.split: Split = split
        # What pruning would be judged on, where there is such a split.
        self.calibrated_on = spec.config.split if self.dataset.train is None else "train"
        source = split if self.dataset.train is None else self.dataset.train
        self.calibration: Calibration = drawn(source, spec.config.calibration.examples, spec.seed, self.context.device)
        self.subjects = {
            name: self._subject(folder, found) for name, folder, found in zip(spec.models, folders, facts, strict=True)
        }

    def _subject(self, folder: Path, facts: Mapping[str, Any]) -> Subject:
        device, architecture = self.context.device, load_architecture(folder)
        wanted = self.spec.config.layers or self.spec.config.criteria
        if wanted and facts.get("units", ()) is not None:
            graph = load_as_graph(folder).to(device)
            groups = find_groups(graph)
            return Subject(graph, architecture, groups, () if groups else ("it has no units that can be removed",))
        notes = tuple(facts.get("notes") or ("its units are not known",)) if wanted else ()
        for note in notes:
            self.journal.event("warning", {"text": note})
        return Subject(load_model(folder).to(device), architecture, None, notes)

    # Outside -------------------------------------------------------------------------------------------------------

    def _answers(self) -> Answers:
        """Logits (n, K) of each model on the split, and its labels."""
        if self.answers is None:
            models = {name: subject.model for name, subject in self.subjects.items()}
            self.answers = evaluate(models, self.split, self.context.device, EVALUATION_BATCH, self.journal)
        return self.answers

    def _piece(self, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What a piece of work left behind, as plain data: from the checkpoint, or made now and kept there."""
        done = self.course.recall(name)
        self.num_pieces += 1
        if done is None:
            done = make()
            self.course.remember(name, done, self.num_pieces)
        return done

    def _outputs(self) -> dict[str, Any]:
        """Model -> its measures."""
        logits, labels = self._answers()
        device = self.context.device
        examples, _ = self.split.batch(np.arange(min(len(self.split), MAX_EXAMPLE_INPUTS)), device)
        models = {name: subject.model for name, subject in self.subjects.items()}
        latencies = measure_latency(models, examples, device=device)
        intervals = measure_intervals(logits, labels)
        return {
            name: measure(
                logits[name],
                labels,
                measure_cost(subject.model, self.dataset.input_shape, dtype=examples.dtype),
                weights_size(subject.model, subject.architecture),
                latencies[name],
                intervals[name],
            ).model_dump(mode="json")
            for name, subject in self.subjects.items()
        }

    def _compared(self) -> dict[str, Any]:
        """The fields of the report on two models; by_class is null without labels."""
        logits, labels = self._answers()
        (first, one), (second, other) = logits.items()
        classes = self.classes()
        saved = ratios(self.measures[second], self.measures[first])
        by_label = None if labels is None else by_class(one, other, labels, classes)
        return {
            "comparison": compare(one, other, labels, ratios=saved).model_dump(mode="json"),
            "by_class": None if by_label is None else by_label.model_dump(mode="json"),
            "by_input": by_input(one, other, labels, classes).model_dump(mode="json"),
        }

    # Inside --------------------------------------------------------------------------------------------------------

    def _layers(self) -> dict[str, dict[str, Activity]]:
        """Model -> group -> what its units say."""
        if not self.spec.config.layers:
            return {}
        with self.course.stage("layers"):
            found = {
                name: self._piece(f"layers {name}", partial(self._activities, *subject.graph))
                for name, subject in self.subjects.items()
                if subject.graph
            }
        return {
            name: {group: Activity.from_plain(plain) for group, plain in groups.items()}
            for name, groups in found.items()
        }

    def _activities(self, network: LayerGraph, groups: Groups) -> dict[str, Any]:
        found = activities(
            network,
            groups,
            find_reads(groups),
            self.calibration,
            bins=self.spec.config.bins,
            seed=self.spec.seed,
            memory_bytes=MEMORY_BYTES,
            journal=self.journal,
        )
        return {group: dataclasses.asdict(activity) for group, activity in found.items()}

    def _importance(self) -> dict[str, tuple[Scores, ...]]:
        """Model -> the scores of its units, by each criterion that was asked for."""
        criteria = self.spec.config.criteria
        if not criteria:
            return {}
        with self.course.stage("importance"):
            return {
                name: tuple(
                    Scores(
                        **self._piece(
                            f"importance {name} {place}",
                            partial(self._scores, *subject.graph, criterion, self._reference(subject, criterion)),
                        )
                    )
                    for place, criterion in enumerate(criteria)
                )
                for name, subject in self.subjects.items()
                if subject.graph
            }

    @torch.no_grad()
    def _reference(self, subject: Subject, criterion: CriterionOptions) -> Tensor | None:
        """The first model's logits on the calibration inputs, (N, K), where the second is judged by them."""
        first = next(iter(self.subjects.values()))
        if subject is first or getattr(criterion, "reference", None) != "teacher":
            return None
        batches = self.calibration.batches(EVALUATION_BATCH)
        return torch.cat([first.model(batch.x) for batch in batches])

    def _scores(
        self, network: LayerGraph, groups: Groups, criterion: CriterionOptions, reference: Tensor | None
    ) -> dict[str, Any]:
        found = score(
            network,
            groups,
            find_reads(groups),
            self.calibration,
            criterion,
            reference=reference,
            seed=self.spec.seed,
            memory_bytes=MEMORY_BYTES,
            journal=self.journal,
        )
        for note in found.notes:
            self.journal.event("warning", {"text": note})
        return dataclasses.asdict(found)

    # The end -------------------------------------------------------------------------------------------------------

    def _report(
        self,
        pair: Mapping[str, Any],
        inside: Mapping[str, Mapping[str, Activity]],
        judged: Mapping[str, tuple[Scores, ...]],
    ) -> AnalysisReport:
        room = Room()
        comparison = optional(Comparison, pair.get("comparison"))
        models = tuple(
            self._model(name, subject, inside.get(name), judged.get(name, ()), room)
            for name, subject in self.subjects.items()
        )
        return AnalysisReport(
            job=self.context.job_id,
            dataset=self.spec.dataset,
            split=self.spec.config.split,
            examples=len(self.split),
            models=models,
            environment=self.environment(),
            stages=self.course.outcomes(),
            findings=find(models, comparison),
            comparison=comparison,
            by_class=optional(ByClass, pair.get("by_class")),
            by_input=optional(ByInput, pair.get("by_input")),
        )

    def _model(
        self,
        name: str,
        subject: Subject,
        inside: Mapping[str, Activity] | None,
        judged: tuple[Scores, ...],
        room: Room,
    ) -> ModelAnalysis:
        groups, config = subject.groups, self.spec.config
        if not groups:
            counts = {} if groups is None else {"groups": 0, "units": 0}
            return ModelAnalysis(model=name, measures=self.measures[name], notes=subject.notes, **counts)
        layout = CostLayout(groups)
        return ModelAnalysis(
            model=name,
            measures=self.measures[name],
            groups=len(groups),
            units=sum(group.num_units for group in groups.values()),
            layers=None
            if inside is None
            else layers(
                groups,
                inside,
                split=self.calibrated_on,
                examples=len(self.calibration),
                bins=config.bins,
                room=room,
            ),
            importance=tuple(
                importance(criterion, groups, scores, prospect(groups, layout, scores), room)
                for criterion, scores in zip(config.criteria, judged, strict=True)
            ),
            notes=subject.notes,
        )


def optional(kind: type[Part], plain: Any) -> Part | None:
    """A part of the report from plain data, where there is one."""
    return None if plain is None else kind.model_validate(plain)
