"""Uploads that nobody used go after a while; so do their bytes, unless something was made of them."""

from collections.abc import Sequence

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

MAX_PAUSE_SECONDS = 600.0

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
    while True:
        try:
            gone = await run_sync(expire_uploads, services, abandon_on_cancel=True)
            if gone:
                log.info("uploads_expired", uploads=gone)
        except StillhouseError as error:
            log.warning("not_expired", reason=error.detail)
        except Exception as error:  # noqa: BLE001  the service goes on, and so does this loop
            log.warning("not_expired", reason=f"{type(error).__name__}: {error}")
        await anyio.sleep(min(MAX_PAUSE_SECONDS, max(1.0, services.settings.upload_expiry_seconds / 4)))
