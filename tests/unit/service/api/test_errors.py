import pytest

from service.api.errors import STATUS, pointer_of, problem_of, status_of, status_of_code, stored_problem
from service.contract import errors
from service.contract.errors import StillhouseError


def kinds(root: type[StillhouseError]) -> list[type[StillhouseError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in kinds(child))]


def test_every_error_that_a_caller_can_mend_has_a_status_below_500() -> None:
    for kind in kinds(errors.RequestError)[1:]:
        assert 400 <= status_of(kind) < 500, kind


def test_errors_that_are_not_in_the_table_are_faults_of_ours() -> None:
    assert status_of(errors.Internal) == status_of(errors.LeaseLost) == status_of(ZeroDivisionError) == 500


def test_a_later_feature_is_refused_as_an_invalid_request() -> None:
    assert status_of(errors.NotAvailable) == STATUS[errors.Invalid]


@pytest.mark.parametrize(("code", "status"), [("input_rejected", 422), ("conflict", 409), ("no_such_code", 500)])
def test_a_stored_errors_status_is_that_of_its_code(code: str, status: int) -> None:
    assert status_of_code(code) == status


def test_a_stored_error_has_the_shape_of_a_sent_one() -> None:
    fault = errors.Invalid("wrong", errors=[errors.FieldError(pointer="/a", detail="b")]).fault()
    stored = stored_problem(fault.model_dump(mode="json"))
    assert stored is not None
    assert stored.model_dump() == problem_of(fault, 422, None).model_dump()
    assert stored_problem(None) is None


@pytest.mark.parametrize(
    ("location", "body", "pointer"),
    [
        (("body",), {}, ""),
        (("body", "seed"), {"seed": -1}, "/seed"),
        (("body", "teacher"), {}, "/teacher"),
        (("body", "student", "architecture", "architecture", "name"),
         {"student": {"architecture": {"name": "x"}}}, "/student/architecture/name"),
        (("body", "optimizer", "sgd", "lr"), {"optimizer": {"name": "sgd", "lr": -1}}, "/optimizer/lr"),
        (("body", "schedule", "step", "milestones"), {"schedule": {"name": "step"}}, "/schedule/milestones"),
        (("body", "objective", "dkd"), {"objective": {"name": "dkd"}}, "/objective"),
        (("body", "objective", "kd"), {"objective": None}, "/objective"),
        (("body", "objective", "kd", "alpha", "constant"), {"objective": {"alpha": 2}}, "/objective/alpha"),
        (("body", "objective", "kd", "alpha", "ramp", "to"), {"objective": {"alpha": {"from": 2}}},
         "/objective/alpha/to"),
        (("body", "betas", 1), {"betas": [0, 2]}, "/betas/1"),
        (("body", "a/b~c"), {"a/b~c": 1}, "/a~1b~0c"),
        (("query", "limit"), None, "/query/limit"),
        (("header", "Upload-Offset"), None, "/header/Upload-Offset"),
    ],
)  # fmt: skip
def test_pointers_name_fields_and_leave_out_the_tags_of_unions(
    location: tuple[int | str, ...], body: object, pointer: str
) -> None:
    assert pointer_of(location, body) == pointer
