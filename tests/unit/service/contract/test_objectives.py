from typing import Any, get_args

import pytest
from pydantic import TypeAdapter, ValidationError

from service.contract.objectives import OBJECTIVES, Objective, ObjectiveOptions
from service.contract.prune_spec import Recovery
from service.contract.specs import DistillConfig, KdObjective

ADAPTER: TypeAdapter[Any] = TypeAdapter(Objective)


def read(**options: Any) -> Any:
    return ADAPTER.validate_python(options)


def test_the_catalogue_is_the_union() -> None:
    kinds = {get_args(member)[0] for member in get_args(get_args(Objective)[0])}
    assert kinds == set(OBJECTIVES.values())
    assert all(kind.model_fields["name"].annotation is not None for kind in kinds)
    assert [get_args(kind.model_fields["name"].annotation) for kind in OBJECTIVES.values()] == [
        (name,) for name in OBJECTIVES
    ]


@pytest.mark.parametrize("kind", OBJECTIVES.values())
def test_every_objective_says_what_it_is(kind: type[ObjectiveOptions]) -> None:
    assert kind.summary.endswith((".", "default."))
    assert kind.formula
    assert kind.source
    for name in kind.presets:
        assert ADAPTER.validate_python({"name": _name(kind), "preset": name})
    assert set(kind.presets) == _preset_names(kind)


def _name(kind: type[ObjectiveOptions]) -> str:
    return next(name for name, other in OBJECTIVES.items() if other is kind)


def _preset_names(kind: type[ObjectiveOptions]) -> set[str]:
    if "preset" not in kind.model_fields:
        return set()
    literal, _none = get_args(kind.model_fields["preset"].annotation)
    return set(get_args(literal))


@pytest.mark.parametrize("name", OBJECTIVES)
def test_its_defaults_survive_a_round_trip(name: str) -> None:
    spec = read(name=name)
    assert ADAPTER.validate_python(ADAPTER.dump_python(spec, mode="json")) == spec
    assert spec.uses_teacher
    assert spec.uses_labels


def test_the_published_settings() -> None:
    dkd, dist = read(name="dkd"), read(name="dist")
    assert (dkd.temperature, dkd.target_weight, dkd.non_target_weight, dkd.warmup_epochs) == (4.0, 1.0, 8.0, 20)
    assert (dist.temperature, dist.inter_weight, dist.intra_weight) == (1.0, 2.0, 2.0)
    assert read(name="dist", preset="cifar100").temperature == 4.0
    standardized = read(preset="cifar100_standardized")
    assert (standardized.temperature, standardized.standardize) == (2.0, True)
    hard, soft = standardized.weight * standardized.alpha, standardized.weight * (1 - standardized.alpha)
    assert (hard, soft) == (1.0, 9.0)


def test_a_preset_gives_way_to_what_is_said_outright() -> None:
    assert read(name="dist", preset="cifar100", temperature=2.0).temperature == 2.0


def test_an_objective_without_a_name_is_hintons() -> None:
    config = DistillConfig.model_validate({"objective": {"alpha": 0.2}})
    assert isinstance(config.objective, KdObjective)
    recovery = Recovery.model_validate({"objective": {"name": "dist", "hard_weight": 0}})
    assert recovery.objective.name == "dist"
    assert Recovery().objective == KdObjective(alpha=0.0, temperature=4.0)


def test_ramps_are_written_as_they_are_read() -> None:
    config = DistillConfig.model_validate({"objective": {"alpha": {"from": 0.9, "to": 0.1}}})
    written = {"from": 0.9, "to": 0.1, "shape": "linear"}
    assert config.model_dump(mode="json")["objective"]["alpha"] == written
    assert DistillConfig.model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("options", "place"),
    [
        ({"name": "lion"}, ()),
        ({"alpha": {"from": 2, "to": 0}}, ("kd", "alpha", "ramp", "from")),
        ({"alpha": {"from": 1}}, ("kd", "alpha", "ramp", "to")),
        ({"alpha": {"start": 1, "to": 0}}, ("kd", "alpha", "ramp", "from")),
        ({"alpha": {"from": 1, "to": 0, "shape": "square"}}, ("kd", "alpha", "ramp", "shape")),
        ({"temperature": {"from": 4, "to": 0}}, ("kd", "temperature", "ramp", "to")),
        ({"beta": 1.0}, ("kd", "beta")),
        ({"weight": 0}, ("kd", "weight")),
        ({"name": "mse", "temperature": 2.0}, ("mse", "temperature")),
        ({"name": "dkd", "hard_weight": 0, "target_weight": 0, "non_target_weight": 0}, ("dkd",)),
        ({"name": "dist", "preset": "mnist"}, ("dist", "preset")),
    ],
)
def test_a_wrong_option_is_refused_and_pointed_at(options: dict[str, Any], place: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as caught:
        read(**options)
    assert caught.value.errors()[0]["loc"] == place


@pytest.mark.parametrize(
    ("options", "labels", "teacher"),
    [
        ({"alpha": 0}, False, True),
        ({"alpha": 1}, True, False),
        ({"alpha": {"from": 0, "to": 0.2}}, True, True),
        ({"alpha": {"from": 1, "to": 0.5}}, True, True),
        ({"alpha": {"from": 0, "to": 0}}, False, True),
        ({"name": "dist", "hard_weight": 0}, False, True),
        ({"name": "dist", "inter_weight": 0, "intra_weight": 0}, True, False),
        ({"name": "dkd", "hard_weight": 0}, True, True),
        ({"name": "dkd", "target_weight": 0, "non_target_weight": 0}, True, False),
        ({"name": "mse", "alpha": 0}, False, True),
    ],
)
def test_what_it_looks_at_follows_from_its_weights(options: dict[str, Any], labels: bool, teacher: bool) -> None:
    spec = read(**options)
    assert (spec.uses_labels, spec.uses_teacher) == (labels, teacher)


@pytest.mark.parametrize(
    ("options", "option"),
    [({}, "alpha"), ({"alpha": {"from": 0.5, "to": 0}}, "alpha"), ({"name": "dist"}, "hard_weight"),
     ({"name": "dkd"}, "name"), ({"name": "bernoulli"}, "alpha")],
)  # fmt: skip
def test_it_says_how_to_do_without_labels(options: dict[str, Any], option: str) -> None:
    spec = read(**options)
    named, text = spec.without_labels
    assert named == option
    assert "the dataset has no" in text
    assert (
        read(**{**options, "name": "kd", "alpha": 0} if named == "name" else {**options, named: 0}).uses_labels is False
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, None),
        ({"alpha": 1}, "do not enter the loss"),
        ({"alpha": 0, "label_smoothing": 0.1}, "label_smoothing has no effect"),
        ({"beta": 0.2}, "no effect on forward_kl"),
        ({"beta": 0.2, "divergence": "jensen_shannon"}, None),
        ({"name": "dkd", "warmup_epochs": 60}, "50% of its weight"),
        ({"name": "dkd"}, None),
        ({"name": "dist", "inter_weight": 0, "intra_weight": 0}, "no weight"),
    ],
)
def test_what_looks_like_a_mistake_is_told(options: dict[str, Any], words: str | None) -> None:
    doubts = read(**options).doubts(30)
    assert (doubts == ()) if words is None else (len(doubts) == 1 and words in doubts[0])
