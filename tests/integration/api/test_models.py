import hashlib
import io
import os
import socket
import time
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.contract.errors import InputRejected
from service.contract.leases import Claim
from service.contract.resources import claim_inspection, reject
from tests.integration.api.house import DATASET_FACTS, MODEL_FACTS, House, Served

LENET = {"name": "lenet5", "options": {"input_shape": [1, 28, 28], "num_classes": 10}}


def registered(house: House, files: Any = None, **changes: Any) -> Any:
    files = files or {"model.safetensors": house.upload()}
    return house.ann.post("/v1/models", json={"name": "m", "files": files, "architecture": LENET} | changes)


def test_a_model_is_registered_inspected_and_ready(house: House) -> None:
    answer = registered(house, labels={"team": "vision"})
    assert answer.status_code == 201
    model = answer.json()
    assert answer.headers["Location"] == f"/v1/models/{model['id']}"
    assert (model["state"], model["parameters"], model["labels"]) == ("inspecting", None, {"team": "vision"})
    first = house.ann.get(answer.headers["Location"])
    assert first.headers["Retry-After"] == "1"
    house.inspected(model["id"], MODEL_FACTS)
    ready = house.ann.get(answer.headers["Location"])
    assert "Retry-After" not in ready.headers
    assert (ready.json()["state"], ready.json()["parameters"]) == ("ready", 77754)
    assert ready.headers["ETag"] != first.headers["ETag"]
    same = house.ann.get(answer.headers["Location"], headers={"If-None-Match": ready.headers["ETag"]})
    assert same.status_code == 304


def test_a_dataset_shows_what_inspection_found(house: House) -> None:
    dataset = house.ann.get(f"/v1/datasets/{house.dataset()}").json()
    assert {key: dataset[key] for key in ("splits", "num_classes", "input_shape")} == {
        key: DATASET_FACTS[key] for key in ("splits", "num_classes", "input_shape")
    }


def test_a_rejected_model_says_why_in_the_shape_of_a_problem(house: House) -> None:
    model = house.model(ready=False)
    with house.services.database.write() as session:
        claim = claim_inspection(session, model, "wrk", 30)
        assert isinstance(claim, Claim)
        reject(session, claim, InputRejected("the file holds a pickle; save the state dict").fault())
    shown = house.ann.get(f"/v1/models/{model}").json()
    assert shown["state"] == "rejected"
    assert shown["error"] == {
        "type": "urn:stillhouse:problem:input_rejected",
        "title": "The file cannot be used",
        "status": 422,
        "detail": "the file holds a pickle; save the state dict",
        "code": "input_rejected",
        "request_id": None,
        "retryable": False,
        "errors": [],
    }


@pytest.mark.parametrize(
    ("name", "code", "phrase"),
    [
        ("model.onnx", "invalid_request", "torch.export"),
        ("weights.pkl", "invalid_request", "torch.export"),
        ("net.py", "invalid_request", "torch.export"),
        ("weights.bin", "invalid_request", "model.safetensors, checkpoint.pt"),
        ("model-00001-of-00002.safetensors", "invalid_request", "model.safetensors"),
    ],
)
def test_files_without_a_role_are_refused_by_name(house: House, name: str, code: str, phrase: str) -> None:
    answer = registered(house, files={name: house.upload()})
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, code)
    assert problem["errors"][0]["pointer"] == f"/files/{name}"
    assert phrase in problem["errors"][0]["detail"]


def test_weights_need_an_architecture_and_it_needs_its_shape(house: House) -> None:
    missing = registered(house, architecture=None)
    assert (missing.status_code, missing.json()["errors"][0]["pointer"]) == (422, "/architecture")
    shapeless = registered(house, architecture={"name": "lenet5", "options": {"num_classes": 10}})
    assert shapeless.json()["errors"][0]["pointer"] == "/architecture/options/input_shape"
    unknown = registered(house, architecture={"name": "lenet6"})
    assert unknown.json()["errors"][0]["pointer"] == "/architecture/name"
    assert "lenet5" in unknown.json()["errors"][0]["detail"]


def test_an_exported_network_needs_no_architecture_and_takes_none(house: House) -> None:
    files = {"model.pt2": house.upload()}
    assert registered(house, files=files, architecture=None).status_code == 201
    refused = registered(house, files=files)
    assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
    assert refused.json()["errors"][0]["pointer"] == "/architecture"
    both = registered(house, files=files | {"model.safetensors": house.upload()}, architecture=None)
    assert "exactly one of model.pt2, model.safetensors" in both.json()["detail"]


