"""The client against a service that behaves as the wire says, over a connection that may break."""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service import connection
from service.client import Client, NotInTime, server_sent_events
from service.connection import Connection, Corrupted, ProblemError, Unreachable, is_loopback, pause_before

URL = "http://stillhouse.test"
Handler = Callable[[httpx.Request], httpx.Response]


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "FIRST_PAUSE", 0.0)
    monkeypatch.setattr(connection, "LONGEST_PAUSE", 0.0)


def client_of(handler: Handler) -> Client:
    return Client(URL, "sh_key", transport=httpx.MockTransport(handler))


def problem(status: int, code: str, **members: Any) -> httpx.Response:
    return httpx.Response(status, json={"code": code, "title": code, "detail": f"about {code}", **members})


class UploadHouse:
    """One upload, as draft-ietf-httpbis-resumable-upload has it; `cuts` says after how many bytes each PATCH breaks."""

    def __init__(self, cuts: list[int], *, answer_is_lost: bool = False) -> None:
        self.cuts = cuts
        self.answer_is_lost = answer_is_lost
        self.content = b""
        self.complete = False
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return {"POST": self._create, "HEAD": self._head, "PATCH": self._patch}[request.method](request)

    def _create(self, request: httpx.Request) -> httpx.Response:
        assert request.headers["upload-complete"] == "?0"
        return httpx.Response(201, headers={"Location": "/v1/uploads/upl_1"}, json={"id": "upl_1"})

    def _head(self, _: httpx.Request) -> httpx.Response:
        state = {"Upload-Offset": str(len(self.content)), "Upload-Complete": "?1" if self.complete else "?0"}
        return httpx.Response(204, headers=state)

    def _patch(self, request: httpx.Request) -> httpx.Response:
        if int(request.headers["upload-offset"]) != len(self.content):
            return problem(409, "wrong_offset")
        body = request.read()
        if self.cuts:
            self.content += body[: self.cuts.pop(0)]
            raise httpx.ReadError("cut", request=request)
        self.content += body
        self.complete = request.headers["upload-complete"] == "?1"
        if self.answer_is_lost:
            raise httpx.ReadError("the answer was lost", request=request)
        return httpx.Response(200, json={"id": "upl_1"})


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    path.write_bytes(bytes(range(256)) * 4000)
    return path


def test_an_upload_promises_its_length_and_digest_and_arrives_whole(file: Path) -> None:
    house = UploadHouse(cuts=[])
    done = client_of(house).upload(file)
    digest = hashlib.sha256(file.read_bytes()).digest()
    created = house.requests[0].headers
    assert created["repr-digest"] == f"sha-256=:{base64.b64encode(digest).decode()}:"
    assert created["upload-length"] == str(file.stat().st_size)
    assert house.content == file.read_bytes()
    assert (done.id, done.size, done.sha256) == ("upl_1", file.stat().st_size, digest.hex())


def test_an_upload_goes_on_where_the_connection_was_cut(file: Path) -> None:
    house = UploadHouse(cuts=[1000, 500_000, 0])
    client_of(house).upload(file)
    offsets = [int(sent.headers["upload-offset"]) for sent in house.requests if sent.method == "PATCH"]
    assert offsets == [0, 1000, 501_000, 501_000]
    assert house.content == file.read_bytes()


def test_an_upload_whose_last_answer_was_lost_is_not_sent_again(file: Path) -> None:
    house = UploadHouse(cuts=[], answer_is_lost=True)
    client_of(house).upload(file)
    assert [sent.method for sent in house.requests] == ["POST", "PATCH", "HEAD"]


def test_an_upload_that_makes_no_progress_is_given_up(file: Path) -> None:
    with pytest.raises(Unreachable, match="is Stillhouse running there"):
        client_of(UploadHouse(cuts=[0] * 50)).upload(file)


def test_a_wrong_digest_is_the_services_problem_and_ends_the_upload(file: Path) -> None:
    def handler(request: httpx.Request) -> httpx.Response:
        if request.method == "PATCH":
            return problem(422, "digest_mismatch")
        return httpx.Response(201, headers={"Location": "/v1/uploads/upl_1"})

    with pytest.raises(ProblemError, match="about digest_mismatch") as caught:
        client_of(handler).upload(file)
    assert (caught.value.status, caught.value.code) == (422, "digest_mismatch")


def test_progress_is_told_in_bytes_up_to_the_last(file: Path) -> None:
    seen: list[tuple[int, int]] = []
    client_of(UploadHouse(cuts=[])).upload(file, lambda done, total: seen.append((done, total)))
    assert seen[-1] == (file.stat().st_size, file.stat().st_size)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


