"""Who may change a row: claim, heartbeat and the fenced update.

A claim is one conditional UPDATE that raises the row's epoch. Every later write of the worker holds
that epoch and a lease that has not run out, both judged by the database; a worker that froze past
its lease and woke again therefore changes nothing.
"""

from dataclasses import dataclass
from typing import Any

from sqlalchemy import update
from sqlalchemy.orm import Session

from service.contract.database import clock
from service.contract.errors import LeaseLost
from service.contract.records import DatasetRecord, JobRecord, ModelRecord

LeasedRecord = type[JobRecord] | type[ModelRecord] | type[DatasetRecord]


@dataclass(frozen=True)
class Claim:
    """The right to change one row until the lease runs out."""

    record: LeasedRecord
    id: str
    epoch: int
    worker: str
    lease_seconds: float


def take(session: Session, claim: Claim, *conditions: Any, **values: Any) -> Claim | None:
    """Try to become the row's worker; `claim.epoch` is ignored. Return the claim with its epoch, or None."""
    record = claim.record
    statement = (
        update(record)
        .where(record.id == claim.id, *conditions)
        .values(
            epoch=record.epoch + 1,
            worker=claim.worker,
            lease_until=clock() + claim.lease_seconds,
            heartbeat_at=clock(),
            **values,
        )
        .returning(record.epoch)
        .execution_options(synchronize_session=False)
    )
    epoch = session.scalar(statement)
    return None if epoch is None else Claim(record, claim.id, epoch, claim.worker, claim.lease_seconds)


def fenced_update(session: Session, claim: Claim, *conditions: Any, **values: Any) -> None:
    """Change the row if the claim still holds. Raises LeaseLost."""
    record = claim.record
    statement = (
        update(record)
        .where(record.id == claim.id, record.epoch == claim.epoch, record.lease_until >= clock(), *conditions)
        .values(**values)
        .execution_options(synchronize_session=False)
    )
    if session.execute(statement).rowcount != 1:  # type: ignore[attr-defined]  # an UPDATE's result has it
        raise LeaseLost(f"{claim.id}: epoch {claim.epoch} no longer holds the lease")


def renew(session: Session, claim: Claim) -> None:
    """Extend the lease. Raises LeaseLost."""
    fenced_update(session, claim, lease_until=clock() + claim.lease_seconds, heartbeat_at=clock())
