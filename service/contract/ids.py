"""Identifiers: a prefix, 48 bits of milliseconds and 80 random bits in Crockford's base 32 (a ULID)."""

import secrets
import time
from typing import Literal

Prefix = Literal["upl", "mdl", "dat", "job", "key", "req", "wrk"]

ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_id(prefix: Prefix) -> str:
    """Return an identifier that sorts by the time of its making."""
    number = (time.time_ns() // 1_000_000) << 80 | secrets.randbits(80)
    return f"{prefix}_" + "".join(ALPHABET[number >> shift & 31] for shift in range(125, -1, -5))
