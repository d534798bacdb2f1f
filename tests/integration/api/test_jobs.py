import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import func, select, update

from service.contract import jobs
from service.contract.database import clock
from service.contract.errors import Diverged
from service.contract.records import JobRecord, WorkerRecord
from tests.integration.api.house import House, Served


def test_a_job_is_accepted_with_its_defaults_filled_in(house: House) -> None:
    answer = house.ann.post("/v1/jobs", json=house.request(labels={"team": "vision"}))
    assert answer.status_code == 201
    job = answer.json()
    assert answer.headers["Location"] == f"/v1/jobs/{job['id']}"
    assert (job["state"], job["done"], job["attempt"], job["queue_position"]) == ("queued", False, 1, 1)
    assert job["spec"]["student"]["architecture"] == {
        "name": "resnet8",
        "options": {"input_shape": [1, 8, 8], "num_classes": 10},
    }
    assert job["spec"]["config"]["training"]["optimizer"]["name"] == "adamw"
    assert (job["labels"], job["result"], job["error"]) == ({"team": "vision"}, None, None)
    assert house.ann.get(answer.headers["Location"]).json() == job


def test_a_job_is_rung_only_after_its_inputs_are_ready(house: House) -> None:
    rung: list[tuple[str, str]] = []
    house.services.doorbell.ring = lambda queue, identifier: rung.append((queue, identifier))  # type: ignore[method-assign]
    model = house.model(ready=False)
    waiting = house.job(teacher=model)
    assert ("jobs", waiting) not in rung
    assert f"waits for the inspection of {model}" in house.ann.get(f"/v1/jobs/{waiting}").json()["reason"]
    ready = house.job()
    assert ("jobs", ready) in rung


def test_a_broker_that_is_down_does_not_keep_a_job_from_being_accepted(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise OSError("no broker")

    monkeypatch.setattr("service.api.doorbell.ring", broken)
    assert house.ann.post("/v1/jobs", json=house.request()).status_code == 201
    house.services.doorbell.flush()


@pytest.mark.parametrize(
    ("changes", "pointer"),
    [
        ({"seed": -1}, "/seed"),
        ({"surprise": 1}, "/surprise"),
        ({"config": {"objective": {"temperature": 0}}}, "/config/objective/temperature"),
        ({"config": {"objective": {"alpha": 1.5}}}, "/config/objective/alpha"),
        ({"config": {"training": {"optimizer": {"name": "sgd", "lr": -1}}}}, "/config/training/optimizer/lr"),
        ({"config": {"training": {"optimizer": {"name": "lion"}}}}, "/config/training/optimizer"),
        ({"config": {"training": {"epochs": 0}}}, "/config/training/epochs"),
        ({"student": {"architecture": {"name": "nonet"}}}, "/student/architecture/name"),
        ({"student": {"architecture": {"name": "resnet8", "options": {"x": 1}}}}, "/student/architecture/options/x"),
        ({"student": {"architecture": {"name": "resnet8", "options": {"num_classes": 7}}}},
         "/student/architecture/options/num_classes"),
        ({"student": {"architecture": {"name": "resnet8", "options": {"input_shape": [3, 8, 8]}}}},
         "/student/architecture/options/input_shape"),
        ({"student": {}}, "/student"),
        ({"student": {"model": "mdl_" + "0" * 26}}, "/student/model"),
        ({"teacher": "mdl_" + "0" * 26}, "/teacher"),
        ({"dataset": "dat_" + "0" * 26}, "/dataset"),
        ({"labels": {"": "x"}}, "/labels/"),
    ],
)  # fmt: skip
def test_a_wrong_field_is_pointed_at(house: House, changes: dict[str, Any], pointer: str) -> None:
    answer = house.ann.post("/v1/jobs", json=house.request(**changes))
    problem = answer.json()
    assert (answer.status_code, problem["code"]) == (422, "invalid_request")
    assert problem["errors"][0]["pointer"].startswith(pointer)


def test_an_unknown_type_is_told_the_known_ones(house: House) -> None:
    answer = house.ann.post("/v1/jobs", json={"type": "shrinkify"})
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, "/type")
    assert "known: distill" in answer.json()["detail"]


