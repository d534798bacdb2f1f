import hashlib

import pytest

from tests.integration.api.house import House

PAGE = b'<!DOCTYPE html>\n<html lang="en"><title>Student</title></html>\n'
HTML = {"Accept": "text/html"}


@pytest.fixture
def job(house: House) -> str:
    found = house.job()
    house.run(found)
    house.succeed(found, report_html=PAGE)
    return found


def test_who_accepts_html_gets_the_page_and_who_does_not_the_json(house: House, job: str) -> None:
    page = house.ann.get(f"/v1/jobs/{job}/report", headers=HTML)
    assert (page.status_code, page.content) == (200, PAGE)
    assert page.headers["Content-Type"] == "text/html; charset=utf-8"
    assert page.headers["Content-Length"] == str(len(PAGE))
    for accepted in ("*/*", "application/json", "application/json, text/html;q=0.5"):
        answer = house.ann.get(f"/v1/jobs/{job}/report", headers={"Accept": accepted})
        assert answer.headers["Content-Type"] == "application/json"
        assert answer.json()["split"] == "test"
    assert "Accept" in answer.headers["Vary"]
    assert "Accept" in page.headers["Vary"]


def test_a_browser_may_run_and_load_nothing_for_the_page(house: House, job: str) -> None:
    headers = house.ann.get(f"/v1/jobs/{job}/report", headers=HTML).headers
    policy = [directive.strip() for directive in headers["Content-Security-Policy"].split(";")]
    assert "default-src 'none'" in policy
    assert "sandbox" in policy
    assert "frame-ancestors 'none'" in policy
    assert not any(directive.startswith(("script-src", "connect-src")) for directive in policy)
    assert headers["X-Content-Type-Options"] == "nosniff"


def test_each_representation_has_its_own_tag(house: House, job: str) -> None:
    url = f"/v1/jobs/{job}/report"
    page, data = house.ann.get(url, headers=HTML), house.ann.get(url)
    assert page.headers["ETag"] == f'"{hashlib.sha256(PAGE).hexdigest()}"' != data.headers["ETag"]
    same = house.ann.get(url, headers={**HTML, "If-None-Match": page.headers["ETag"]})
    assert (same.status_code, same.content, same.headers["ETag"]) == (304, b"", page.headers["ETag"])
    assert "Content-Security-Policy" in same.headers
    other = house.ann.get(url, headers={**HTML, "If-None-Match": data.headers["ETag"]})
    assert other.status_code == 200


def test_the_page_is_as_private_as_the_job(house: House, job: str) -> None:
    assert house.bob.get(f"/v1/jobs/{job}/report", headers=HTML).status_code == 404


def test_there_is_no_page_before_the_job_succeeded(house: House) -> None:
    early = house.ann.get(f"/v1/jobs/{house.job()}/report", headers=HTML)
    assert (early.status_code, early.headers["Content-Type"]) == (409, "application/problem+json")


def test_when_the_result_is_deleted_the_page_is_gone_and_the_json_stays(house: House) -> None:
    job = house.job()
    house.run(job)
    model = house.succeed(job, report_html=PAGE)
    assert house.ann.delete(f"/v1/models/{model}").status_code == 204
    gone = house.ann.get(f"/v1/jobs/{job}/report", headers=HTML)
    assert gone.status_code == 404
    assert "ask for application/json" in gone.json()["detail"]
    assert house.ann.get(f"/v1/jobs/{job}/report").status_code == 200


def test_the_document_names_both_representations_and_what_is_in_the_report(house: House) -> None:
    document = house.ann.get("/openapi.json").json()
    answer = document["paths"]["/v1/jobs/{job_id}/report"]["get"]["responses"]["200"]
    assert set(answer["content"]) == {"application/json", "text/html"}
    assert {"ETag", "Vary"} <= set(answer["headers"])
    schemas = document["components"]["schemas"]
    assert {"ByClass", "ByInput", "Pruning", "PruningStep", "Contender", "Advantage"} <= set(schemas)