def test_an_upload_must_be_complete_and_ones_own(house: House) -> None:
    begun = house.ann.post("/v1/uploads", headers={"Upload-Complete": "?0", "Upload-Length": "9"}).json()["id"]
    answer = registered(house, files={"model.safetensors": begun})
    assert "has 0 of 9 bytes" in answer.json()["errors"][0]["detail"]
    theirs = registered(house, files={"model.safetensors": house.upload(client=house.bob)})
    nobodys = registered(house, files={"model.safetensors": "upl_" + "0" * 26})
    for refused in (theirs, nobodys):
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_request")
        assert "there is no upload" in refused.json()["detail"]


def test_a_file_of_another_model_makes_a_model_with_one_call(house: House) -> None:
    source = house.model(b"smaller")
    body = {"name": "copy", "files": {"model.pt2": f"{source}/model.safetensors"}}
    made = house.ann.post("/v1/models", json=body)
    assert made.status_code == 201, made.text
    (file,) = made.json()["files"]
    assert (file["path"], file["size"]) == ("model.pt2", len(b"smaller"))
    assert made.json()["state"] == "inspecting"
    house.ann.delete(f"/v1/models/{source}")
    assert house.ann.get(file["url"]).content == b"smaller"


def test_a_file_of_a_model_must_be_there_and_ones_own(house: House) -> None:
    source = house.model()
    absent = house.ann.post("/v1/models", json={"name": "a", "files": {"model.pt2": f"{source}/step-001.pt2"}})
    assert absent.status_code == 422
    assert absent.json()["errors"][0]["pointer"] == "/files/model.pt2"
    assert "has no file step-001.pt2; it has model.safetensors" in absent.json()["detail"]
    others = house.bob.post("/v1/models", json={"name": "a", "files": {"model.pt2": f"{source}/model.safetensors"}})
    assert (others.status_code, others.json()["detail"]) == (422, f"/files/model.pt2: there is no model {source}")


def test_two_files_of_weights_are_one_too_many(house: House) -> None:
    upload = house.upload()
    answer = registered(house, files={"model.safetensors": upload, "checkpoint.pt": upload})
    assert "exactly one" in answer.json()["detail"]
    dataset = house.ann.post("/v1/datasets", json={"name": "d", "files": {"data.csv": upload}})
    assert "data.npz, data.safetensors, data.parquet, images.zip" in dataset.json()["detail"]


def test_another_owners_model_is_as_absent_as_one_that_never_was(house: House) -> None:
    model, other = house.model(), "mdl_" + "0" * 26
    for method, path in [
        ("GET", ""), ("DELETE", ""), ("GET", "/files/model.safetensors"), ("GET", "/archive"),
    ]:  # fmt: skip
        theirs = house.bob.request(method, f"/v1/models/{model}{path}")
        nobodys = house.bob.request(method, f"/v1/models/{other}{path}")
        assert theirs.status_code == nobodys.status_code == 404
        assert theirs.json()["detail"].replace(model, "X") == nobodys.json()["detail"].replace(other, "X")
    assert house.bob.get("/v1/models").json()["items"] == []
    assert len(house.ann.get("/v1/models").json()["items"]) == 1


def test_a_model_that_an_unfinished_job_uses_is_not_deleted(house: House) -> None:
    model = house.model()
    job = house.job(teacher=model)
    refused = house.ann.delete(f"/v1/models/{model}")
    assert (refused.status_code, job in refused.json()["detail"]) == (409, True)
    house.ann.post(f"/v1/jobs/{job}/cancel")
    assert house.ann.delete(f"/v1/models/{model}").status_code == 204
    assert house.ann.get(f"/v1/models/{model}").status_code == 404


# Files -------------------------------------------------------------------------------------------

CONTENT = bytes(range(256)) * 10
FILE_SHA = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def url(house: House) -> str:
    return f"/v1/models/{house.model(CONTENT)}/files/model.safetensors"


