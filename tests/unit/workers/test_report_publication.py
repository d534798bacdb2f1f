"""A job that makes no model ends with its report, once, and only while its lease holds."""

import pytest
from sqlalchemy import select, update

from service.contract import jobs
from service.contract.database import Database
from service.contract.errors import LeaseLost
from service.contract.leases import Claim
from service.contract.records import JobRecord, JobState, ModelRecord
from tests.unit.workers.test_publication import database, held, job  # noqa: F401  fixtures
from workers import publication
from workers.pipe import Reported
from workers.tenure import Tenure


def publish(database: Database, held: Claim) -> None:  # noqa: F811  the fixtures' values
    tenure = Tenure(database, held, jobs.heartbeat, 60, float("inf"))
    publication.publish_report(tenure, Reported(report={"kind": "analysis"}))


def test_a_report_ends_its_job_without_a_model(database: Database, held: Claim) -> None:  # noqa: F811
    publish(database, held)
    ended = job(database)
    assert (ended.state, ended.result_model_id, ended.report) == (JobState.SUCCEEDED, None, {"kind": "analysis"})
    assert ended.checkpoint is None
    with database.read() as session:
        assert session.scalars(select(ModelRecord)).all() == []
    with pytest.raises(LeaseLost):
        publish(database, held)


@pytest.mark.parametrize("change", [{"epoch": 9}, {"lease_until": 1.0}, {"state": JobState.CANCELLING}])
def test_a_worker_that_may_not_publish_does_not(
    database: Database,  # noqa: F811
    held: Claim,  # noqa: F811
    change: dict[str, object],
) -> None:
    with database.write() as session:
        session.execute(update(JobRecord).values(**change))
    with pytest.raises(LeaseLost):
        publish(database, held)
    assert job(database).report is None
