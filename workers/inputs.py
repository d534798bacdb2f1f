"""The models and datasets that a job reads, in canonical form."""

from collections.abc import Callable
from pathlib import Path

from sqlalchemy import select

from service.contract import resources
from service.contract.errors import LeaseLost
from service.contract.records import JobInput
from workers import reader
from workers.station import Station


def read_inputs(station: Station, job_id: str, check: Callable[[], None]) -> dict[str, Path]:
    """Return the canonical folders of a job's inputs by resource id; `check` may raise to give up.

    Raises InputRejected, NotFound, Unavailable.
    """
    with station.database.read() as session:
        ids = session.scalars(select(JobInput.resource_id).where(JobInput.job_id == job_id)).all()
        found = {key: (resources.find(session, key), resources.files_of(session, key)) for key in ids}
    folders = {}
    for key, (row, files) in found.items():
        if row is None:  # what an unfinished job reads is not deleted
            raise LeaseLost(f"{key} is gone, and so must be {job_id}")
        check()
        kind: reader.Kind = "model" if key.startswith("mdl") else "dataset"
        folders[key], _ = reader.canonical(station.storage, station.settings, kind, row.declaration, files, check=check)
    return folders