def test_what_comes_later_is_not_available_rather_than_faked(house: House) -> None:
    job = f"/v1/jobs/{house.job()}"
    kept = house.ann.post(f"{job}/cancel", json={"keep": "checkpoint"})
    assert (kept.status_code, kept.json()["code"]) == (422, "not_available")
    assert house.ann.get(job).json()["state"] == "queued"


def test_a_job_pauses_and_resumes(house: House) -> None:
    job_id = house.job()
    path = f"/v1/jobs/{job_id}"
    queued = house.ann.get(path).json()
    assert queued["links"]["pause"] == f"{path}/pause"
    paused = house.ann.post(f"{path}/pause")
    assert (paused.status_code, paused.json()["state"], paused.json()["done"]) == (202, "paused", False)
    assert paused.json()["links"]["resume"] == f"{path}/resume"
    assert house.ann.post(f"{path}/resume").json()["state"] == "queued"
    house.run(job_id)
    assert house.ann.post(f"{path}/pause").json()["state"] == "pausing"
    refused = house.ann.post(f"{path}/resume")
    assert (refused.status_code, refused.json()["code"]) == (409, "conflict")
    assert house.bob.post(f"{path}/pause").status_code == 404


@pytest.mark.parametrize(
    ("facts", "config", "pointer"),
    [
        ({"labelled": False, "num_classes": None}, {}, "/config/objective/alpha"),
        ({"labelled": False, "num_classes": None}, {"objective": {"alpha": 0}, "control": True}, "/config/control"),
        ({"input_shape": [3, 8, 8]}, {}, "/dataset"),
        ({"num_classes": 11}, {}, "/dataset"),
        ({"splits": {"train": 0, "validation": 1, "test": 1}}, {}, "/dataset"),
        ({"splits": {"train": 9, "validation": 0, "test": 1}}, {}, "/config/training/select"),
    ],
)
def test_a_dataset_that_does_not_fit_is_refused(
    house: House, facts: dict[str, Any], config: dict[str, Any], pointer: str
) -> None:
    answer = house.ann.post("/v1/jobs", json=house.request(dataset=house.dataset(**facts), config=config))
    assert (answer.status_code, answer.json()["errors"][0]["pointer"]) == (422, pointer)


def test_unlabelled_data_distils_with_alpha_zero(house: House) -> None:
    dataset = house.dataset(labelled=False, num_classes=None)
    body = house.request(dataset=dataset, config={"objective": {"alpha": 0}})
    assert house.ann.post("/v1/jobs", json=body).status_code == 201


def test_another_owners_inputs_do_not_exist(house: House) -> None:
    body = house.request()
    body["teacher"] = house.model(client=house.bob)
    answer = house.ann.post("/v1/jobs", json=body)
    assert (answer.status_code, "there is no teacher" in answer.json()["detail"]) == (422, True)


def test_validating_makes_no_job(house: House) -> None:
    body = house.request(config={"objective": {"alpha": 1}})
    answer = house.ann.post("/v1/jobs?validate_only=true", json=body)
    assert answer.status_code == 200
    told = answer.json()
    assert (told["valid"], told["reachable"], told["floor"], told["pinned"]) == (True, True, None, [])
    assert told["resolved"]["student"]["architecture"]["options"]["num_classes"] == 10
    assert len(told["warnings"]) == 1
    assert house.ann.get("/v1/jobs").json()["items"] == []
    body["teacher"] = house.model(ready=False)
    assert house.ann.post("/v1/jobs?validate_only=true", json=body).json()["reachable"] is None


# Idempotency -------------------------------------------------------------------------------------


def test_the_same_key_and_body_give_the_same_answer_again(house: House) -> None:
    body, key = house.request(), {"Idempotency-Key": "k1"}
    first = house.ann.post("/v1/jobs", json=body, headers=key)
    again = house.ann.post("/v1/jobs", json=dict(reversed(body.items())), headers=key)
    assert (again.status_code, again.json()) == (201, first.json())
    assert again.headers["Location"] == first.headers["Location"]
    assert len(house.ann.get("/v1/jobs").json()["items"]) == 1


