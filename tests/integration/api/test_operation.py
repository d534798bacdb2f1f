import shutil
import threading
from collections.abc import Callable
from typing import Any

import pytest
from jsonschema_rs import validator_for

from service.api.examples import EXAMPLES
from service.contract.catalogue import ARCHITECTURES
from service.contract.criteria import CRITERIA
from service.contract.errors import Unavailable
from service.contract.objectives import OBJECTIVES
from service.contract.records import WorkerRecord
from tests.integration.api.house import House


def test_the_front_page_links_documentation_and_health(house: House) -> None:
    page = house.ann.get("/", headers={"Authorization": ""})
    assert page.headers["Content-Type"].startswith("text/html")
    for link in ("/docs", "/livez", "/readyz"):
        assert f'href="{link}"' in page.text


def test_being_alive_touches_nothing(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    house.services.database.close()
    shutil.rmtree(house.services.settings.data_dir)
    assert house.ann.get("/livez").json() == {"status": "alive"}


def test_a_whole_house_is_ready(house: House) -> None:
    ready = house.ann.get("/readyz").json()
    assert ready["status"] == "ready"
    assert {check["name"]: check["ok"] for check in ready["checks"]} == {
        "database": True, "broker": True, "storage": True, "disk": True, "jail": True,
    }  # fmt: skip


def told_of_the_jail(house: House) -> str:
    return next(str(check["detail"]) for check in house.ann.get("/readyz").json()["checks"] if check["name"] == "jail")


def test_readiness_shows_what_confines_the_readers(house: House) -> None:
    assert told_of_the_jail(house) == "no inspection worker is alive"
    closed = {"landlock": "ABI 7", "seccomp": "allow-list, x86_64", "refuses_files": True}
    rows = [("inspections", closed), ("inspections", closed), ("jobs", {"landlock": "not offered"})]
    with house.services.database.write() as session:
        for i, (name, jail) in enumerate(rows):
            session.add(WorkerRecord(id=f"wrk_{i}", queue=name, facts={"jail": jail}))
    assert told_of_the_jail(house) == "2 inspecting: landlock ABI 7, seccomp allow-list, x86_64, no gaps"
    with house.services.database.write() as session:
        open_one = {"landlock": "not offered: switched off", "refuses_files": False, "refuses_network": True}
        session.add(WorkerRecord(id="wrk_3", queue="inspections", facts={"jail": open_one}))
    assert "1 inspecting: landlock not offered: switched off, gaps: refuses_files" in told_of_the_jail(house)


def failing(answer: Any) -> list[str]:
    problem = answer.json()
    assert (answer.status_code, problem["code"], problem["retryable"]) == (503, "not_ready", True)
    assert answer.headers["Content-Type"] == "application/problem+json"
    names = [check["name"] for check in problem["checks"] if not check["ok"]]
    assert all(name in problem["detail"] for name in names)
    return names


def test_readiness_names_what_is_wrong(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise Unavailable("the broker does not answer")

    monkeypatch.setattr("service.api.health.depth", broken)
    assert failing(house.ann.get("/readyz")) == ["broker"]


def test_a_storage_that_is_gone_is_not_ready(house: House) -> None:
    shutil.rmtree(house.services.storage.root)
    assert failing(house.ann.get("/readyz")) == ["storage", "disk"]


def test_a_full_disk_is_not_ready_and_takes_no_uploads(open_house: Callable[..., Any]) -> None:
    with open_house() as house:
        object.__setattr__(house.services.settings, "min_free_bytes", 2**60)
        assert failing(house.ann.get("/readyz")) == ["disk"]
        refused = house.ann.post("/v1/uploads", content=b"x")
        assert (refused.status_code, refused.json()["code"]) == (503, "unavailable")


def test_a_check_that_hangs_is_given_up(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    release = threading.Event()
    monkeypatch.setattr("service.api.health.CHECK_SECONDS", 0.1)
    monkeypatch.setattr("service.api.health.depth", lambda *_: release.wait(10))
    assert failing(house.ann.get("/readyz")) == ["broker"]
    release.set()


def test_metrics_count_requests_by_route_and_jobs_by_state(house: House) -> None:
    job = house.job()
    house.ann.get(f"/v1/jobs/{job}")
    text = house.ann.get("/metrics").text
    assert 'stillhouse_jobs{state="queued"} 1.0' in text
    assert 'stillhouse_jobs{state="succeeded"} 0.0' in text
    assert 'stillhouse_http_request_seconds_count{method="GET",route="/v1/jobs/{job_id}",status="200"} 1.0' in text
    assert job not in text


def test_the_catalogue_lists_names_with_schemas(house: House) -> None:
    architectures = house.ann.get("/v1/architectures").json()["items"]
    assert [entry["name"] for entry in architectures] == list(ARCHITECTURES)
    assert all(entry["options"]["type"] == "object" for entry in architectures)
    assert [entry["name"] for entry in house.ann.get("/v1/criteria").json()["items"]] == list(CRITERIA)
    objectives = house.ann.get("/v1/objectives").json()["items"]
    assert [entry["name"] for entry in objectives] == list(OBJECTIVES)
    assert [entry["name"] for entry in objectives if entry["needs_labels"]] == ["dkd"]
    assert all(entry["formula"] and entry["source"] and entry["task"] for entry in objectives)
    kd = objectives[0]
    assert (kd["name"], kd["options"]["properties"]["temperature"]["default"]) == ("kd", 3.0)
    assert kd["presets"]["cifar100"] == {"temperature": 4.0, "alpha": 0.1}


def test_workers_are_listed_and_hide_what_others_run(house: House) -> None:
    job = house.job()
    with house.services.database.write() as session:
        session.add(WorkerRecord(id="wrk_1", queue="jobs", facts={"device": "cpu"}, job_id=job))
    (mine,) = house.ann.get("/v1/workers").json()["items"]
    (theirs,) = house.bob.get("/v1/workers").json()["items"]
    assert (mine["alive"], mine["busy"], mine["job_id"]) == (True, True, job)
    assert (theirs["busy"], theirs["job_id"]) == (True, None)


# The document ------------------------------------------------------------------------------------


@pytest.fixture
def document(house: House) -> Any:
    return house.ann.get("/openapi.json").json()


def operations(document: Any) -> list[tuple[str, Any]]:
    return [
        (f"{method} {path}", operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def test_the_document_is_openapi_3_1_and_names_every_operation_once(document: Any) -> None:
    assert document["openapi"].startswith("3.1")
    names = [operation["operationId"] for _, operation in operations(document)]
    assert len(names) == len(set(names))
    assert all(operation.get("description") for _, operation in operations(document))


def test_every_body_has_an_example(document: Any) -> None:
    lacking = [
        f"{name} {status} {media}"
        for name, operation in operations(document)
        for status, answer in [*operation["responses"].items(), ("request", operation.get("requestBody", {}))]
        for media, content in answer.get("content", {}).items()
        if "example" not in content and "examples" not in content
    ]
    assert lacking == []


def test_every_example_fits_its_schema(document: Any) -> None:
    for name, operation in operations(document):
        for answer in [*operation["responses"].values(), operation.get("requestBody", {})]:
            for content in answer.get("content", {}).values():
                if content.get("schema", {}).get("type") == "string":
                    continue
                schema = content["schema"] | {"components": document["components"]}
                given = [entry["value"] for entry in content.get("examples", {}).values()] + (
                    [content["example"]] if "example" in content else []
                )
                for example in given:
                    problems = [str(error) for error in validator_for(schema).iter_errors(example)]
                    assert problems == [], name


def test_every_operation_tells_its_errors_and_its_request_id(document: Any) -> None:
    for name, operation in operations(document):
        answers = operation["responses"]
        assert all("X-Request-Id" in answer["headers"] for answer in answers.values()), name
        if "/v1/" not in name:
            continue
        assert {"401", "403", "422", "500", "503"} <= set(answers), name
        assert operation["security"] == [{"ApiKey": []}], name
        if "{" in name:
            assert "404" in answers, name
        if name.startswith("post") and "requestBody" in operation and "uploads" not in name:
            assert {"400", "413", "415"} <= set(answers), name
        for status, answer in answers.items():
            if int(status) >= 400:
                assert list(answer["content"]) == ["application/problem+json"], name


def test_no_example_is_left_over(document: Any) -> None:
    assert set(EXAMPLES) <= set(document["components"]["schemas"])
