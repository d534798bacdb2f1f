"""Every error has one shape, the framework's own included."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import text

from service.api import authentication, documents
from service.api.authentication import MEMORY_SECONDS
from service.api.errors import Problem
from service.contract.records import ApiKey
from service.keys import Caller, create_key, list_keys, revoke
from tests.integration.api.house import House

CALLER = Caller("key_x", "ann", frozenset({"read"}))


def assert_problem(answer: Any, status: int, code: str) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    problem = Problem.model_validate(body)
    assert (problem.status, problem.code) == (status, code)
    assert problem.type
    assert problem.title
    assert problem.detail
    assert problem.request_id == answer.headers["X-Request-Id"]
    return body


def test_an_unknown_path_is_a_problem(house: House) -> None:
    assert_problem(house.ann.get("/v1/nothing"), 404, "not_found")
    assert_problem(house.ann.get("/v1/jobs/"), 404, "not_found")


def test_a_wrong_method_is_told_all_that_the_path_takes(house: House) -> None:
    answer = house.ann.put("/v1/jobs")
    assert_problem(answer, 405, "method_not_allowed")
    assert answer.headers["Allow"] == "GET, POST"


def test_a_body_of_another_type_is_a_problem(house: House) -> None:
    for headers in ({"Content-Type": "text/plain"}, {"Content-Type": "application/x-www-form-urlencoded"}, {}):
        assert_problem(house.ann.post("/v1/jobs", content=b"{}", headers=headers), 415, "unsupported_media_type")


@pytest.mark.parametrize("body", [b"{", b"", b"nul", b'{"a": 1,}', b"\xff\xfe", b"[" * 100_000])
def test_a_body_that_is_no_json_is_a_problem(house: House, body: bytes) -> None:
    answer = house.ann.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in {400, 422}
    assert_problem(answer, answer.status_code, "malformed_request" if answer.status_code == 400 else "invalid_request")


@pytest.mark.parametrize("body", [b'{"a":"\xff"}', b"[" * 100_000, b'{"seed":' + b"9" * 5000 + b"}"])
def test_a_body_that_cannot_be_read_is_told_what_is_expected(house: House, body: bytes) -> None:
    answer = house.ann.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert "send JSON in UTF-8" in assert_problem(answer, 400, "malformed_request")["detail"]


def test_what_a_call_without_a_body_is_sent_is_beside_the_point(house: House) -> None:
    job = house.job()
    house.ann.post(f"/v1/jobs/{job}/cancel")
    again = house.ann.post(f"/v1/jobs/{job}/retry", content=b"please", headers={"Content-Type": "text/plain"})
    assert (again.status_code, again.json()["state"]) == (202, "queued")


@pytest.mark.parametrize("body", ["[]", "3", "null", '"text"', '{"type": 3}', '{"type": null}'])
def test_json_of_another_kind_is_a_problem(house: House, body: str) -> None:
    answer = house.ann.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})
    assert_problem(answer, 422, "invalid_request")


@pytest.mark.parametrize(
    "body",
    [
        {"type": "distill", "\ud800": 1},
        {"type": "distill", "teacher": "\ud800"},
        {"type": "distill", "student": [None, None]},
        {"type": "distill", "student": "resnet8"},
        {"type": "distill", "seed": 10**400},
        {"type": "distill", "config": {"objective": {"alpha": float("nan")}}},
        {"type": "distill", "labels": {"a/b": 1, "~": 2}},
    ],
)
def test_strange_json_is_a_problem_and_no_fault(house: House, body: Any) -> None:
    answer = house.ann.post("/v1/jobs", content=json.dumps(body), headers={"Content-Type": "application/json"})
    assert assert_problem(answer, 422, "invalid_request")["errors"]


def test_a_body_above_the_limit_is_a_problem(open_house: Callable[..., Any]) -> None:
    with open_house(max_request_bytes=1000) as house:
        body = json.dumps({"type": "distill", "x": "y" * 1000})
        json_type = {"Content-Type": "application/json"}
        assert_problem(house.ann.post("/v1/jobs", content=body, headers=json_type), 413, "too_large")

        def pieces() -> Iterator[bytes]:
            yield from (body[:500].encode(), body[500:].encode())

        assert_problem(house.ann.post("/v1/jobs", content=pieces(), headers=json_type), 413, "too_large")
        assert house.ann.post("/v1/uploads", content=b"x" * 5000).status_code == 201


def test_a_fault_of_ours_tells_nothing_but_its_request(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr("service.api.jobs.show", broken)
    answer = house.ann.get("/v1/jobs")
    assert_problem(answer, 500, "internal")
    assert "secret" not in answer.text


def test_a_fault_is_logged_without_the_key(
    house: House, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: Any) -> None:
        raise ZeroDivisionError("the cause")

    monkeypatch.setattr("service.api.jobs.show", broken)
    house.ann.get("/v1/jobs")
    logged = capsys.readouterr()
    assert "the cause" in logged.out + logged.err
    assert house.keys["ann"] not in logged.out + logged.err


def test_a_database_that_does_not_answer_is_worth_a_retry(house: House) -> None:
    with house.services.database.write() as session:
        session.execute(text("ALTER TABLE api_keys RENAME TO gone"))
    answer = house.ann.get("/v1/jobs")
    assert assert_problem(answer, 503, "unavailable")["retryable"] is True
    assert "Retry-After" in answer.headers


def test_a_request_keeps_the_id_that_its_client_gave(house: House) -> None:
    assert house.ann.get("/livez", headers={"X-Request-Id": "my-id.1"}).headers["X-Request-Id"] == "my-id.1"
    strange = house.ann.get("/livez", headers={"X-Request-Id": "bad id\x7f"}).headers["X-Request-Id"]
    assert strange.startswith("req_")


# Keys --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", [None, "", "Bearer", "Bearer ", "Bearer sh_wrong", "Basic YTpi", "Bearer \xe9"])
def test_without_a_valid_key_nothing_is_told(house: House, field: str | None) -> None:
    headers = {} if field is None else {b"Authorization": field.encode("latin-1")}
    house.ann.headers.pop("Authorization")
    answer = house.ann.get("/v1/jobs/job_" + "0" * 26, headers=headers)
    assert_problem(answer, 401, "unauthenticated")
    assert answer.headers["WWW-Authenticate"] == "Bearer"


def test_a_key_allows_what_its_scopes_say(house: House) -> None:
    with house.services.database.write() as session:
        reader, sender, admin = (create_key(session, "ann", [scope]) for scope in ("read", "submit", "admin"))

    def asked(key: str, method: str, path: str) -> int:
        answer = house.ann.request(method, path, headers={"Authorization": f"Bearer {key}"})
        return int(answer.status_code)

    assert (asked(reader, "GET", "/v1/jobs"), asked(reader, "POST", "/v1/uploads")) == (200, 403)
    assert (asked(sender, "GET", "/v1/jobs"), asked(sender, "POST", "/v1/uploads")) == (403, 201)
    assert (asked(admin, "GET", "/v1/workers"), asked(admin, "POST", "/v1/uploads")) == (200, 201)


def test_a_revoked_key_ends_within_a_second(house: House) -> None:
    assert house.ann.get("/v1/jobs").status_code == 200
    with house.services.database.write() as session:
        keys = {key.owner: key.id for key in list_keys(session)}
        revoke(session, keys["ann"])
        revoke(session, keys["ann"])
    time.sleep(MEMORY_SECONDS)
    assert house.ann.get("/v1/jobs").status_code == 401
    assert house.bob.get("/v1/jobs").status_code == 200


def test_a_key_that_polls_is_looked_up_once_a_second(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(authentication, "authenticate", lambda _, token: asked.append(token) or CALLER)  # type: ignore[func-returns-value]  # appends, and goes on
    monkeypatch.setattr(authentication, "MEMORY_SECONDS", 30.0)
    assert [house.ann.get("/v1/jobs").status_code for _ in range(5)] == [200] * 5
    assert asked == [house.keys["ann"]]


def test_only_a_keys_hash_is_stored(house: House) -> None:
    with house.services.database.read() as session:
        stored = [str(vars(key)) for key in session.query(ApiKey)]
    assert stored
    assert not any(key in text for key in house.keys.values() for text in stored)


def test_every_error_that_can_be_documented_has_an_example_of_its_own_status() -> None:
    for status in documents.DETAILS:
        answer = documents.problems(status)[status]
        example = answer["content"]["application/problem+json"]["example"]
        assert Problem.model_validate(example).status == status
