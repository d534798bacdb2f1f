"""Errors as HTTP: the one table from error to status, and problem+json (RFC 9457) for all of them.

The framework's own errors (no such route, a method not taken, a body that does not parse) are
translated into the same tree, so that a client meets one shape.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from service.contract import errors
from service.contract.errors import Fault, FieldError, StillhouseError

STATUS: Mapping[type[StillhouseError], int] = {
    errors.Malformed: 400,
    errors.Unauthenticated: 401,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.MethodNotAllowed: 405,
    errors.Conflict: 409,
    errors.PreconditionFailed: 412,
    errors.TooLarge: 413,
    errors.UnsupportedMediaType: 415,
    errors.RangeNotSatisfiable: 416,
    errors.Invalid: 422,
    errors.DigestMismatch: 422,
    errors.InputRejected: 422,
    errors.TooManyRequests: 429,
    errors.Unavailable: 503,
    StillhouseError: 500,
}
FRAMEWORK: Mapping[int, type[StillhouseError]] = {
    status: kind
    for kind, status in STATUS.items()
    if kind not in {StillhouseError, errors.DigestMismatch, errors.InputRejected}
}
MEDIA_TYPE = "application/problem+json"
WRONG_OFFSET_TYPE = "https://iana.org/assignments/http-problem-types#mismatching-upload-offset"


class Problem(BaseModel):
    """RFC 9457, with a stable `code`, the request's id and whether the same request may succeed later."""

    model_config = ConfigDict(extra="allow", frozen=True)

    type: str = Field(description="Identifies the kind of problem.")
    title: str
    status: int
    detail: str = Field(description="What was wrong, what was expected and what to do.")
    code: str
    request_id: str | None = Field(None, description="Null in an error that no request caused.")
    retryable: bool = False
    errors: tuple[FieldError, ...] = Field((), description="The wrong fields.")


def status_of(kind: type[BaseException]) -> int:
    """Return the HTTP status of a kind of error: its own, or its nearest ancestor's."""
    return next((STATUS[ancestor] for ancestor in kind.__mro__ if ancestor in STATUS), 500)


def _kinds(root: type[StillhouseError]) -> list[type[StillhouseError]]:
    return [root, *(kind for child in root.__subclasses__() for kind in _kinds(child))]


def status_of_code(code: str) -> int:
    """Return the HTTP status that belongs to a stored error's code."""
    return next((status_of(kind) for kind in _kinds(StillhouseError) if kind.code == code), 500)


def fault_of(kind: type[StillhouseError], detail: str) -> Fault:
    """Return an error of this kind as data."""
    return Fault(code=kind.code, title=kind.title, detail=detail, retryable=kind.retryable)


def problem_of(fault: Fault, status: int, request_id: str | None, **members: Any) -> Problem:
    """Return an error in the shape in which it is sent."""
    document = {"type": f"urn:stillhouse:problem:{fault.code}", **fault.model_dump(), **members}
    return Problem(status=status, request_id=request_id, **document)


def stored_problem(document: Mapping[str, Any] | None) -> Problem | None:
    """Return the stored error of a job, model or dataset as a problem."""
    if document is None:
        return None
    fault = Fault.model_validate(document)
    return problem_of(fault, status_of_code(fault.code), None)


def request_id_of(request: Request) -> str | None:
    """Return the request's id, which the access log made or took over."""
    found: str | None = request.scope.get("request_id")
    return found


def render(problem: Problem, headers: Mapping[str, str] | None = None) -> Response:
    """Return the response that carries a problem."""
    # ASCII, because a pointer may hold a lone surrogate that the client sent and UTF-8 cannot carry.
    content = json.dumps(problem.model_dump(mode="python")).encode()
    extra = dict(headers or {})
    if problem.status == 401:
        extra["WWW-Authenticate"] = "Bearer"
    if problem.status in {429, 503} or problem.retryable:
        extra.setdefault("Retry-After", "2")
    return Response(content, problem.status, extra, MEDIA_TYPE)


