import base64
import hashlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from sqlalchemy import update

from service.api import reception
from service.api.expiry import expire_uploads
from service.contract.records import Upload
from tests.integration.api.house import House, Served

PARTIAL = {"Content-Type": "application/partial-upload"}


def digest_of(content: bytes) -> str:
    return f"sha-256=:{base64.b64encode(hashlib.sha256(content).digest()).decode()}:"


def begin(client: Any, **headers: str) -> str:
    answer = client.post("/v1/uploads", headers={"Upload-Complete": "?0", **headers})
    assert answer.status_code == 201, answer.text
    assert answer.headers["Upload-Complete"] == "?0"
    return str(answer.headers["Location"])


def append(client: Any, url: str, offset: int, content: Any, *, last: bool = False, **headers: str) -> httpx.Response:
    fields = {**PARTIAL, "Upload-Offset": str(offset), "Upload-Complete": "?1" if last else "?0", **headers}
    answer: httpx.Response = client.patch(url, content=content, headers=fields)
    return answer


def files_kept(house: House) -> list[str]:
    return [path.name for path in house.services.storage.root.rglob("*") if path.is_file()]


def test_a_plain_post_is_a_complete_upload(house: House) -> None:
    answer = house.ann.post("/v1/uploads", content=b"hello")
    assert answer.status_code == 201
    upload = answer.json()
    assert upload == {"id": upload["id"], "size": 5, "sha256": hashlib.sha256(b"hello").hexdigest()}
    assert answer.headers["Location"] == f"/v1/uploads/{upload['id']}"
    assert answer.headers["Upload-Complete"] == "?1"
    assert b"".join(house.services.storage.read(upload["sha256"])) == b"hello"
    assert files_kept(house) == [upload["sha256"]]


def test_an_empty_file_can_be_uploaded(house: House) -> None:
    answer = house.ann.post("/v1/uploads", content=b"")
    assert answer.json()["size"] == 0


def test_a_chunked_post_without_a_length_is_complete(house: House) -> None:
    def pieces() -> Iterator[bytes]:
        yield from (b"ab", b"", b"c" * 3_000_000)

    answer = house.ann.post("/v1/uploads", content=pieces())
    assert answer.json()["sha256"] == hashlib.sha256(b"ab" + b"c" * 3_000_000).hexdigest()


def test_an_upload_in_parts_is_the_whole_file(house: House) -> None:
    content = random.Random(0).randbytes(3_500_000)
    url = begin(house.ann, **{"Upload-Length": str(len(content)), "Repr-Digest": digest_of(content)})
    first = append(house.ann, url, 0, content[:1_234_567])
    assert first.status_code == 204
    assert first.headers["Upload-Offset"] == "1234567"
    stand = house.ann.head(url)
    assert stand.status_code == 204
    assert stand.headers["Upload-Offset"] == "1234567"
    assert stand.headers["Upload-Complete"] == "?0"
    assert stand.headers["Upload-Length"] == str(len(content))
    assert stand.headers["Cache-Control"] == "no-store"
    last = append(house.ann, url, 1_234_567, content[1_234_567:], last=True)
    assert last.status_code == 200
    assert last.json()["sha256"] == hashlib.sha256(content).hexdigest()
    done = house.ann.head(url)
    assert done.headers["Upload-Complete"] == "?1"
    assert done.headers["Repr-Digest"] == digest_of(content)


def test_the_hash_survives_a_restart_in_the_middle(house: House) -> None:
    url = begin(house.ann)
    append(house.ann, url, 0, b"first,")
    house.services.parts._hashers.clear()  # what a restart loses
    last = append(house.ann, url, 6, b"second", last=True)
    assert last.json()["sha256"] == hashlib.sha256(b"first,second").hexdigest()


def test_bytes_that_a_crash_left_uncounted_are_cut_off(house: House) -> None:
    url = begin(house.ann)
    append(house.ann, url, 0, b"counted")
    path = house.services.parts.path(url.rsplit("/", 1)[1])
    path.write_bytes(path.read_bytes() + b"torn")
    assert house.ann.head(url).headers["Upload-Offset"] == "7"
    assert append(house.ann, url, 7, b"!", last=True).json()["sha256"] == hashlib.sha256(b"counted!").hexdigest()


