"""Which of several representations a client wants most, by its Accept field (RFC 9110, 12.5.1)."""

from collections.abc import Sequence

from fastapi import Request

from service.api.conditional import field_of

VARY = {"Vary": "Accept"}


def preferred(request: Request, offered: Sequence[str]) -> str:
    """Return the media type that the client weighs most; the first offered where it does not care or takes none."""
    field = field_of(request, "accept")
    if field is None:
        return offered[0]
    weights = [weight_of(field, media_type) for media_type in offered]
    return offered[weights.index(max(weights))]


def weight_of(field: str, media_type: str) -> float:
    """Return how much an Accept field wants a media type, 0 to 1: what its most specific range says."""
    found: dict[str, float] = {}
    for part in field.split(","):
        name, *parameters = (piece.strip().lower() for piece in part.split(";"))
        weights = [piece.removeprefix("q=") for piece in parameters if piece.startswith("q=")]
        found[name] = _weight(weights[0]) if weights else 1.0
    kind, _, _ = media_type.partition("/")
    ranges = (media_type, f"{kind}/*", "*/*")
    return next((found[name] for name in ranges if name in found), 0.0)


def _weight(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        return 0.0
    return value if 0 <= value <= 1 else 0.0