def problem_response(request: Request, error: StillhouseError) -> Response:
    """Answer a request with one of our errors."""
    members: dict[str, Any] = {}
    headers: dict[str, str] = {}
    if isinstance(error, errors.WrongOffset):
        members = {
            "type": WRONG_OFFSET_TYPE,
            "expected-offset": error.expected,
            "provided-offset": error.provided,
        }
        headers = {"Upload-Offset": str(error.expected)}
    if isinstance(error, errors.RangeNotSatisfiable):
        headers = {"Content-Range": f"bytes */{error.size}"}
    return render(problem_of(error.fault(), status_of(type(error)), request_id_of(request), **members), headers)


def pointer_of(location: Sequence[int | str], body: Any) -> str:
    """Return the JSON pointer of a validation error; the tags that unions put in its way are left out."""
    source, *steps = location
    parts: list[str] = [] if source == "body" else [str(source)]
    here = body
    for index, step in enumerate(steps):
        inner = index < len(steps) - 1 or (isinstance(here, Mapping) and step == here.get("name"))
        if isinstance(here, Mapping) and step not in here and source == "body" and inner:
            continue  # the tag of a union's member, not a field
        if (isinstance(here, int | float | str) or (here is None and index)) and source == "body":
            break  # tags again: a number and null have no fields
        parts.append(str(step).replace("~", "~0").replace("/", "~1"))
        here = _inside(here, step)
    return "/" + "/".join(parts) if parts else ""


def _inside(value: Any, step: int | str) -> Any:
    try:
        return value[step]
    except (LookupError, TypeError):
        return None


def wrong_value(item: Mapping[str, Any]) -> str:
    """Return what pydantic says of a value, in words for whoever sent it."""
    if item["type"] == "union_tag_invalid":
        known, tag = item["ctx"]["expected_tags"].replace("'", ""), item["ctx"]["tag"]
        return f'{f"there is no {tag}" if tag else "no name is given"}; expected {{"name": …}} with one of {known}'
    return str(item["msg"]).removeprefix("Value error, ")


def validation_error(error: RequestValidationError) -> StillhouseError:
    """Return what is wrong with a request, field by field."""
    found = error.errors()
    if any(item["type"] == "json_invalid" for item in found):
        reason = found[0].get("ctx", {}).get("error", "not JSON")
        return errors.Malformed(f"the body is not JSON: {reason}; send a JSON object in UTF-8")
    fields = [FieldError(pointer=pointer_of(item["loc"], error.body), detail=wrong_value(item)) for item in found]
    first = f"{fields[0].pointer or 'the body'}: {fields[0].detail}"
    more = f" (and {len(fields) - 1} more)" if len(fields) > 1 else ""
    return errors.Invalid(f"{first}{more}", errors=fields)


def framework_fault(error: HTTPException, request: Request) -> Fault:
    """Return the framework's error as one of ours."""
    kind = FRAMEWORK.get(error.status_code, errors.Internal if error.status_code >= 500 else errors.RequestError)
    details = {
        400: "the body could not be read; send JSON in UTF-8 that is not deeply nested",
        404: f"there is nothing at {request.url.path}; see /docs for what there is",
        405: f"{request.url.path} does not take {request.method}",
    }
    return fault_of(kind, details.get(error.status_code, str(error.detail)))


def methods_of(request: Request) -> list[str]:
    """Return the methods that a path takes; several routes may share it, and each knows but its own."""
    template = getattr(request.scope.get("route"), "path", None)
    return sorted(method.upper() for method in request.app.openapi()["paths"].get(template, {}))


def install(app: FastAPI) -> None:
    """Have the application answer every error as a problem."""

    @app.exception_handler(StillhouseError)
    async def _ours(request: Request, error: StillhouseError) -> Response:
        return problem_response(request, error)

    @app.exception_handler(RequestValidationError)
    async def _invalid(request: Request, error: RequestValidationError) -> Response:
        return problem_response(request, validation_error(error))

    @app.exception_handler(HTTPException)
    async def _framework(request: Request, error: HTTPException) -> Response:
        problem = problem_of(framework_fault(error, request), error.status_code, request_id_of(request))
        headers = dict(error.headers or {})
        if error.status_code == 405 and (methods := methods_of(request)):
            headers["Allow"] = ", ".join(methods)
        return render(problem, headers)
