"""Analyses as the HTTP side sees them: submitted, shown, and read; they make no model."""

from typing import Any

import pytest

from service.contract import jobs
from tests.integration.api.house import House

REPORT = {"kind": "analysis", "models": [], "findings": []}


def request(house: House, *models: str, dataset: str | None = None, **config: Any) -> dict[str, Any]:
    return {
        "type": "analyze",
        "models": list(models or [house.model()]),
        "dataset": dataset or house.dataset(),
        "config": config,
    }


def ended(house: House) -> str:
    job = str(house.ann.post("/v1/jobs", json=request(house)).json()["id"])
    house.run(job)
    with house.services.database.write() as session:
        jobs.publish(session, house.claims[job], None, REPORT)
    return job


def test_an_analysis_is_accepted_with_its_defaults(house: House) -> None:
    answer = house.ann.post("/v1/jobs", json=request(house))
    assert answer.status_code == 201, answer.text
    shown = answer.json()
    assert (shown["type"], shown["state"], shown["result"]) == ("analyze", "queued", None)
    assert shown["spec"]["config"]["criteria"][0]["name"] == "output_kl"


def test_asking_first_says_what_it_would_be(house: House) -> None:
    one, other = house.model(b"one"), house.model(b"other")
    answer = house.ann.post("/v1/jobs?validate_only=true", json=request(house, one, other, criteria=["l2", "taylor"]))
    told = answer.json()
    assert (answer.status_code, told["valid"], told["reachable"]) == (200, True, True)
    assert told["resolved"]["models"] == [one, other]
    assert told["warnings"] == [f"the units of {each} are not known; only its outputs will be measured"
                                for each in (one, other)]  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "facts", "pointer"),
    [
        ({"models": []}, {}, "/models"),
        ({"models": ["mdl_" + 26 * "0"]}, {}, "/models/0"),
        ({"dataset": "dat_" + 26 * "0"}, {}, "/dataset"),
        ({"config": {"criteria": ["nonsense"]}}, {}, "/config/criteria/0"),
        ({"config": {"criteria": [{"name": "taylor"}]}}, {"labelled": False}, "/config/criteria/0"),
        ({"config": {"split": "test"}}, {"splits": {"train": 100, "validation": 10, "test": 0}}, "/config/split"),
        ({}, {"input_shape": [3, 9, 9]}, "/dataset"),
    ],
)
def test_a_wrong_field_is_pointed_at(
    house: House, changes: dict[str, Any], facts: dict[str, Any], pointer: str
) -> None:
    answer = house.ann.post("/v1/jobs", json=request(house, dataset=house.dataset(**facts)) | changes)
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, "invalid_request")
    assert problem["errors"][0]["pointer"].startswith(pointer)


def test_an_analysis_of_somebody_elses_model_is_refused(house: House) -> None:
    answer = house.bob.post("/v1/jobs", json=request(house))
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/models/0")


def test_it_waits_for_the_inspection_of_both_models(house: House) -> None:
    one, other = house.model(b"one"), house.model(b"other", ready=False)
    shown = house.ann.post("/v1/jobs", json=request(house, one, other)).json()
    assert (shown["state"], other in shown["reason"]) == ("queued", True)


def test_an_ended_analysis_has_a_report_and_no_model(house: House) -> None:
    job = ended(house)
    shown = house.ann.get(f"/v1/jobs/{job}").json()
    assert (shown["state"], shown["progress"]["fraction"]) == ("succeeded", 1.0)
    assert shown["result"] == {"model_id": None, "report": f"/v1/jobs/{job}/report"}
    assert "result" not in shown["links"]
    assert house.ann.get("/v1/jobs?state=succeeded").json()["items"] == [shown]


def test_its_report_is_json_whatever_is_accepted(house: House) -> None:
    job = ended(house)
    for accept in ("application/json", "text/html,*/*;q=0.5", "text/html"):
        answer = house.ann.get(f"/v1/jobs/{job}/report", headers={"Accept": accept})
        assert (answer.status_code, answer.json()) == (200, REPORT)
    again = house.ann.get(f"/v1/jobs/{job}/report", headers={"If-None-Match": answer.headers["ETag"]})
    assert again.status_code == 304
