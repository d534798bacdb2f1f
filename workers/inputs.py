"""The models and datasets that a job reads, in canonical form."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy import select

from service.contract import resources
from service.contract.errors import LeaseLost
from service.contract.records import JobInput
from workers import reader
from workers.cache import Evicted, link
from workers.station import Station


def read_inputs(station: Station, job_id: str, folder: Path, check: Callable[[], None]) -> dict[str, Path]:
    """Link a job's inputs into `folder`; return their canonical folders by resource id. `check` may raise to give up.

    Raises InputRejected, NotFound, Unavailable.
    """
    with station.database.read() as session:
        ids = session.scalars(select(JobInput.resource_id).where(JobInput.job_id == job_id)).all()
        found = {key: (resources.find(session, key), resources.files_of(session, key)) for key in ids}
    folders = {}
    for key, (row, files) in found.items():
        if row is None:  # what an unfinished job reads is not deleted
            raise LeaseLost(f"{key} is gone, and so must be {job_id}")
        kind: reader.Kind = "model" if key.startswith("mdl") else "dataset"
        read = partial(reader.canonical, station.storage, station.settings, kind, row.declaration, files, check=check)
        folders[key] = _linked(read, folder / key, check)
    return folders


def _linked(read: Callable[[], tuple[Path, dict[str, Any]]], target: Path, check: Callable[[], None]) -> Path:
    while True:
        check()
        canonical, _ = read()
        try:
            return link(canonical, target)
        except Evicted:  # in the moment between; it is read again
            continue