def test_the_same_key_with_another_body_is_refused(house: House) -> None:
    body, key = house.request(), {"Idempotency-Key": "k1"}
    house.ann.post("/v1/jobs", json=body, headers=key)
    other = house.ann.post("/v1/jobs", json=body | {"seed": 1}, headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reuse")
    model = house.ann.get(f"/v1/models/{body['teacher']}").json()
    elsewhere = house.ann.post(
        "/v1/models",
        json={"name": "m", "files": {"model.safetensors": house.upload()}, "architecture": model["architecture"]},
        headers=key,
    )
    assert elsewhere.json()["code"] == "idempotency_key_reuse"


def test_keys_belong_to_their_owner(house: House) -> None:
    key = {"Idempotency-Key": "k1"}
    mine = house.ann.post("/v1/jobs", json=house.request(), headers=key)
    body = house.request(teacher=house.model(client=house.bob), dataset=house.dataset(client=house.bob))
    theirs = house.bob.post("/v1/jobs", json=body, headers=key)
    assert (mine.status_code, theirs.status_code) == (201, 201)


def test_a_refused_request_may_be_mended_under_its_key(house: House) -> None:
    key, body = {"Idempotency-Key": "k1"}, house.request()
    assert house.ann.post("/v1/jobs", json=body | {"teacher": "mdl_" + "0" * 26}, headers=key).status_code == 422
    assert house.ann.post("/v1/jobs", json=body, headers=key).status_code == 201


def test_twenty_posts_at_once_make_one_job(house: House) -> None:
    body, key = house.request(), {"Idempotency-Key": "storm"}
    barrier = threading.Barrier(20)

    def post(_: int) -> Any:
        barrier.wait(10)
        return house.ann.post("/v1/jobs", json=body, headers=key)

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(post, range(20)))
    assert {answer.status_code for answer in answers} <= {201, 409}
    made = {answer.json()["id"] for answer in answers if answer.status_code == 201}
    assert len(made) == 1
    for answer in answers:
        if answer.status_code == 409:
            assert (answer.json()["code"], answer.json()["retryable"]) == ("idempotency_in_flight", True)
    with house.services.database.read() as session:
        assert session.scalar(select(func.count()).select_from(JobRecord)) == 1
    assert house.ann.post("/v1/jobs", json=body, headers=key).json()["id"] == made.pop()


def test_a_key_in_flight_is_a_conflict(house: House) -> None:
    body = house.request()
    with house.services.in_flight.hold("ann", "k1"):
        answer = house.ann.post("/v1/jobs", json=body, headers={"Idempotency-Key": "k1"})
    assert (answer.status_code, answer.json()["code"]) == (409, "idempotency_in_flight")
    assert "Retry-After" in answer.headers


# Showing -----------------------------------------------------------------------------------------


def test_a_job_says_when_no_worker_has_been_seen(house: House) -> None:
    job = house.job()
    assert house.ann.get(f"/v1/jobs/{job}").json()["reason"] == "no worker has been seen yet"
    with house.services.database.write() as session:
        session.add(WorkerRecord(id="wrk_1", queue="jobs", facts={}))
        session.flush()
    assert house.ann.get(f"/v1/jobs/{job}").json()["reason"] is None
    with house.services.database.write() as session:
        session.execute(update(WorkerRecord).values(heartbeat_at=clock() - 44))
    assert house.ann.get(f"/v1/jobs/{job}").json()["reason"] == "no worker has been seen for 40 s"


def test_places_in_the_queue_count_from_one(house: House) -> None:
    teacher, dataset = house.model(), house.dataset()
    made = [house.job(teacher=teacher, dataset=dataset) for _ in range(3)]
    assert [house.ann.get(f"/v1/jobs/{job}").json()["queue_position"] for job in made] == [1, 2, 3]
    house.run(made[0])
    listed = {item["id"]: item["queue_position"] for item in house.ann.get("/v1/jobs").json()["items"]}
    assert listed == {made[0]: None, made[1]: 1, made[2]: 2}


