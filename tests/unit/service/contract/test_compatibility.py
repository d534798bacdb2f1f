from typing import Any

import pytest

from service.contract.compatibility import check, completed, input_shape_of
from service.contract.errors import Invalid
from service.contract.specs import Architecture, DistillSpec

TEACHER: dict[str, Any] = {
    "inputs": [{"name": "x", "shape": ["batch", 1, 8, 8], "dtype": "float32"}],
    "outputs": [{"name": "y", "shape": ["batch", 10], "dtype": "float32"}],
}
DATASET: dict[str, Any] = {
    "input_shape": [1, 8, 8],
    "num_classes": 10,
    "labelled": True,
    "splits": {"train": 9, "validation": 1, "test": 1},
}


def spec(options: dict[str, Any] | None = None, student: Any = None, **config: Any) -> DistillSpec:
    student = student or {"architecture": {"name": "resnet8", "options": options or {}}}
    return DistillSpec.model_validate(
        {"type": "distill", "teacher": "mdl_" + "0" * 26, "dataset": "dat_" + "0" * 26, "student": student,
         "config": config}
    )  # fmt: skip


def wrong(teacher: Any, dataset: Any, asked: DistillSpec, student: Any = None) -> list[str]:
    with pytest.raises(Invalid) as caught:
        check(teacher, dataset, asked, student)
    return [error.pointer for error in caught.value.errors]


def test_what_fits_passes() -> None:
    check(TEACHER, DATASET, spec({"input_shape": [1, 8, 8], "num_classes": 10}))


def test_what_is_not_known_yet_is_not_judged() -> None:
    check({}, {}, spec())
    check(TEACHER, {}, spec())
    check({}, DATASET, spec())


def test_fewer_classes_than_outputs_fit_and_more_do_not() -> None:
    check(TEACHER, DATASET | {"num_classes": 3}, spec())
    assert wrong(TEACHER, DATASET | {"num_classes": 11}, spec()) == ["/dataset"]


def test_every_field_that_does_not_fit_is_named() -> None:
    asked = spec({"input_shape": [3, 8, 8], "num_classes": 7}, control=True)
    unlabelled = DATASET | {"labelled": False, "num_classes": None, "input_shape": [1, 9, 9]}
    assert wrong(TEACHER, unlabelled, asked) == [
        "/dataset",
        "/config/objective/alpha",
        "/config/control",
        "/student/architecture/options/input_shape",
        "/student/architecture/options/num_classes",
    ]


def test_a_registered_student_must_be_of_its_teachers_shape() -> None:
    asked = spec(student={"model": "mdl_" + "1" * 26})
    check(TEACHER, DATASET, asked, TEACHER)
    smaller = TEACHER | {"outputs": [{"name": "y", "shape": ["batch", 5], "dtype": "float32"}]}
    assert wrong(TEACHER, DATASET, asked, smaller) == ["/student/model"]


def test_a_student_takes_what_it_leaves_open_from_what_was_found_of_its_teacher() -> None:
    student = Architecture.model_validate({"name": "mlp", "options": {"num_classes": 5}})
    found = completed(student, TEACHER).options
    assert (list(found.input_shape or ()), found.num_classes) == (input_shape_of(TEACHER), 5)
    assert completed(student, {}) == student


@pytest.mark.parametrize(
    ("splits", "config", "pointers"),
    [
        ({"train": 0, "validation": 1, "test": 1}, {}, ["/dataset"]),
        ({"train": 1, "validation": 1}, {}, ["/dataset"]),
        ({"train": 1, "validation": 0, "test": 1}, {}, ["/config/training/select"]),
        ({"train": 1, "validation": 0, "test": 1}, {"training": {"select": "last", "early_stopping": {}}},
         ["/config/training/early_stopping"]),
    ],
)  # fmt: skip
def test_empty_splits_are_named_by_what_needs_them(
    splits: dict[str, int], config: dict[str, Any], pointers: list[str]
) -> None:
    assert wrong(TEACHER, DATASET | {"splits": splits}, spec(**config)) == pointers


def test_unlabelled_data_without_a_validation_split_can_train_to_the_last_epoch() -> None:
    unlabelled = DATASET | {"labelled": False, "splits": {"train": 1, "validation": 0, "test": 1}}
    check(TEACHER, unlabelled, spec(objective={"alpha": 0}, training={"select": "last"}))


@pytest.mark.parametrize(
    ("objective", "pointer"),
    [({"alpha": {"from": 0.5, "to": 0}}, "alpha"), ({"name": "dkd"}, "name"), ({"name": "dist"}, "hard_weight")],
)
def test_an_objective_that_needs_labels_is_named_with_its_option(objective: dict[str, Any], pointer: str) -> None:
    unlabelled = DATASET | {"labelled": False, "num_classes": None}
    assert wrong(TEACHER, unlabelled, spec(objective=objective)) == [f"/config/objective/{pointer}"]
    check(TEACHER, DATASET, spec(objective=objective))


def test_an_objective_for_other_labels_is_refused_unless_it_reads_none() -> None:
    dataset = DATASET | {"task": "classification"}
    check(TEACHER, dataset, spec(objective={"name": "dkd"}))
    check(TEACHER, dataset, spec(objective={"name": "mse", "alpha": 0}, control=True))
    for name in ("mse", "bernoulli"):
        assert wrong(TEACHER, dataset, spec(objective={"name": name})) == ["/config/objective/name"]
    assert wrong(TEACHER, DATASET | {"task": "multilabel"}, spec()) == ["/config/objective/name"]
