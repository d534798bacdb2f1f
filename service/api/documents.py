"""The OpenAPI document, made complete: every status code, every header, an example for every body.

Routes say what can happen with `problems(…)` and the headers below; what holds for every answer
(the request's id, the problem's schema, examples of our models) is added to the finished document.
"""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from service.api.errors import FRAMEWORK, MEDIA_TYPE, Problem, fault_of, problem_of
from service.api.examples import EXAMPLES
from service.contract.errors import Internal

Answers = dict[int | str, dict[str, Any]]

PROBLEM = {"$ref": "#/components/schemas/Problem"}
DETAILS: Mapping[int, str] = {
    400: "the body is not JSON: Expecting value; send a JSON object in UTF-8",
    401: "no API key was given; send it as Authorization: Bearer sh_…",
    403: "this key may not submit; it needs the scope submit",
    404: "there is no job job_01ktcz5vwm9j6p2n4qe8rhsxtb",
    409: "the job is succeeded; only a job that has not ended can be cancelled",
    412: "the file's ETag is another one",
    413: "the body is larger than 1048576 bytes",
    415: "the body must be application/json",
    416: "the file has 1024 bytes; the range starts at 4096",
    422: "/config/objective/temperature: Input should be greater than 0",
    500: "the service failed to answer; its log tells more under this request_id",
    503: "the database does not answer",
}


def header(description: str, example: str | int) -> dict[str, Any]:
    """Describe one header of an answer."""
    kind = "integer" if isinstance(example, int) else "string"
    return {"description": description, "schema": {"type": kind}, "example": example}


ETAG = {"ETag": header("Strong; changes with the body.", '"5f70bf18a086007016e948b04aed3b82103a36be"')}
LOCATION = {"Location": header("The new resource.", "/v1/jobs/job_01ktcz5vwm9j6p2n4qe8rhsxtb")}
RETRY_AFTER = {"Retry-After": header("Seconds to wait before asking again.", 2)}
LINK = {"Link": header("The next page, when there is one.", '</v1/jobs?page_token=eyJi>; rel="next"')}
REQUEST_ID = {"X-Request-Id": header("The request's id: the client's, or a new one.", "req_01ktcz5vwm9j6p2n4qe8")}
ON_STATUS: Mapping[str, dict[str, Any]] = {
    "401": {"WWW-Authenticate": header("How to authenticate.", "Bearer")},
    "429": RETRY_AFTER,
    "503": RETRY_AFTER,
}


def problems(*statuses: int) -> Answers:
    """Describe the errors that an operation can answer with."""
    return {status: _problem(status) for status in statuses}


def answers(own: Answers, *errors: int) -> Answers:
    """Describe what an operation answers: its own, and the errors that it can meet."""
    return own | problems(*errors)


def _problem(status: int) -> dict[str, Any]:
    kind = FRAMEWORK.get(status, Internal)
    fault = fault_of(kind, DETAILS[status])
    example = problem_of(fault, status, "req_01ktcz5vwm9j6p2n4qe8rhsxtb").model_dump(mode="json")
    return {"description": kind.title, "content": {MEDIA_TYPE: {"schema": PROBLEM, "example": example}}}


COMMON = problems(401, 403, 422, 500, 503)


def text_answer(description: str, example: str, media_type: str = "text/plain") -> Answers:
    """Describe an answer of plain text."""
    content = {media_type: {"schema": {"type": "string"}, "example": example}}
    return {200: {"description": description, "content": content}}


def bytes_answer(description: str, headers: Mapping[str, Any], media_type: str) -> dict[str, Any]:
    """Describe an answer of bytes."""
    schema = {"type": "string", "format": "binary"}
    return {
        "description": description,
        "headers": dict(headers),
        "content": {media_type: {"schema": schema, "example": "(bytes)"}},
    }


def _operations(document: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [operation for path in document["paths"].values() for operation in path.values()]


def _complete_answer(status: str, answer: dict[str, Any]) -> None:
    answer.setdefault("headers", {}).update(REQUEST_ID | ON_STATUS.get(status, {}))
    for content in answer.get("content", {}).values():
        _add_example(content)


def _add_example(content: dict[str, Any]) -> None:
    schema = content.get("schema", {})
    first = next(iter(schema.get("anyOf", ())), schema)
    name = first.get("$ref", "").rsplit("/", 1)[-1]
    if name in EXAMPLES and "example" not in content and "examples" not in content:
        content["example"] = EXAMPLES[name]


def _complete_request(operation: Mapping[str, Any]) -> None:
    body = operation.get("requestBody", {})
    for content in body.get("content", {}).values():
        _add_example(content)


def complete(document: dict[str, Any]) -> dict[str, Any]:
    """Add to a document what every operation has in common."""
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schema = Problem.model_json_schema(ref_template="#/components/schemas/{model}")
    schemas |= schema.pop("$defs", {}) | {"Problem": schema}
    for name in ("HTTPValidationError", "ValidationError"):
        schemas.pop(name, None)  # FastAPI's own shape of a 422, which is never sent
    for operation in _operations(document):
        _complete_request(operation)
        for status, answer in operation["responses"].items():
            _complete_answer(status, answer)
    return document


def install(app: FastAPI) -> None:
    """Have the application publish the completed document."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            document = get_openapi(
                title=app.title, version=app.version, summary=app.summary, description=app.description,
                routes=app.routes, tags=app.openapi_tags,
            )  # fmt: skip
            app.openapi_schema = complete(document)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI's documented way to extend its document