def test_a_job_that_did_not_change_is_not_sent_again(house: House) -> None:
    url = f"/v1/jobs/{house.job()}"
    first = house.ann.get(url)
    assert first.headers["Retry-After"] == "1"
    same = house.ann.get(url, headers={"If-None-Match": first.headers["ETag"]})
    assert (same.status_code, same.content, same.headers["Retry-After"]) == (304, b"", "1")
    house.run(url.rsplit("/", 1)[1])
    changed = house.ann.get(url, headers={"If-None-Match": first.headers["ETag"]})
    assert (changed.status_code, changed.json()["state"]) == (200, "running")


def test_a_finished_job_shows_its_result(house: House) -> None:
    job = house.job()
    house.run(job)
    model = house.succeed(job)
    answer = house.ann.get(f"/v1/jobs/{job}")
    shown = answer.json()
    assert "Retry-After" not in answer.headers
    assert (shown["state"], shown["done"], shown["progress"]["fraction"]) == ("succeeded", True, 1.0)
    assert shown["result"] == {"model_id": model, "report": f"/v1/jobs/{job}/report"}
    assert shown["durations"]["queued"] >= 0
    assert shown["durations"]["running"] >= 0


def test_a_failed_job_shows_its_error_as_a_problem_and_can_be_tried_again(house: House) -> None:
    job = house.job()
    house.run(job)
    with house.services.database.write() as session:
        jobs.fail(session, house.claims[job], Diverged("the loss became NaN at step 7; lower lr").fault())
    shown = house.ann.get(f"/v1/jobs/{job}").json()
    assert (shown["state"], shown["error"]["code"], shown["error"]["status"]) == ("failed", "diverged", 500)
    again = house.ann.post(f"/v1/jobs/{job}/retry")
    assert (again.status_code, again.json()["state"], again.json()["attempt"]) == (202, "queued", 2)
    assert again.json()["error"] is None
    refused = house.ann.post(f"/v1/jobs/{job}/retry")
    assert (refused.status_code, "queued" in refused.json()["detail"]) == (409, True)


def test_cancelling_is_idempotent(house: House) -> None:
    job = house.job()
    for _ in range(2):
        answer = house.ann.post(f"/v1/jobs/{job}/cancel")
        assert (answer.status_code, answer.json()["state"]) == (202, "cancelled")
    running = house.job()
    house.run(running)
    assert house.ann.post(f"/v1/jobs/{running}/cancel", json={}).json()["state"] == "cancelling"
    done = house.job()
    house.run(done)
    house.succeed(done)
    refused = house.ann.post(f"/v1/jobs/{done}/cancel")
    assert (refused.status_code, "succeeded" in refused.json()["detail"]) == (409, True)


def test_only_a_job_that_is_done_is_deleted_and_its_model_stays(house: House) -> None:
    job = house.job()
    house.run(job)
    house.says(job, "hello")
    assert house.ann.delete(f"/v1/jobs/{job}").status_code == 409
    model = house.succeed(job)
    assert house.ann.delete(f"/v1/jobs/{job}").status_code == 204
    assert house.ann.delete(f"/v1/jobs/{job}").status_code == 404
    assert house.ann.get(f"/v1/jobs/{job}/events").status_code == 404
    assert house.ann.get(f"/v1/models/{model}").status_code == 200


def test_jobs_belong_to_their_owner(house: House) -> None:
    job = house.job()
    for path in ("", "/events", "/metrics", "/report", "/logs"):
        assert house.bob.get(f"/v1/jobs/{job}{path}").status_code == 404
    for action in ("cancel", "retry", "pause", "resume"):
        assert house.bob.post(f"/v1/jobs/{job}/{action}").status_code == 404
    assert house.bob.delete(f"/v1/jobs/{job}").status_code == 404
    assert house.bob.get("/v1/jobs").json()["items"] == []


