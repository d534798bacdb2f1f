import time

import pytest
from pydantic import ValidationError

from service.contract.catalogue import ARCHITECTURES
from service.contract.ids import new_id
from service.contract.specs import Architecture, DatasetDeclaration, DistillSpec

JOB = {
    "type": "distill",
    "teacher": "mdl_" + "0" * 26,
    "dataset": "dat_" + "0" * 26,
    "student": {"architecture": {"name": "resnet8", "options": {}}},
}


def test_what_is_left_out_takes_the_stated_defaults_and_survives_a_round_trip() -> None:
    spec = DistillSpec.model_validate(JOB)
    assert spec.config.objective.temperature == 3.0
    assert spec.config.objective.alpha == 0.5
    assert DistillSpec.model_validate(spec.model_dump(mode="json")) == spec


def test_the_preset_of_the_published_tables_gives_way_to_what_is_said_outright() -> None:
    job = {**JOB, "config": {"objective": {"name": "kd", "preset": "cifar100", "temperature": 2.0}}}
    objective = DistillSpec.model_validate(job).config.objective
    assert (objective.temperature, objective.alpha) == (2.0, 0.1)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"config": {"objective": {"temperature": 0}}}, ("config", "objective", "kd", "temperature", "constant")),
        (
            {"config": {"objective": {"temperature": float("nan")}}},
            ("config", "objective", "kd", "temperature", "constant"),
        ),
        ({"config": {"objective": {"alpha": 1.5}}}, ("config", "objective", "kd", "alpha", "constant")),
        ({"config": {"training": {"epochs": 0}}}, ("config", "training", "epochs")),
        ({"config": {"training": {"optimizer": {"name": "lion"}}}}, ("config", "training", "optimizer")),
        ({"colour": "blue"}, ("colour",)),
        ({"teacher": "dat_" + "0" * 26}, ("teacher",)),
        ({"student": {}}, ("student",)),
        ({"student": {"architecture": {"name": "alexnet"}}}, ("student", "architecture", "architecture", "name")),
    ],
)
def test_a_wrong_field_is_refused_and_pointed_at(change: dict[str, object], place: tuple[str, ...]) -> None:
    with pytest.raises(ValidationError) as caught:
        DistillSpec.model_validate({**JOB, **change})
    assert caught.value.errors()[0]["loc"] == place


def test_options_without_a_name_belong_to_the_default_kind() -> None:
    job = {**JOB, "config": {"training": {"optimizer": {"lr": 0.03}, "schedule": {"warmup_epochs": 1}}}}
    training = DistillSpec.model_validate(job).config.training
    assert (training.optimizer.name, training.optimizer.lr) == ("adamw", 0.03)
    assert (training.schedule.name, training.schedule.warmup_epochs) == ("cosine", 1)


def test_a_student_takes_missing_shape_and_classes_from_its_teacher() -> None:
    teacher = Architecture.model_validate(
        {"name": "resnet20", "options": {"input_shape": [1, 8, 8], "num_classes": 10}}
    )
    student = Architecture.model_validate({"name": "mlp", "options": {"num_classes": 5}}).completed(teacher)
    assert student.options.input_shape == (1, 8, 8)
    assert student.options.num_classes == 5
    assert student.name == "mlp"


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_has_a_summary_and_valid_defaults(name: str) -> None:
    assert ARCHITECTURES[name].summary
    assert Architecture.model_validate({"name": name}).options == ARCHITECTURES[name]()


def test_splits_must_leave_something_to_train_on() -> None:
    declaration = {"name": "d", "files": {"data.npz": "upl_" + "0" * 26}}
    with pytest.raises(ValidationError, match="leave something to train on"):
        DatasetDeclaration.model_validate({**declaration, "splits": {"validation": 0.5, "test": 0.5}})


def test_identifiers_sort_by_the_time_of_their_making() -> None:
    first = new_id("job")
    time.sleep(0.002)
    assert first < new_id("job")
    assert len({new_id("job") for _ in range(1000)}) == 1000


@pytest.mark.parametrize("value", ["a\0b", "a\nb", "\x7f"])
def test_a_label_holds_no_control_characters(value: str) -> None:
    with pytest.raises(ValidationError, match="pattern"):
        DistillSpec.model_validate(JOB | {"labels": {"team": value}})
    assert DistillSpec.model_validate(JOB | {"labels": {"team": "vision: α/β"}}).labels == {"team": "vision: α/β"}
