"""API keys: who calls, and what the key allows.

A key is 256 random bits behind the prefix `sh_`. Only its SHA-256 is stored; a fast hash suffices,
because there is nothing to guess from a dictionary.
"""

import hashlib
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from sqlalchemy import bindparam, select, update
from sqlalchemy.orm import Session

from service.contract.database import clock
from service.contract.errors import Invalid, NotFound, Unauthenticated
from service.contract.ids import new_id
from service.contract.records import ApiKey

Scope = Literal["read", "submit", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


# Built once, and of columns alone: it runs with every request.
VALID_KEY = select(ApiKey.id, ApiKey.owner, ApiKey.scopes).where(
    ApiKey.sha256 == bindparam("sha256"), ApiKey.revoked_at.is_(None)
)


@dataclass(frozen=True)
class Caller:
    """Whoever sent a request: the key's owner, and the scopes of the key."""

    key_id: str
    owner: str
    scopes: frozenset[str]

    def may(self, scope: Scope) -> bool:
        """Whether the key allows this; `admin` allows everything within its owner."""
        return scope in self.scopes or "admin" in self.scopes


def digest(token: str) -> str:
    """Return what is stored of a key."""
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def create_key(session: Session, owner: str, scopes: Iterable[str] = ("read", "submit")) -> str:
    """Make a key and return it; it cannot be shown again. Raises Invalid."""
    wanted = set(scopes)
    if not wanted or not wanted <= set(SCOPES):
        raise Invalid(f"a key's scopes are some of {', '.join(SCOPES)}; got {', '.join(sorted(wanted)) or 'none'}")
    if not owner or len(owner) > 200:
        raise Invalid("a key's owner is a name of 1 to 200 characters")
    token = f"sh_{secrets.token_urlsafe(32)}"
    session.add(ApiKey(id=new_id("key"), owner=owner, sha256=digest(token), scopes=sorted(wanted)))
    session.flush()
    return token


def authenticate(session: Session, token: str) -> Caller:
    """Return whose key this is. Raises Unauthenticated."""
    key = session.execute(VALID_KEY, {"sha256": digest(token)}).first()
    if key is None:
        raise Unauthenticated("this API key is unknown or was revoked; make one with: stillhouse keys create OWNER")
    return Caller(key.id, key.owner, frozenset(key.scopes))


def check_valid(session: Session, caller: Caller) -> None:
    """Raise Unauthenticated when the caller's key was revoked since it was shown."""
    key = session.get(ApiKey, caller.key_id)
    if key is None or key.revoked_at is not None:
        raise Unauthenticated("this API key was revoked; make one with: stillhouse keys create OWNER")


def list_keys(session: Session) -> Sequence[ApiKey]:
    """Return every key, oldest first, revoked ones too."""
    return session.scalars(select(ApiKey).order_by(ApiKey.id)).all()


def revoke(session: Session, key_id: str) -> None:
    """End a key for good; ending it again changes nothing. Raises NotFound."""
    if session.get(ApiKey, key_id) is None:
        raise NotFound(f"there is no key {key_id}; see: stillhouse keys list")
    session.execute(update(ApiKey).where(ApiKey.id == key_id, ApiKey.revoked_at.is_(None)).values(revoked_at=clock()))
