"""Those who wait for a job: many at little cost, and nobody longer than needed."""

import signal
import time
from typing import Any

import anyio
import pytest
from anyio.to_thread import run_sync
from sqlalchemy import event

from service.api.leaving import called_before_stopping
from service.api.watch import Version, Watch, version_of
from service.contract import jobs
from service.contract.records import JobRecord
from service.keys import list_keys, revoke
from tests.integration.api.house import House, Served

STREAM = {"Accept": "text/event-stream"}


def version(house: House, job: str) -> Version:
    with house.services.database.read() as session:
        return version_of(session.get_one(JobRecord, job))


def watch_of(house: House, poll_seconds: float = 0.05) -> Watch:
    return Watch(house.services.database, poll_seconds)


def count_selects(house: House) -> list[str]:
    seen: list[str] = []

    @event.listens_for(house.services.database.engine, "before_cursor_execute")
    def _count(_: Any, __: Any, statement: str, *___: Any) -> None:
        if statement.startswith("SELECT"):
            seen.append(statement)

    return seen


def test_a_hundred_who_wait_cost_one_query_for_each_look(house: House) -> None:
    watch, known = watch_of(house), {job: version(house, job) for job in (house.job(), house.job())}
    selects, changed = count_selects(house), []

    async def wait(job: str) -> None:
        changed.append(await watch.change(job, known[job], 0.5))

    async def everybody() -> None:
        async with anyio.create_task_group() as group:
            for _ in range(50):
                for job in known:
                    group.start_soon(wait, job)

    anyio.run(everybody)
    assert changed == [False] * 100
    assert 1 <= len(selects) <= 21  # half a second of looks that are 25 ms apart at least


def test_only_those_whose_job_changed_are_woken(house: House) -> None:
    watch, moving, resting = watch_of(house), house.job(), house.job()
    known = {job: version(house, job) for job in (moving, resting)}
    woken: dict[str, tuple[bool, float]] = {}

    async def wait(job: str) -> None:
        began = time.monotonic()
        woken[job] = await watch.change(job, known[job], 2.0), time.monotonic() - began

    async def act() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(wait, moving)
            group.start_soon(wait, resting)
            await anyio.sleep(0.2)
            await run_sync(house.run, moving)

    anyio.run(act)
    assert (woken[moving][0], woken[resting][0]) == (True, False)
    assert woken[moving][1] < 1.9


def test_every_event_of_a_job_changes_its_version(house: House) -> None:
    job = house.job()
    house.run(job)
    before = version(house, job)
    time.sleep(0.005)  # SQLite's clock counts milliseconds
    house.says(job, "a line of the log")
    assert version(house, job) != before


def test_a_watch_that_was_closed_waits_no_more(house: House) -> None:
    watch, job = watch_of(house), house.job()
    known, began = version(house, job), time.monotonic()

    async def act() -> None:
        async with anyio.create_task_group() as group:
            group.start_soon(watch.change, job, known, 30.0)
            await anyio.sleep(0.1)
            watch.close()

    anyio.run(act)
    assert time.monotonic() - began < 5


def test_streams_and_long_polls_end_when_the_service_stops(served: Served) -> None:
    job, began = served.house.job(), time.monotonic()
    with served.client.stream("GET", f"/v1/jobs/{job}/events", headers=STREAM) as answer:
        lines = answer.iter_lines()
        next(lines)
        served.house.services.watch.close()
        assert not any(line.startswith("data") and "succeeded" in line for line in lines)
    polled = served.client.get(f"/v1/jobs/{job}", headers={"Prefer": "wait=30"})
    assert (polled.status_code, polled.json()["state"]) == (200, "queued")
    assert time.monotonic() - began < 10


def test_a_signal_to_stop_closes_before_the_servers_own_handler_runs() -> None:
    order: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda *_: order.append("server"))
    try:
        with called_before_stopping(lambda: order.append("ours")):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert order == ["ours", "server", "server"]


def test_a_stream_ends_quietly_when_its_job_is_deleted(served: Served) -> None:
    house, job = served.house, served.house.job()
    with served.client.stream("GET", f"/v1/jobs/{job}/events", headers=STREAM) as answer:
        lines = answer.iter_lines()
        next(lines)
        with house.services.database.write() as session:
            row = session.get_one(JobRecord, job)
            jobs.cancel(session, row)
            jobs.remove(session, row)
        rest = list(lines)  # to its end; a broken stream would raise
    assert answer.status_code == 200
    assert not any(line.startswith("event: error") for line in rest)
    assert house.ann.get(f"/v1/jobs/{job}").status_code == 404


def test_a_stream_ends_when_its_key_is_revoked(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.api.events.LOOK_SECONDS", 0.1)
    house, job = served.house, served.house.job()
    with served.client.stream("GET", f"/v1/jobs/{job}/events", headers=STREAM) as answer:
        lines = answer.iter_lines()
        next(lines)
        with house.services.database.write() as session:
            revoke(session, next(key.id for key in list_keys(session) if key.owner == "ann"))
        list(lines)
    with house.services.database.read() as session:
        assert session.get_one(JobRecord, job).state == "queued"
