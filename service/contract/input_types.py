"""Whether a model and a dataset speak of the same kind of inputs: numbers, or ids of tokens.

A model that reads token ids takes int64 rows (B, T), of a vocabulary and a length that inspection found; a dataset of
token ids says which it holds. What the facts leave unknown is not judged.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from service.contract.errors import FieldError

Facts = Mapping[str, Any]
KINDS = {"float32": "numbers (float32)", "int64": "token ids (int64)"}
MENDING = {
    "float32": "give x as floats: x.astype('float32')",
    "int64": "give token ids: x as int64 of shape (N, T)",
}


def reads_tokens(model: Facts) -> bool:
    """Whether a model's input is of token ids."""
    return input_type_of(model) == "int64"


def input_type_of(model: Facts) -> str | None:
    """The type of a model's input."""
    inputs = model.get("inputs")
    return inputs[0].get("dtype") if inputs else None


def unfit_inputs(model: Facts, dataset: Facts, role: str) -> Iterator[FieldError]:
    """What of a dataset's inputs a model cannot read, beyond their shape; `role` names the model in the text."""
    takes, given = input_type_of(model), dataset.get("input_dtype")
    if takes is not None and given is not None and takes != given:
        detail = f"its inputs are {KINDS.get(given, given)}; the {role} takes {KINDS.get(takes, takes)}"
        yield FieldError(pointer="/dataset", detail=f"{detail}; {MENDING.get(takes, 'take another dataset')}")
    elif given == "int64":
        yield from _unknown_tokens(model, dataset, role)


def _unknown_tokens(model: Facts, dataset: Facts, role: str) -> Iterator[FieldError]:
    vocabulary, found = model.get("vocabulary"), dataset.get("range")
    if vocabulary is not None and found and found[1] >= vocabulary:
        detail = (
            f"it holds token {found[1]:.0f}; the {role} knows 0 to {vocabulary - 1}; use the {role}'s own tokenizer"
        )
        yield FieldError(pointer="/dataset", detail=detail)
    longest, shape = model.get("max_tokens"), dataset.get("input_shape")
    if longest is not None and shape and shape[0] > longest:
        detail = f"its sequences have {shape[0]} tokens; the {role} takes at most {longest}; cut them shorter"
        yield FieldError(pointer="/dataset", detail=detail)


def unfit_student(teacher: Facts, dataset: Facts, student: Facts | None, pointer: str) -> Iterator[FieldError]:
    """Why a student cannot read what its teacher reads; `student` is None for a built-in architecture."""
    takes, learns = input_type_of(teacher), "float32" if student is None else input_type_of(student)
    if takes is not None and learns is not None and takes != learns:
        what = "a built-in architecture" if student is None else "the student"
        detail = f"{what} takes {KINDS.get(learns, learns)}; the teacher takes {KINDS.get(takes, takes)}"
        yield FieldError(pointer=pointer, detail=f"{detail}; name a registered model that takes the same")
    elif student is not None and reads_tokens(student):
        yield from _unknown_tokens(student, dataset, "student")
        length, given = student["inputs"][0]["shape"][1], dataset.get("input_shape")
        if isinstance(length, int) and given and given[0] < length:
            detail = f"the student takes {length} tokens, and the dataset's sequences have {given[0]}"
            yield FieldError(pointer=pointer, detail=f"{detail}; export the student with a dynamic length, or pad them")