def test_a_file_comes_with_its_digest(house: House, url: str) -> None:
    answer = house.ann.get(url)
    assert answer.content == CONTENT
    assert answer.headers["ETag"] == f'"{FILE_SHA}"'
    assert answer.headers["Repr-Digest"].startswith("sha-256=:")
    assert answer.headers["Content-Length"] == "2560"
    assert answer.headers["Content-Disposition"] == 'attachment; filename="model.safetensors"'
    head = house.ann.head(url)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["Content-Length"] == "2560"
    assert head.headers["ETag"] == answer.headers["ETag"]


@pytest.mark.parametrize(
    ("field", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=10-19", 10, 20),
        ("bytes=2550-", 2550, 2560),
        ("bytes=2550-99999", 2550, 2560),
        ("bytes=-7", 2553, 2560),
        ("bytes=-99999", 0, 2560),
    ],
)
def test_a_range_is_that_part_of_the_file(house: House, url: str, field: str, start: int, stop: int) -> None:
    answer = house.ann.get(url, headers={"Range": field})
    assert answer.status_code == 206
    assert answer.content == CONTENT[start:stop]
    assert answer.headers["Content-Range"] == f"bytes {start}-{stop - 1}/2560"
    assert answer.headers["Content-Length"] == str(stop - start)


@pytest.mark.parametrize("field", ["bytes=2560-", "bytes=-0", "bytes=99999-100000"])
def test_a_range_outside_the_file_is_a_problem_with_the_size(house: House, url: str, field: str) -> None:
    answer = house.ann.get(url, headers={"Range": field})
    assert (answer.status_code, answer.headers["Content-Range"]) == (416, "bytes */2560")
    assert answer.json()["code"] == "range_not_satisfiable"


@pytest.mark.parametrize("field", ["bytes=5-2", "bytes=0-1,4-5", "lines=1-2", "bytes=", "nonsense"])
def test_what_is_no_single_valid_range_gets_the_whole_file(house: House, url: str, field: str) -> None:
    answer = house.ann.get(url, headers={"Range": field})
    assert (answer.status_code, answer.content) == (200, CONTENT)


def test_conditions_name_the_digest(house: House, url: str) -> None:
    tag = f'"{FILE_SHA}"'
    assert house.ann.get(url, headers={"If-None-Match": f'"other", W/{tag}'}).status_code == 304
    assert house.ann.get(url, headers={"If-None-Match": '"other"'}).status_code == 200
    assert house.ann.get(url, headers={"Range": "bytes=0-1", "If-Range": tag}).status_code == 206
    assert house.ann.get(url, headers={"Range": "bytes=0-1", "If-Range": '"other"'}).status_code == 200
    assert house.ann.get(url, headers={"Range": "bytes=0-1", "If-Range": f"W/{tag}"}).status_code == 200
    assert house.ann.get(url, headers={"If-Match": '"other"'}).status_code == 412
    assert house.ann.get(url, headers={"If-Match": tag}).status_code == 200
    assert house.ann.get(url, headers={"If-Match": f"W/{tag}"}).status_code == 412


def test_a_list_of_tags_may_come_in_several_lines(house: House, url: str) -> None:
    tag = f'"{FILE_SHA}"'
    assert house.ann.get(url, headers=[("If-None-Match", '"other"'), ("If-None-Match", tag)]).status_code == 304
    assert house.ann.get(url, headers=[("If-Match", '"other"'), ("If-Match", tag)]).status_code == 200


@pytest.mark.parametrize("field", ["bytes=0-3", "bytes=99999-"])
def test_ranges_are_of_downloads_alone(house: House, url: str, field: str) -> None:
    answer = house.ann.head(url, headers={"Range": field})
    assert (answer.status_code, answer.headers["Content-Length"]) == (200, "2560")


def test_a_download_that_is_left_in_the_middle_closes_its_file(served: Served) -> None:
    model = served.house.model(b"x" * 30_000_000)
    (stored,) = served.client.get(f"/v1/models/{model}").json()["files"]
    path = served.house.services.storage.path(stored["sha256"])
    headers = dict(served.client.headers)
    small = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)]  # else the system may take in the whole file at once
    for rest in ("files/model.safetensors", "archive"):
        with (
            httpx.Client(
                base_url=served.client.base_url, headers=headers, transport=httpx.HTTPTransport(socket_options=small)
            ) as client,
            client.stream("GET", f"/v1/models/{model}/{rest}") as answer,
        ):
            chunks = answer.iter_raw()  # kept, since letting go of it closes the connection
            next(chunks)
            assert is_open(path)
        deadline = time.monotonic() + 10
        while is_open(path) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not is_open(path)


