"""Byte ranges (RFC 9110, section 14): which part of a file a request asks for.

One range is served; a request for several gets the whole file, as the standard allows.
"""

import re

from service.contract.errors import RangeNotSatisfiable

ONE_RANGE = re.compile(r"bytes\s*=\s*(?:(\d{1,18})\s*-\s*(\d{1,18})?|-\s*(\d{1,18}))\s*", re.IGNORECASE)


def requested_range(
    field: str | None,  # the Range header
    size: int,  # of the file, in bytes
) -> tuple[int, int] | None:
    """Return start and stop of the asked-for bytes, or None for the whole file. Raises RangeNotSatisfiable."""
    found = ONE_RANGE.fullmatch(field) if field is not None else None
    if found is None:
        return None
    first, last, suffix = found.groups()
    if suffix is not None:
        start, stop = max(size - int(suffix), 0), size
    else:
        start, stop = int(first), size if last is None else min(int(last) + 1, size)
        if last is not None and int(last) < start:
            return None  # not a valid range; the standard says to pass it over
    if start >= size or (suffix is not None and int(suffix) == 0):
        raise RangeNotSatisfiable(f"the file has {size} bytes; the asked-for range lies outside", size=size)
    return start, stop
