from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from service.contract.analyze_spec import AnalyzeSpec
from service.contract.compatibility import check_analysis
from service.contract.criteria import CRITERIA
from service.contract.errors import Invalid
from service.contract.job_spec import JOB_TYPES, JobSpec
from tests.unit.service.contract.test_compatibility import DATASET, TEACHER

ONE, OTHER, DIGITS = "mdl_" + 26 * "1", "mdl_" + 26 * "2", "dat_" + 26 * "3"


def spec(*models: str, **config: Any) -> AnalyzeSpec:
    body = {"type": "analyze", "models": models or [ONE], "dataset": DIGITS, "config": config}
    made = TypeAdapter(JobSpec).validate_python(body)
    assert isinstance(made, AnalyzeSpec)
    return made


def wrong(models: Any, dataset: Any, asked: AnalyzeSpec) -> list[str]:
    with pytest.raises(Invalid) as caught:
        check_analysis(models, dataset, asked)
    return [error.pointer for error in caught.value.errors]


def test_every_type_of_job_is_known_by_its_name() -> None:
    kinds = TypeAdapter(JobSpec).json_schema()["discriminator"]["mapping"]
    assert set(kinds) == set(JOB_TYPES)


def test_a_criterion_is_named_or_described() -> None:
    asked = spec(criteria=["taylor", {"name": "activation_entropy", "bins": 8}, {"mode": "exact"}])
    assert [criterion.name for criterion in asked.config.criteria] == ["taylor", "activation_entropy", "output_kl"]
    assert TypeAdapter(JobSpec).validate_json(asked.model_dump_json()) == asked
    named = spec(criteria=list(CRITERIA)).config.criteria
    assert [criterion.name for criterion in named] == list(CRITERIA)


def test_left_out_output_kl_judges_and_layers_are_measured() -> None:
    config = spec().config
    assert ([criterion.name for criterion in config.criteria], config.layers, config.split) == (
        ["output_kl"],
        True,
        "test",
    )


@pytest.mark.parametrize(
    ("models", "config"),
    [
        ([], {}),
        ([ONE, ONE], {}),
        ([ONE, OTHER, "mdl_" + 26 * "4"], {}),
        ([ONE], {"criteria": ["nonsense"]}),
        ([ONE], {"criteria": ["l2", "l2"]}),
        ([ONE], {"criteria": ["output_kl", {"mode": "linearised"}]}),
        ([ONE], {"split": "everything"}),
        ([ONE], {"bins": 1}),
        ([ONE], {"colour": 1}),
    ],
)
def test_what_cannot_be_meant_is_refused(models: list[str], config: dict[str, Any]) -> None:
    body = {"type": "analyze", "models": models, "dataset": DIGITS, "config": config}
    with pytest.raises(ValidationError):
        AnalyzeSpec.model_validate(body)


def test_what_fits_passes_and_what_is_not_known_is_not_judged() -> None:
    check_analysis([TEACHER], DATASET, spec(criteria=["taylor"]))
    check_analysis([TEACHER, TEACHER], DATASET, spec(ONE, OTHER))
    check_analysis([{}, {}], {}, spec(ONE, OTHER, criteria=["taylor"]))


def test_each_model_must_take_the_datasets_inputs() -> None:
    takes_more = {**TEACHER, "inputs": [{"name": "x", "shape": ["batch", 3, 8, 8], "dtype": "float32"}]}
    with pytest.raises(Invalid, match="the second model takes"):
        check_analysis([TEACHER, takes_more], DATASET, spec(ONE, OTHER))


def test_only_models_with_as_many_outputs_are_compared() -> None:
    more = {**TEACHER, "outputs": [{"name": "y", "shape": ["batch", 12], "dtype": "float32"}]}
    assert wrong([TEACHER, more], DATASET, spec(ONE, OTHER)) == ["/models/1"]


def test_criteria_that_need_labels_are_pointed_at_where_there_are_none() -> None:
    asked = spec(criteria=["output_kl", "taylor", "l2", "label_information"])
    assert wrong([TEACHER], {**DATASET, "labelled": False}, asked) == ["/config/criteria/1", "/config/criteria/3"]


def test_an_empty_split_is_refused_with_those_that_are_there() -> None:
    dataset = {**DATASET, "splits": {"train": 9, "validation": 1, "test": 0}}
    with pytest.raises(Invalid, match="it has train, validation"):
        check_analysis([TEACHER], dataset, spec())
    check_analysis([TEACHER], dataset, spec(split="validation"))
