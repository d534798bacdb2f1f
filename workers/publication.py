"""A result becomes a model that everybody sees, or nothing of it does; a report alone ends its job without one.

A model's files are stored first; then one transaction inserts the model and ends the job, on condition
that the job's epoch and lease still hold.
"""

from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

from service.contract import contents, jobs, resources
from service.contract.errors import NotFound
from service.contract.records import JobRecord
from service.contract.storage import Storage, StoredFile
from workers.pipe import Finished, Reported
from workers.tenure import Tenure


def store(tenure: Tenure[Any], storage: Storage, folder: Path) -> dict[str, StoredFile]:
    """Store every file of the artifact. Raises Unavailable, LeaseLost."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): tenure.persist(partial(storage.put, path)) for path in paths}


def publish(
    tenure: Tenure[Any], storage: Storage, job: JobRecord, result: Finished, files: dict[str, StoredFile]
) -> str:
    """Make the stored files the job's result; return the model's id. Raises LeaseLost."""

    def change(session: Session) -> str:
        contents.lock(session)  # else the same files of an attempt that lost its lease could be let go meanwhile
        model_id = resources.insert_result(
            session, job, name=result.name, declaration=result.declaration, facts=result.facts, files=files
        )
        jobs.publish(session, tenure.claim, model_id, result.report)
        _make_sure(storage, result.folder, files)
        return model_id

    return tenure.write(change)


def publish_report(tenure: Tenure[Any], result: Reported) -> None:
    """End a job that makes no model. Raises LeaseLost."""
    tenure.write(lambda session: jobs.publish(session, tenure.claim, None, result.report))


def _make_sure(storage: Storage, folder: Path, files: dict[str, StoredFile]) -> None:
    """Store again what somebody deleted, who had the same content and saw no reference to it before ours."""
    for path, file in files.items():
        try:
            storage.size(file.sha256)
        except NotFound:
            storage.put(folder / path)
