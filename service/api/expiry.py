"""What goes after a while: uploads that nobody used, and what `service.contract.retention` names."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial

import anyio
import structlog
from anyio.to_thread import run_sync
from sqlalchemy import ColumnElement, select

from service.api.deps import Services
from service.api.part_files import BeingWritten
from service.api.reception import forget
from service.contract.database import clock
from service.contract.errors import StillhouseError
from service.contract.records import Upload
from service.contract.retention import Removed, retain

MAX_PAUSE_SECONDS = 600.0
FIRST_PAUSE_SECONDS, RETENTION_PAUSE_SECONDS = 60.0, 3600.0

log = structlog.get_logger("stillhouse.expiry")


def _expired(services: Services, *conditions: ColumnElement[bool]) -> Sequence[str]:
    old = clock() - Upload.updated_at > services.settings.upload_expiry_seconds
    with services.database.read() as session:
        return session.scalars(select(Upload.id).where(old, *conditions)).all()


def expire_uploads(services: Services) -> int:
    """Remove the uploads whose time has passed; return how many went. One that is being written stays."""
    gone = 0
    for upload_id in _expired(services):
        try:
            part = services.parts.open(upload_id)
        except BeingWritten:
            continue
        try:
            if _expired(services, Upload.id == upload_id):  # still, now that nobody can touch it
                forget(services, upload_id)
                gone += 1
        finally:
            part.close()
    return gone


async def keep_expiring(services: Services) -> None:
    """Remove expired uploads now and then, for as long as the service runs."""
    pause = min(MAX_PAUSE_SECONDS, max(1.0, services.settings.upload_expiry_seconds / 4))
    while True:
        await _attempt("expired", partial(expire_uploads, services))
        await anyio.sleep(pause)


async def keep_retaining(services: Services) -> None:
    """Remove what is old and nobody's every hour, for as long as the service runs; a start has other work first."""
    pause = FIRST_PAUSE_SECONDS
    while True:
        await anyio.sleep(pause)
        await _attempt("retention", partial(retain, services.database, services.storage, services.settings))
        pause = RETENTION_PAUSE_SECONDS


async def _attempt(what: str, remove: Callable[[], int | Removed]) -> None:
    try:
        if gone := await run_sync(remove, abandon_on_cancel=True):
            log.info(what, **(asdict(gone) if isinstance(gone, Removed) else {"count": gone}))
    except StillhouseError as error:
        log.warning("not_removed", what=what, reason=error.detail)
    except Exception as error:  # noqa: BLE001  the service goes on, and so does this loop
        log.warning("not_removed", what=what, reason=f"{type(error).__name__}: {error}")