def test_jobs_are_filtered_by_state_and_label(house: House) -> None:
    teacher, dataset = house.model(), house.dataset()
    one = house.job(teacher=teacher, dataset=dataset, labels={"team": "a"})
    two = house.job(teacher=teacher, dataset=dataset, labels={"team": "b"})
    house.ann.post(f"/v1/jobs/{one}/cancel")
    found = house.ann.get("/v1/jobs?state=cancelled&label=team:a").json()["items"]
    assert [job["id"] for job in found] == [one]
    assert [job["id"] for job in house.ann.get("/v1/jobs?label=team:b").json()["items"]] == [two]
    assert house.ann.get("/v1/jobs?state=cancelled&label=team:b").json()["items"] == []


# Long poll ---------------------------------------------------------------------------------------


def test_a_long_poll_answers_when_the_job_changes(served: Served) -> None:
    house, job = served.house, served.house.job()
    first = served.client.get(f"/v1/jobs/{job}")
    timer = threading.Timer(0.4, house.run, [job])
    timer.start()
    began = time.monotonic()
    fields = {"Prefer": "wait=20", "If-None-Match": first.headers["ETag"]}
    answer = served.client.get(f"/v1/jobs/{job}", headers=fields)
    timer.join()
    assert 0.3 < time.monotonic() - began < 10
    assert (answer.status_code, answer.json()["state"]) == (200, "running")
    assert answer.headers["Preference-Applied"] == "wait=20"


def test_a_long_poll_that_saw_nothing_is_a_304(house: House) -> None:
    url = f"/v1/jobs/{house.job()}"
    tag = house.ann.get(url).headers["ETag"]
    began = time.monotonic()
    answer = house.ann.get(url, headers={"Prefer": "respond-async, wait=1", "If-None-Match": tag})
    assert time.monotonic() - began >= 0.9
    assert (answer.status_code, answer.headers["Preference-Applied"]) == (304, "wait=1")


def test_preferences_may_come_in_several_lines(house: House) -> None:
    answer = house.ann.get(f"/v1/jobs/{house.job()}", headers=[("Prefer", "respond-async"), ("Prefer", "wait=0")])
    assert answer.headers["Preference-Applied"] == "wait=0"


def test_a_long_poll_does_not_wait_for_what_is_known_or_done(house: House) -> None:
    job = house.job()
    began = time.monotonic()
    stale = house.ann.get(f"/v1/jobs/{job}", headers={"Prefer": "wait=30", "If-None-Match": '"old"'})
    house.ann.post(f"/v1/jobs/{job}/cancel")
    done = house.ann.get(f"/v1/jobs/{job}", headers={"Prefer": "wait=30"})
    assert time.monotonic() - began < 5
    assert (stale.status_code, done.json()["done"]) == (200, True)


# Events, metrics, report, log --------------------------------------------------------------------


def frames(text: str) -> list[dict[str, Any]]:
    found = []
    for block in text.split("\n\n"):
        lines = dict(line.split(": ", 1) for line in block.splitlines() if not line.startswith(":"))
        if lines:
            assert json.loads(lines["data"])["id"] == int(lines["id"])
            found.append({"id": int(lines["id"]), "event": lines["event"]} | json.loads(lines["data"]))
    return found


def test_events_page_in_order(house: House) -> None:
    job = house.job()
    house.run(job)
    house.says(job, *(f"line {n}" for n in range(7)))
    first = house.ann.get(f"/v1/jobs/{job}/events?limit=5").json()
    rest = house.ann.get(f"/v1/jobs/{job}/events", params={"page_token": first["next_page_token"]}).json()
    assert rest["next_page_token"] is None
    kinds = [event["kind"] for event in first["items"] + rest["items"]]
    assert kinds == ["state"] * 3 + ["log"] * 7
    after = first["items"][-1]["id"]
    assert house.ann.get(f"/v1/jobs/{job}/events?after={after}").json()["items"] == rest["items"]