def is_open(path: Path) -> bool:
    return any(os.path.realpath(link) == str(path) for link in Path("/proc/self/fd").iterdir())


def test_an_empty_file_has_no_satisfiable_range(house: House) -> None:
    url = f"/v1/models/{house.model(b'')}/files/model.safetensors"
    assert house.ann.get(url).content == b""
    assert house.ann.get(url, headers={"Range": "bytes=0-"}).status_code == 416


def test_a_file_that_is_not_there_is_named(house: House, url: str) -> None:
    answer = house.ann.get(url.replace("model.safetensors", "other.txt"))
    assert (answer.status_code, "it has model.safetensors" in answer.json()["detail"]) == (404, True)


def test_the_archive_holds_every_file_and_is_the_same_each_time(house: House) -> None:
    model = house.model(CONTENT)
    one, two = (house.ann.get(f"/v1/models/{model}/archive") for _ in range(2))
    assert one.content == two.content
    with zipfile.ZipFile(io.BytesIO(one.content)) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == ["model.safetensors"]
        assert archive.read("model.safetensors") == CONTENT
    tagged = house.ann.get(f"/v1/models/{model}/archive", headers={"If-None-Match": one.headers["ETag"]})
    assert tagged.status_code == 304


def test_a_result_names_the_job_that_made_it(house: House) -> None:
    job = house.job()
    house.run(job)
    model = house.succeed(job)
    shown = house.ann.get(f"/v1/models/{model}").json()
    assert (shown["state"], shown["lineage"]) == ("ready", {"job_id": job})
    assert house.ann.get(f"/v1/models/{model}/files/model.safetensors").content == b"student weights"


def test_registration_rings_for_an_inspection(house: House) -> None:
    rung: list[tuple[str, str]] = []
    house.services.doorbell.ring = lambda queue, identifier: rung.append((queue, identifier))  # type: ignore[method-assign]
    model = house.model(ready=False)
    assert rung == [("inspections", model)]


def test_lists_page_newest_first_and_filter(house: House) -> None:
    made = [registered(house, labels={"n": str(n % 2), "k/x.y": "a:b"}).json()["id"] for n in range(7)]
    seen: list[str] = []
    url: str | None = "/v1/models?limit=3&label=k/x.y:a:b"
    pages = 0
    while url is not None:
        page = house.ann.get(url)
        seen += [item["id"] for item in page.json()["items"]]
        link = page.headers.get("Link")
        assert (link is None) == (page.json()["next_page_token"] is None)
        url = None if link is None else link.split(">")[0][1:]
        pages += 1
    assert pages == 3
    assert seen == sorted(made, reverse=True)
    odd = house.ann.get("/v1/models", params={"label": "n:1"}).json()["items"]
    assert [item["id"] for item in odd] == [made[5], made[3], made[1]]
    assert house.ann.get("/v1/models", params={"state": "ready"}).json()["items"] == []
    both = house.ann.get("/v1/models", params=[("state", "ready"), ("state", "inspecting")]).json()["items"]
    assert len(both) == 7


@pytest.mark.parametrize(
    ("query", "pointer"),
    [
        ("limit=0", "/query/limit"),
        ("limit=201", "/query/limit"),
        ("page_token=!!", "/query/page_token"),
        ("page_token=WzEsIDVd", "/query/page_token"),
        ("page_token=WzEsIm1kbF9cdWQ4MDAiXQ", "/query/page_token"),  # a lone surrogate, which no database takes
        ("page_token=WzEsIlx1MDAwMCJd", "/query/page_token"),  # NUL, which PostgreSQL does not take
        ("page_token=WzEsbnVsbF0", "/query/page_token"),
        ("label=nocolon", "/query/label"),
        ("label=%00:x", "/query/label"),
    ],
)
def test_wrong_queries_point_at_the_parameter(house: House, query: str, pointer: str) -> None:
    answer = house.ann.get(f"/v1/models?{query}")
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)


def test_a_page_token_outlives_the_entry_that_it_names(house: House) -> None:
    made = [registered(house).json()["id"] for _ in range(4)]
    token = house.ann.get("/v1/models?limit=2").json()["next_page_token"]
    house.ann.delete(f"/v1/models/{made[2]}")
    rest = house.ann.get("/v1/models", params={"limit": 2, "page_token": token}).json()["items"]
    assert [item["id"] for item in rest] == [made[1], made[0]]