def test_bytes_that_the_disk_lost_are_asked_for_again(house: House) -> None:
    url = begin(house.ann)
    append(house.ann, url, 0, b"0123456789")
    house.services.parts.path(url.rsplit("/", 1)[1]).write_bytes(b"0123")
    assert house.ann.head(url).headers["Upload-Offset"] == "4"
    assert append(house.ann, url, 10, b"x").json()["expected-offset"] == 4
    assert append(house.ann, url, 4, b"456789", last=True).json()["sha256"] == hashlib.sha256(b"0123456789").hexdigest()


@pytest.mark.parametrize("offset", [0, 4, 6, 10**12])
def test_a_wrong_offset_is_told_the_right_one(house: House, offset: int) -> None:
    url = begin(house.ann)
    append(house.ann, url, 0, b"12345")
    answer = append(house.ann, url, offset, b"abc", last=True)
    assert answer.status_code == 409
    problem = answer.json()
    assert problem["type"] == "https://iana.org/assignments/http-problem-types#mismatching-upload-offset"
    assert (problem["expected-offset"], problem["provided-offset"]) == (5, offset)
    assert answer.headers["Upload-Offset"] == "5"
    assert house.ann.head(url).headers["Upload-Offset"] == "5"


def test_a_wrong_digest_is_refused_and_nothing_is_kept(house: House) -> None:
    answer = house.ann.post("/v1/uploads", content=b"hello", headers={"Repr-Digest": digest_of(b"other")})
    assert (answer.status_code, answer.json()["code"]) == (422, "digest_mismatch")
    url = begin(house.ann, **{"Repr-Digest": digest_of(b"other")})
    assert append(house.ann, url, 0, b"hello", last=True).json()["code"] == "digest_mismatch"
    assert house.ann.head(url).status_code == 404
    assert files_kept(house) == []
    with house.services.database.read() as session:
        assert session.query(Upload).count() == 0


def test_a_digest_may_come_with_the_last_part(house: House) -> None:
    url = begin(house.ann)
    digest = f"sha-512=:AAAA:, {digest_of(b'abc')}"
    assert append(house.ann, url, 0, b"abc", last=True, **{"Repr-Digest": digest}).status_code == 200
    url = begin(house.ann)
    assert append(house.ann, url, 0, b"abd", last=True, **{"Repr-Digest": digest}).json()["code"] == "digest_mismatch"


@pytest.mark.parametrize("field", ["sha-256=abc", "sha-256=:AAAA:", "sha-256=:!!!!:", "sha-256=::"])
def test_a_malformed_digest_is_refused_before_any_byte(house: House, field: str) -> None:
    answer = house.ann.post("/v1/uploads", content=b"hello", headers={"Repr-Digest": field})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/header/Repr-Digest"


def test_an_upload_that_ends_early_can_go_on(house: House) -> None:
    url = begin(house.ann, **{"Upload-Length": "10"})
    answer = append(house.ann, url, 0, iter([b"12345"]), last=True)
    assert (answer.status_code, answer.json()["code"]) == (400, "inconsistent_upload_length")
    assert house.ann.head(url).headers["Upload-Offset"] == "5"
    assert append(house.ann, url, 5, b"67890", last=True).status_code == 200


def test_a_last_part_of_the_wrong_announced_length_is_refused_at_once(house: House) -> None:
    url = begin(house.ann, **{"Upload-Length": "10"})
    answer = append(house.ann, url, 0, b"12345", last=True)
    assert answer.json()["code"] == "inconsistent_upload_length"
    assert house.ann.head(url).headers["Upload-Offset"] == "0"


@pytest.mark.parametrize("chunked", [False, True])
def test_bytes_beyond_the_announced_length_are_refused_and_not_kept(house: House, chunked: bool) -> None:
    url = begin(house.ann, **{"Upload-Length": "5"})
    append(house.ann, url, 0, b"123")
    answer = append(house.ann, url, 3, iter([b"45", b"6"]) if chunked else b"456")
    assert (answer.status_code, answer.json()["code"]) == (400, "inconsistent_upload_length")
    assert house.ann.head(url).headers["Upload-Offset"] == "3"
    assert append(house.ann, url, 3, b"45", last=True).json()["sha256"] == hashlib.sha256(b"12345").hexdigest()


def test_a_refused_request_settles_no_length(house: House) -> None:
    url = begin(house.ann)
    append(house.ann, url, 0, b"12345")
    refused = append(house.ann, url, 5, b"678", last=False, **{"Upload-Length": "6"})
    assert (refused.status_code, refused.json()["code"]) == (400, "inconsistent_upload_length")
    assert append(house.ann, url, 5, b"678", last=True).json()["size"] == 8


