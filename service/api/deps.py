"""What routes ask for: the parts of the service, and who is calling."""

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from celery import Celery
from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from sqlalchemy.orm import Session

from service.api.authentication import Authentication
from service.api.doorbell import Doorbell
from service.api.idempotency import InFlight
from service.api.part_files import PartFiles
from service.api.watch import Watch
from service.contract.database import Database
from service.contract.errors import Forbidden, NotFound, Unauthenticated
from service.contract.records import DatasetRecord, JobRecord, ModelRecord, Upload
from service.contract.settings import Settings
from service.contract.storage import LocalStorage
from service.keys import Caller, Scope

ID = re.compile(r"[a-z]{3}_[0-9a-z]{26}")
Row = TypeVar("Row", JobRecord, ModelRecord, DatasetRecord, Upload)
NAMES = {JobRecord: "job", ModelRecord: "model", DatasetRecord: "dataset", Upload: "upload"}


@dataclass(frozen=True)
class Services:
    """The parts that requests share."""

    settings: Settings
    database: Database
    storage: LocalStorage
    celery: Celery
    doorbell: Doorbell
    parts: PartFiles
    in_flight: InFlight
    authentication: Authentication
    watch: Watch


async def _services(request: Request) -> Services:
    found: Services = request.app.state.services
    return found


ServicesDep = Annotated[Services, Depends(_services)]

bearer = HTTPBearer(
    auto_error=False, scheme_name="ApiKey", description="An API key: `Authorization: Bearer sh_…`. See `keys create`."
)


def requires(scope: Scope) -> Callable[..., Awaitable[Caller]]:
    """Return the dependency that lets a caller with this scope pass."""

    async def caller(
        services: ServicesDep, credentials: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)]
    ) -> Caller:
        if credentials is None or not credentials.credentials:
            raise Unauthenticated("no API key was given; send it as Authorization: Bearer sh_…")
        found = await services.authentication.caller(credentials.credentials)
        if not found.may(scope):
            raise Forbidden(f"this key may {', '.join(sorted(found.scopes))}; this needs the scope {scope}")
        return found

    return caller


Reader = Annotated[Caller, Depends(requires("read"))]
Submitter = Annotated[Caller, Depends(requires("submit"))]


def is_id(text: str) -> bool:
    """Whether this may be an identifier; what a client writes in its place may be anything."""
    return ID.fullmatch(text) is not None


def no_such(record: type[Row], identifier: str) -> NotFound:
    """Return the error about a row that is not there, or is another owner's: the same."""
    return NotFound(f"there is no {NAMES[record]} {identifier[:64]}")


def owned(session: Session, record: type[Row], identifier: str, caller: Caller, **options: Any) -> Row:
    """Return the caller's row; another owner's is as absent as one that never was. Raises NotFound."""
    row = session.get(record, identifier, **options) if is_id(identifier) else None
    if row is None or row.owner != caller.owner:
        raise no_such(record, identifier)
    return row
