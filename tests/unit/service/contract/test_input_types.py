"""Numbers or token ids: what a model and a dataset say of their inputs, and when they do not fit."""

from typing import Any

import pytest

from service.contract.input_types import unfit_inputs, unfit_student

TOKENS = {"input_dtype": "int64", "input_shape": [12], "range": [0, 49]}
NUMBERS = {"input_dtype": "float32", "input_shape": [12], "range": [0.0, 1.0]}


def reader(length: int | str = "tokens", vocabulary: int | None = 50, longest: int | None = 24) -> dict[str, Any]:
    inputs = [{"name": "ids", "shape": ["batch", length], "dtype": "int64"}]
    return {"inputs": inputs, "vocabulary": vocabulary, "max_tokens": longest}


PERCEPTRON = {"inputs": [{"name": "x", "shape": ["batch", 12], "dtype": "float32"}]}


@pytest.mark.parametrize(
    ("model", "dataset"),
    [
        (reader(), TOKENS), (PERCEPTRON, NUMBERS), (reader(12, longest=12), TOKENS),
        (reader(vocabulary=None, longest=None), {**TOKENS, "range": [0, 10**6], "input_shape": [10**4]}),
        ({}, TOKENS), (reader(), {}), (PERCEPTRON, {"input_shape": [12]}),
    ],
)  # fmt: skip
def test_what_fits_or_is_not_known_is_not_judged(model: Any, dataset: Any) -> None:
    assert not list(unfit_inputs(model, dataset, "teacher"))


@pytest.mark.parametrize(
    ("model", "dataset", "phrase"),
    [
        (PERCEPTRON, TOKENS, "token ids (int64); the teacher takes numbers (float32); give x as floats"),
        (reader(), NUMBERS, "the teacher takes token ids (int64); give token ids"),
        (reader(), {**TOKENS, "range": [0, 50]}, "it holds token 50; the teacher knows 0 to 49"),
        (reader(), {**TOKENS, "input_shape": [25]}, "25 tokens; the teacher takes at most 24"),
    ],
)
def test_what_does_not_fit_is_told_with_the_way_out(model: Any, dataset: Any, phrase: str) -> None:
    (wrong,) = unfit_inputs(model, dataset, "teacher")
    assert wrong.pointer == "/dataset"
    assert phrase in wrong.detail


def test_a_student_reads_what_its_teacher_reads() -> None:
    assert not list(unfit_student(reader(), TOKENS, reader(), "/student/model"))
    assert not list(unfit_student(PERCEPTRON, NUMBERS, None, "/student/architecture"))
    (wrong,) = unfit_student(reader(), TOKENS, None, "/student/architecture")
    assert "a built-in architecture takes numbers" in wrong.detail
    (wrong,) = unfit_student(reader(), TOKENS, PERCEPTRON, "/student/model")
    assert (wrong.pointer, "the student takes numbers" in wrong.detail) == ("/student/model", True)


def test_a_student_knows_the_tokens_and_their_number() -> None:
    (wrong,) = unfit_student(reader(), TOKENS, reader(vocabulary=30), "/student/model")
    assert "the student knows 0 to 29" in wrong.detail
    (wrong,) = unfit_student(reader(), TOKENS, reader(16, longest=16), "/student/model")
    assert "the student takes 16 tokens, and the dataset's sequences have 12" in wrong.detail
    (wrong,) = unfit_student(reader(), TOKENS, reader(8, longest=8), "/student/model")
    assert "12 tokens; the student takes at most 8" in wrong.detail