def test_two_lengths_that_differ_are_refused(house: House) -> None:
    answer = house.ann.post("/v1/uploads", content=b"12345", headers={"Upload-Length": "6"})
    assert (answer.status_code, answer.json()["code"]) == (400, "inconsistent_upload_length")
    assert files_kept(house) == []


def test_uploads_above_the_limit_are_refused(open_house: Callable[..., Any]) -> None:
    with open_house(max_upload_bytes=10) as house:
        announced = house.ann.post("/v1/uploads", headers={"Upload-Complete": "?0", "Upload-Length": "11"})
        assert announced.status_code == 413
        assert house.ann.post("/v1/uploads", content=b"x" * 11).status_code == 413
        assert house.ann.post("/v1/uploads", content=iter([b"x" * 11])).status_code == 413
        url = begin(house.ann)
        assert append(house.ann, url, 0, b"x" * 11).status_code == 413
        assert append(house.ann, url, 0, b"x", last=False, **{"Upload-Length": "11"}).status_code == 413
        assert append(house.ann, url, 0, b"x" * 10, last=True).status_code == 200
        assert len(files_kept(house)) == 1


def test_a_part_must_say_its_type(house: House) -> None:
    url = begin(house.ann)
    answer = house.ann.patch(url, content=b"x", headers={"Upload-Offset": "0", "Content-Type": "text/plain"})
    assert answer.status_code == 415


def test_a_part_must_say_its_offset(house: House) -> None:
    url = begin(house.ann)
    answer = house.ann.patch(url, content=b"x", headers=PARTIAL)
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/header/Upload-Offset")


def test_nothing_is_added_to_a_complete_upload(house: House) -> None:
    upload = house.upload(b"whole")
    answer = append(house.ann, f"/v1/uploads/{upload}", 5, b"more")
    assert (answer.status_code, answer.json()["code"]) == (409, "completed_upload")
    assert len(files_kept(house)) == 1


def test_uploads_belong_to_their_owner(house: House) -> None:
    url = begin(house.ann)
    assert house.bob.head(url).status_code == 404
    assert append(house.bob, url, 0, b"x").status_code == 404
    assert house.bob.delete(url).status_code == 404
    assert house.ann.head(url).status_code == 204


def test_a_deleted_upload_is_gone_but_not_what_was_made_of_it(house: House) -> None:
    url = begin(house.ann)
    append(house.ann, url, 0, b"abc")
    assert house.ann.delete(url).status_code == 204
    assert house.ann.delete(url).status_code == 404
    assert files_kept(house) == []
    upload = house.upload(b"weights")
    model = house.ann.post(
        "/v1/models",
        json={
            "name": "m",
            "files": {"model.safetensors": upload},
            "architecture": {"name": "lenet5", "options": {"input_shape": [1, 28, 28], "num_classes": 10}},
        },
    ).json()["id"]
    assert house.ann.delete(f"/v1/uploads/{upload}").status_code == 204
    assert house.ann.get(f"/v1/models/{model}/files/model.safetensors").content == b"weights"
    assert house.ann.delete(f"/v1/models/{model}").status_code == 204
    assert files_kept(house) == []


def test_the_same_bytes_twice_lie_once_and_stay_while_one_needs_them(house: House) -> None:
    one, two = house.upload(b"same"), house.upload(b"same")
    assert len(files_kept(house)) == 1
    house.ann.delete(f"/v1/uploads/{one}")
    assert len(files_kept(house)) == 1
    house.ann.delete(f"/v1/uploads/{two}")
    assert files_kept(house) == []


def test_forgotten_uploads_expire(open_house: Callable[..., Any]) -> None:
    with open_house(upload_expiry_seconds=0.2) as house:
        house.upload(b"never used")
        url = begin(house.ann)
        append(house.ann, url, 0, b"abc")
        deadline = time.monotonic() + 10
        while files_kept(house) and time.monotonic() < deadline:
            time.sleep(0.05)
            expire_uploads(house.services)
        assert files_kept(house) == []
        assert house.ann.head(url).status_code == 404


