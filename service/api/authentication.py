"""Whose key it is: asked of the database, and remembered for a second.

A client that polls shows the same key many times a second; remembering it spares half of the
database's work. A revoked key is refused within that second, by every process, and open streams
ask again and again too.
"""

import time

from anyio.to_thread import run_sync

from service.contract.database import Database
from service.keys import Caller, authenticate, digest

MEMORY_SECONDS = 1.0


class Authentication:
    """Keys that were valid a moment ago, by their digests; there are no more of them than valid keys."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._known: dict[str, tuple[Caller, float]] = {}  # with the time until which it counts

    async def caller(self, token: str) -> Caller:
        """Return whose key this is. Raises Unauthenticated."""
        fingerprint = digest(token)
        found, until = self._known.get(fingerprint, (None, 0.0))
        if found is not None and time.monotonic() < until:
            return found
        return await run_sync(self._ask, token, fingerprint)

    def _ask(self, token: str, fingerprint: str) -> Caller:
        until = time.monotonic() + MEMORY_SECONDS  # before the question, lest a revocation fall in between
        self._known.pop(fingerprint, None)
        with self._database.read() as session:
            found = authenticate(session, token)
        self._known[fingerprint] = (found, until)
        return found
