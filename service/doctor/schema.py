"""The database in itself: its version, its tables, its pages."""

from collections.abc import Iterator

from sqlalchemy import text

from service.contract.migrate import differences, revisions
from service.doctor.findings import Premises, Problem, error, warning


def schema(premises: Premises) -> Iterator[Problem]:
    """Whether the tables are those of this version."""
    current, known = revisions(premises.database)
    if current is None:
        yield error("the database has no tables", "start the service on this folder once, or restore a backup")
    elif current not in known:
        yield error(
            f"a newer version of Stillhouse wrote the database (revision {current}, this one knows {known[0]})",
            "use the newer version; there is no way back but a backup",
        )
    elif current != known[0]:
        yield warning(
            f"the database is of an older version (revision {current}, this version has {known[0]})",
            "the next start brings it up to date; make a backup first",
        )
    elif found := differences(premises.database):
        yield error(
            "the tables are not those that their revision promises: somebody changed them by hand",
            "restore a backup, or undo the change",
            [str(each)[:200] for each in found],
        )


def integrity(premises: Premises) -> Iterator[Problem]:
    """Whether SQLite can read all of its file, and every row that refers to another finds it."""
    if not premises.database.is_sqlite:
        return
    with premises.database.glance() as connection:
        damage = [str(row[0]) for row in connection.execute(text("PRAGMA integrity_check"))]
        lost = [f"{row[0]} row {row[1]} names no row of {row[2]}" for row in connection.execute(_FOREIGN_KEYS)]
    if damage != ["ok"]:
        yield error("the database's file is damaged", "stop the service, and restore a backup", damage)
    if lost:
        yield error("rows name rows that are gone", "restore a backup, or report this as a fault", lost)


_FOREIGN_KEYS = text("PRAGMA foreign_key_check")