def test_an_upload_that_is_being_written_does_not_expire(house: House) -> None:
    url = begin(house.ann)
    with house.services.database.write() as session:
        session.execute(update(Upload).values(updated_at=0.0))
    part = house.services.parts.open(url.rsplit("/", 1)[1])
    assert expire_uploads(house.services) == 0
    part.close()
    assert expire_uploads(house.services) == 1


# Over a real socket ------------------------------------------------------------------------------


def send_and_break(served: Served, url: str, offset: int, content: bytes, *, arrive: int, length: int) -> None:
    """Announce `length` bytes, send `arrive` of them, and break the connection."""
    head = (
        f"PATCH {url} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {served.house.keys['ann']}\r\n"
        f"Content-Type: application/partial-upload\r\nUpload-Offset: {offset}\r\nUpload-Complete: ?1\r\n"
        f"Content-Length: {length}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(head.encode() + content[:arrive])


def settled_offset(served: Served, url: str) -> int:
    """Return the upload's offset once the broken request has let go of it."""
    for _ in range(500):
        answer = append(served.client, url, 10**9, b"")
        if answer.json()["code"] == "wrong_offset":
            return int(answer.json()["expected-offset"])
        time.sleep(0.01)
    raise AssertionError("the broken request never let go")


@pytest.mark.parametrize("seed", range(4))
def test_an_upload_cut_at_random_places_ends_up_whole(served: Served, seed: int) -> None:
    dice = random.Random(seed)
    content = dice.randbytes(dice.randrange(2_000_000, 5_000_000))
    url = begin(served.client, **{"Upload-Length": str(len(content)), "Repr-Digest": digest_of(content)})
    offset = 0
    for _ in range(6):
        left = len(content) - offset
        send_and_break(served, url, offset, content[offset:], arrive=dice.randrange(left // 3 + 1), length=left)
        reached = settled_offset(served, url)
        assert offset <= reached <= len(content)
        offset = reached
    assert offset > 0
    last = append(served.client, url, offset, content[offset:], last=True)
    while last.status_code == 409:  # the last broken request was heard of only now
        offset = settled_offset(served, url)
        last = append(served.client, url, offset, content[offset:], last=True)
    assert (last.status_code, last.json()["sha256"]) == (200, hashlib.sha256(content).hexdigest())


def test_a_post_that_breaks_leaves_nothing(served: Served) -> None:
    head = (
        f"POST /v1/uploads HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {served.house.keys['ann']}\r\n"
        "Content-Length: 4000000\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(head.encode() + b"x" * 2_000_000)
        deadline = time.monotonic() + 10
        while not files_kept(served.house) and time.monotonic() < deadline:
            time.sleep(0.01)
    while files_kept(served.house) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert files_kept(served.house) == []
    with served.house.services.database.read() as session:
        assert session.query(Upload).count() == 0


def test_of_two_writers_one_writes_and_the_other_is_told(served: Served) -> None:
    url = begin(served.client)
    started, finish = threading.Event(), threading.Event()

    def slowly() -> Iterator[bytes]:
        yield b"a" * 2_000_000
        started.set()
        finish.wait(10)
        yield b"b" * 1_000_000

    answers: list[httpx.Response] = []
    writer = threading.Thread(target=lambda: answers.append(append(served.client, url, 0, slowly(), last=True)))
    writer.start()
    assert started.wait(10)
    headers = {"Authorization": f"Bearer {served.house.keys['ann']}"}
    with httpx.Client(base_url=served.client.base_url, headers=headers) as second:
        time.sleep(0.1)
        refused = append(second, url, 0, b"intruder", last=True)
        assert (refused.status_code, refused.json()["code"]) == (409, "upload_being_written")
        assert refused.json()["retryable"]
        assert second.delete(url).status_code == 409
    finish.set()
    writer.join(20)
    expected = hashlib.sha256(b"a" * 2_000_000 + b"b" * 1_000_000).hexdigest()
    assert answers[0].json()["sha256"] == expected


def test_a_sender_that_falls_silent_loses_the_lock_and_keeps_its_bytes(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reception, "SILENCE_SECONDS", 0.2)
    url = begin(served.client)
    head = (
        f"PATCH {url} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {served.house.keys['ann']}\r\n"
        "Content-Type: application/partial-upload\r\nUpload-Offset: 0\r\nContent-Length: 100\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", served.port)) as connection:
        connection.sendall(head.encode() + b"12345")
        connection.settimeout(10)
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(65536)
        assert b"upload_stalled" in answer
        assert settled_offset(served, url) == 5