class DownloadHouse:
    """One file under a model; each cut ends an answer after so many bytes."""

    def __init__(self, content: bytes, cuts: list[int], etag: str | None = None) -> None:
        self.content, self.cuts = content, cuts
        self.etag = etag or f'"{hashlib.sha256(content).hexdigest()}"'
        self.ranges: list[str | None] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if not request.url.path.endswith("model.pt2"):
            return httpx.Response(
                200, json={"files": [{"path": "model.pt2", "url": "/v1/models/mdl_1/files/model.pt2"}]}
            )
        asked = request.headers.get("range")
        self.ranges.append(asked)
        start = 0
        if asked is not None and request.headers["if-range"] == self.etag:
            start = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])  # type: ignore[index]  # asserts the range's form
            if start >= len(self.content):
                return problem(416, "range_not_satisfiable")
        headers = {"ETag": self.etag, "Content-Length": str(len(self.content) - start)}
        return httpx.Response(206 if start else 200, headers=headers, content=self._body(request, start))

    def _body(self, request: httpx.Request, start: int) -> Iterator[bytes]:
        if self.cuts:
            yield self.content[start : start + self.cuts.pop(0)]
            raise httpx.ReadError("cut", request=request)
        yield self.content[start:]


CONTENT = bytes(range(256)) * 3000


def test_a_download_goes_on_by_range_after_a_cut_and_is_checked(tmp_path: Path) -> None:
    house = DownloadHouse(CONTENT, cuts=[300_000, 400_000])
    found = client_of(house).download("mdl_1", tmp_path / "out")
    assert house.ranges == [None, "bytes=300000-", "bytes=700000-"]
    assert (tmp_path / "out" / "model.pt2").read_bytes() == CONTENT
    assert found == {"model.pt2": hashlib.sha256(CONTENT).hexdigest()}
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["model.pt2"]


def test_a_part_from_an_earlier_run_is_used_only_while_the_file_is_the_same(tmp_path: Path) -> None:
    part, tag = tmp_path / "model.pt2.part", tmp_path / "model.pt2.etag"
    part.write_bytes(CONTENT[:1000])
    house = DownloadHouse(CONTENT, cuts=[])
    tag.write_text(house.etag)
    client_of(house).download("mdl_1", tmp_path)
    assert house.ranges == ["bytes=1000-"]
    part.write_bytes(b"of another file")
    tag.write_text('"other"')
    client_of(house).download("mdl_1", tmp_path)
    assert (tmp_path / "model.pt2").read_bytes() == CONTENT


def test_a_part_that_was_whole_already_is_kept(tmp_path: Path) -> None:
    (tmp_path / "model.pt2.part").write_bytes(CONTENT)
    house = DownloadHouse(CONTENT, cuts=[])
    (tmp_path / "model.pt2.etag").write_text(house.etag)
    client_of(house).download("mdl_1", tmp_path)
    assert (tmp_path / "model.pt2").read_bytes() == CONTENT


def test_bytes_that_are_not_those_of_the_etag_are_refused_and_removed(tmp_path: Path) -> None:
    house = DownloadHouse(CONTENT, cuts=[], etag=f'"{"0" * 64}"')
    with pytest.raises(Corrupted, match=r"model\.pt2"):
        client_of(house).download("mdl_1", tmp_path)
    assert list(tmp_path.iterdir()) == []