def test_a_stream_of_events_ends_with_the_job_and_replays_from_anywhere(house: House) -> None:
    job = house.job()
    house.run(job)
    house.says(job, "one", "two\nlines")
    house.succeed(job)
    stream = {"Accept": "text/event-stream"}
    answer = house.ann.get(f"/v1/jobs/{job}/events", headers=stream)
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    events = frames(answer.text)
    assert [event["data"] for event in events if event["event"] == "log"] == [{"text": "one"}, {"text": "two\nlines"}]
    assert events[-1]["data"]["state"] == "succeeded"
    for place, event in enumerate(events):
        replay = house.ann.get(f"/v1/jobs/{job}/events", headers=stream | {"Last-Event-ID": str(event["id"])})
        assert frames(replay.text) == events[place + 1 :]


def test_a_stream_of_events_is_live_and_keeps_the_connection_alive(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.api.events.HEARTBEAT_SECONDS", 0.1)
    house, job = served.house, served.house.job()
    seen: list[str] = []
    with served.client.stream("GET", f"/v1/jobs/{job}/events", headers={"Accept": "text/event-stream"}) as answer:
        for line in answer.iter_lines():
            seen.append(line)
            if line == ": heartbeat" and seen.count(line) == 1:
                house.run(job)
                house.says(job, "live")
            if '"live"' in line:
                house.succeed(job)
    assert ": heartbeat" in seen
    assert [line for line in seen if line.startswith("event")] == [
        "event: state", "event: state", "event: state", "event: log", "event: state",
    ]  # fmt: skip


def test_metrics_are_series_thinned_on_the_server(house: House) -> None:
    job = house.job()
    house.run(job)
    house.measured(job, {step: {"train/loss": 1 / (step + 1), "lr": None} for step in range(100)})
    whole = house.ann.get(f"/v1/jobs/{job}/metrics").json()["series"]
    assert whole["train/loss"] == [[step, 1 / (step + 1)] for step in range(100)]
    assert whole["lr"][3] == [3, None]
    thin = house.ann.get(f"/v1/jobs/{job}/metrics?max_points=10").json()["series"]["train/loss"]
    assert (len(thin) <= 10, thin[0][0], thin[-1][0]) == (True, 0, 99)
    late = house.ann.get(f"/v1/jobs/{job}/metrics?after_step=97").json()["series"]["train/loss"]
    assert [step for step, _ in late] == [98, 99]
    table = house.ann.get(f"/v1/jobs/{job}/metrics?format=csv&after_step=98")
    assert table.headers["Content-Type"].startswith("text/csv")
    assert table.text == "series,step,value\nlr,99,\ntrain/loss,99,0.01\n"


def test_a_report_is_there_once_the_job_succeeded(house: House) -> None:
    job = house.job()
    early = house.ann.get(f"/v1/jobs/{job}/report")
    assert (early.status_code, "queued" in early.json()["detail"]) == (409, True)
    house.run(job)
    house.succeed(job)
    answer = house.ann.get(f"/v1/jobs/{job}/report")
    assert answer.json()["comparison"]["agreement"]["value"] == 0.975
    same = house.ann.get(f"/v1/jobs/{job}/report", headers={"If-None-Match": answer.headers["ETag"]})
    assert same.status_code == 304
    cancelled = house.job()
    house.ann.post(f"/v1/jobs/{cancelled}/cancel")
    never = house.ann.get(f"/v1/jobs/{cancelled}/report").json()["detail"]
    assert "cancelled and has no report" in never


def test_logs_are_plain_lines_that_cannot_be_faked(house: House) -> None:
    job = house.job()
    house.run(job)
    house.says(job, "epoch 1", "evil\n2026-01-01T00:00:00.000Z state    fake")
    answer = house.ann.get(f"/v1/jobs/{job}/logs")
    assert answer.headers["Content-Type"].startswith("text/plain")
    lines = answer.text.splitlines()
    assert len(lines) == 5
    assert lines[3].endswith("log      epoch 1")
    assert "evil\\n2026" in lines[4]
