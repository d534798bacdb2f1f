"""Every check in turn, on a service that runs or rests; and the mending of what is safe to mend."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from service.contract.database import Database
from service.contract.errors import Conflict, Invalid, StillhouseError
from service.contract.retention import remove_orphans, remove_temporary
from service.contract.settings import Settings
from service.contract.storage import LocalStorage, open_storage
from service.doctor import contents, machine, schema, work
from service.doctor.findings import Check, Finding, Grade, Premises
from service.doctor.locks import is_held

SOUND: Mapping[str, tuple[Check, str]] = {  # what must be right before anything else is asked
    "schema": (schema.schema, "the tables are those of this version"),
    "integrity": (schema.integrity, "the database's file is whole"),
}
CHECKS: Mapping[str, tuple[Check, str]] = {
    "permissions": (machine.permissions, "the service can write here, and others cannot look in"),
    "disk": (machine.disk, "there is room on the disk"),
    "broker": (machine.broker, "the broker's socket is as it should be"),
    "files": (contents.files, "every file that a row names is in the storage"),
    "checkpoints": (contents.checkpoints, "every job can go on where it stood"),
    "orphans": (contents.unnamed, "nothing old lies in the storage that no row names"),
    "leftovers": (contents.leftovers, "no crash left anything behind"),
    "leases": (work.leases, "no work is stuck with a worker that is lost"),
    "inputs": (work.inputs, "what unfinished jobs read is there"),
    "uploads": (work.uploads, "the bytes of unfinished uploads are there"),
    "workers": (work.workers, "the workers are of this version"),
}


def is_served(data_dir: Path) -> bool:
    """Whether a service holds the folder now."""
    return is_held(data_dir / "lock")


def read_only(url: str) -> str:
    """Return the URL of the same database, which then is neither made nor changed."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        return url
    return f"sqlite:///file:{quote(str(Path(str(parsed.database)).absolute()))}?mode=ro&uri=true"


def storage_of(settings: Settings) -> LocalStorage:
    """Return the storage, which must be there: looking makes nothing. Raises Invalid."""
    root = Path(unquote(urlsplit(settings.storage).path))
    if not (root / "incoming").is_dir():
        raise Invalid(f"there is no storage in {root}; start the service once, or restore a backup")
    return open_storage(settings.storage)


@contextmanager
def premises_of(settings: Settings, *, deep: bool) -> Iterator[Premises]:
    """Open a data folder to look at it. Raises Invalid where there is nothing to look at."""
    url = make_url(settings.database)
    if not settings.data_dir.is_dir():
        raise Invalid(f"there is no data folder {settings.data_dir}; name it with --data or STILLHOUSE_DATA_DIR")
    if url.get_backend_name() == "sqlite" and not Path(str(url.database)).is_file():
        raise Invalid(f"there is no database {url.database}; start the service once, or restore a backup")
    storage = storage_of(settings)
    database = Database(read_only(settings.database))
    try:
        yield Premises(settings, database, storage, is_served(settings.data_dir), deep)
    finally:
        database.close()


def examine(settings: Settings, *, deep: bool = False) -> list[Finding]:
    """Check a data folder and its database against each other; nothing is changed. Raises Invalid."""
    with premises_of(settings, deep=deep) as premises:
        sound = list(chain.from_iterable(_findings(premises, name, *each) for name, each in SOUND.items()))
        if not is_healthy(sound):
            return sound
        rest = chain.from_iterable(_findings(premises, name, *each) for name, each in CHECKS.items())
        return sound + list(rest)


def _findings(premises: Premises, name: str, check: Check, well: str) -> list[Finding]:
    try:
        found = [Finding(name, each.grade, each.text, each.advice, each.subjects) for each in check(premises)]
    except (StillhouseError, SQLAlchemyError, OSError) as problem:
        text = f"this could not be checked: {problem}"
        return [Finding(name, Grade.ERROR, text, "mend this first, and look again")]
    return found or [Finding(name, Grade.OK, well)]


def is_healthy(findings: Sequence[Finding]) -> bool:
    """Whether nothing is lost and everything works; there may be warnings."""
    return all(finding.grade != Grade.ERROR for finding in findings)


def mend(settings: Settings) -> list[Path]:
    """Remove what no row names and no process holds, once it is a day old; return what went.

    Safe beside a running service: it is done as that does it (`service.contract.retention`). Raises
    Conflict when the database is not sound, since then a content may only seem to be nobody's.
    """
    with premises_of(settings, deep=False) as premises:
        for name, each in SOUND.items():
            if any(found.grade != Grade.OK for found in _findings(premises, name, *each)):
                raise Conflict(f"nothing is mended while the database is not sound ({name}); see: stillhouse doctor")
        database = Database(settings.database)
        try:
            removed = [remove_orphans(database, premises.storage), remove_temporary(database, premises.storage)]
            return list(chain.from_iterable(removed))
        finally:
            database.close()