def answers(*given: httpx.Response | Exception) -> tuple[Handler, list[httpx.Request]]:
    """A service that gives these answers one after the other, and the requests that it saw."""
    waiting, seen = list(given), []

    def handler(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        answer = waiting.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    return handler, seen


def test_a_read_is_repeated_after_a_cut_and_when_the_service_is_unavailable() -> None:
    job = {"id": "job_1"}
    handler, seen = answers(httpx.ReadError("cut"), problem(503, "unavailable"), httpx.Response(200, json=job))
    assert client_of(handler).job("job_1") == job
    assert len(seen) == 3


def test_a_read_that_never_succeeds_raises_the_last_problem() -> None:
    handler, seen = answers(*[problem(503, "unavailable")] * 20)
    with pytest.raises(ProblemError, match="about unavailable"):
        client_of(handler).job("job_1")
    assert len(seen) == connection.RETRIES + 1


def test_a_refusal_is_not_asked_again_and_names_the_wrong_fields() -> None:
    errors = [{"pointer": "/config/objective/temperature", "detail": "should be greater than 0"}]
    handler, seen = answers(problem(422, "invalid_request", errors=errors, request_id="req_1"))
    with pytest.raises(ProblemError) as caught:
        client_of(handler).submit({"type": "distill"})
    assert caught.value.errors == (("/config/objective/temperature", "should be greater than 0"),)
    assert caught.value.request_id == "req_1"
    assert len(seen) == 1


def test_a_submission_that_is_sent_again_carries_the_same_idempotency_key() -> None:
    made = httpx.Response(201, json={"id": "job_1"})
    in_flight = problem(409, "idempotency_in_flight", retryable=True)
    handler, seen = answers(httpx.ReadError("cut"), in_flight, made)
    assert client_of(handler).submit({"type": "distill"})["id"] == "job_1"
    assert len({request.headers["idempotency-key"] for request in seen}) == 1
    handler, seen = answers(httpx.Response(201, json={"id": "job_1"}))
    client_of(handler).submit({"type": "distill"}, idempotency_key="mine")
    assert seen[0].headers["idempotency-key"] == "mine"


def test_two_submissions_have_two_keys() -> None:
    handler, seen = answers(*[httpx.Response(201, json={})] * 2)
    client = client_of(handler)
    client.submit({})
    client.submit({})
    assert seen[0].headers["idempotency-key"] != seen[1].headers["idempotency-key"]


def test_what_must_not_happen_twice_is_repeated_only_when_it_never_left() -> None:
    handler, seen = answers(httpx.ConnectError("refused"), httpx.ReadError("cut"))
    with pytest.raises(Unreachable):
        client_of(handler).retry("job_1")
    assert len(seen) == 2


def test_a_wait_asks_for_news_only_and_ends_when_the_job_is_done() -> None:
    handler, seen = answers(
        httpx.Response(200, headers={"ETag": '"a"'}, json={"done": False, "state": "queued"}),
        httpx.Response(304, headers={"ETag": '"a"'}),
        httpx.Response(200, headers={"ETag": '"b"'}, json={"done": False, "state": "running"}),
        httpx.Response(200, headers={"ETag": '"c"'}, json={"done": True, "state": "succeeded"}),
    )
    states = [job["state"] for job in client_of(handler).watch("job_1")]
    assert states == ["queued", "running", "succeeded"]
    assert [request.headers.get("if-none-match") for request in seen] == [None, '"a"', '"a"', '"b"']
    assert seen[1].headers["prefer"] == "wait=30"


def test_a_wait_that_takes_too_long_says_so() -> None:
    handler, _ = answers(*[httpx.Response(200, headers={"ETag": '"a"'}, json={"done": False})] * 10)
    with pytest.raises(NotInTime, match="not done after 0 s"):
        client_of(handler).wait("job_1", timeout=0.0)


def frames(*numbers: int) -> bytes:
    return b": hello\n\n" + b"".join(
        f"id: {n}\nevent: log\ndata: {json.dumps({'id': n, 'kind': 'log'})}\n\n".encode() for n in numbers
    )


def test_events_go_on_after_the_last_one_that_arrived() -> None:
    def cut() -> Iterator[bytes]:
        yield frames(1, 2)
        yield b"id: 3\nevent: log\nda"
        raise httpx.ReadError("cut")

    handler, seen = answers(
        httpx.Response(200, json={"done": False}), httpx.Response(200, content=cut()),
        httpx.Response(200, json={"done": False}), httpx.Response(200, content=frames(3)),
        httpx.Response(200, json={"done": True}), httpx.Response(200, content=frames(4)),
    )  # fmt: skip
    assert [event["id"] for event in client_of(handler).events("job_1")] == [1, 2, 3, 4]
    streams = [request for request in seen if request.url.path.endswith("/events")]
    assert [request.headers["last-event-id"] for request in streams] == ["0", "2", "3"]
    assert all(request.headers["accept"] == "text/event-stream" for request in streams)


def test_server_sent_events_are_parsed_with_comments_and_data_of_many_lines() -> None:
    lines = [": beat", "", "id: 7", "event: state", 'data: {"a":', "data: 1}", "", "id: 8", ""]
    assert list(server_sent_events(lines)) == [{"id": "7", "kind": "state", "a": 1}]


def test_lists_follow_the_pages() -> None:
    handler, seen = answers(
        httpx.Response(200, json={"items": [{"id": "b"}], "next_page_token": "t"}),
        httpx.Response(200, json={"items": [{"id": "a"}], "next_page_token": None}),
    )
    assert [job["id"] for job in client_of(handler).jobs(state=["failed"], label=["k:v"])] == ["b", "a"]
    assert seen[1].url.params["page_token"] == "t"
    assert seen[1].url.params.get_list("state") == ["failed"]


def test_an_answer_from_something_else_says_to_check_the_url() -> None:
    handler, _ = answers(httpx.Response(404, text="<html>nginx</html>"))
    with pytest.raises(ProblemError, match="not from Stillhouse; check the URL"):
        client_of(handler).job("job_1")


def test_the_key_is_sent_as_a_bearer_token() -> None:
    handler, seen = answers(httpx.Response(200, json={}))
    client_of(handler).job("job_1")
    assert seen[0].headers["authorization"] == "Bearer sh_key"


def test_only_the_users_own_machine_is_reached_past_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_loopback("http://127.0.0.1:8000")
    assert is_loopback("http://[::1]:8000")
    assert is_loopback("http://localhost")
    assert not is_loopback("https://stillhouse.example.org")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")  # nothing listens there
    near = Connection("http://127.0.0.1:1", "sh_key")
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1 "):
        near.request("GET", "/livez")
    assert not near._http._mounts


def test_pauses_grow_stay_bounded_and_obey_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "FIRST_PAUSE", 0.2)
    monkeypatch.setattr(connection, "LONGEST_PAUSE", 5.0)
    assert all(0.1 * 2**n <= pause_before(n, None) <= 0.2 * 2**n for n in range(4))
    assert pause_before(30, None) <= 5.0
    assert pause_before(0, "2") == 2.0
    assert pause_before(0, "9999") == 5.0
