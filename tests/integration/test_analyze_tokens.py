"""Analysing a network that reads tokens: its embeddings, heads and widths are units like any other."""

from pathlib import Path

from service.contract.analysis import AnalysisReport
from service.contract.analyze_spec import AnalyzeSpec
from tests.integration.pipelines import context_of, run
from tests.integration.test_distill_tokens import DATASET, SMALL, TEACHER, _one_thread, inputs  # noqa: F401  fixtures


def test_a_transformer_and_a_bag_of_words_are_analysed_side_by_side(
    inputs: dict[str, Path],  # noqa: F811  the fixture's value
    tmp_path: Path,
) -> None:
    config = {"criteria": ["output_kl", "l2"], "calibration": {"examples": 64}}
    body = {"type": "analyze", "models": [TEACHER, SMALL], "dataset": DATASET, "config": config}
    result = run(context_of(AnalyzeSpec.model_validate(body), inputs, tmp_path))
    report = AnalysisReport.model_validate(result.report)
    bert, bag = report.models
    assert bert.layers is not None
    assert {group.kind for group in bert.layers.groups} >= {"channels", "heads"}
    read = [group for group in bert.layers.groups if group.reader is not None]
    assert len(read) == len(bert.layers.groups)
    assert all(group.entropy is not None and group.redundancy is not None for group in read)
    assert bag.measures.parameters < bert.measures.parameters
    assert report.comparison is not None
    assert [len(model.importance) for model in report.models] == [2, 2]
