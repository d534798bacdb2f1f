import pytest
from starlette.requests import Request

from service.api.negotiation import preferred, weight_of

BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8"
OFFERED = ("application/json", "text/html")


def request(*accepted: str) -> Request:
    return Request({"type": "http", "headers": [(b"accept", field.encode()) for field in accepted]})


@pytest.mark.parametrize(
    ("accepted", "wanted"),
    [
        ((), "application/json"),
        (("*/*",), "application/json"),
        (("application/json",), "application/json"),
        (("text/html",), "text/html"),
        (("TEXT/HTML ; charset=utf-8",), "text/html"),
        ((BROWSER,), "text/html"),
        (("application/json", "text/html;q=0.9"), "application/json"),
        (("application/json;q=0.2", "text/*;q=0.3"), "text/html"),
        (("*/*", "application/json;q=0"), "text/html"),
        (("image/png",), "application/json"),
        (("text/html;q=nonsense, application/json;q=0.1",), "application/json"),
        ((",;,q=,",), "application/json"),
    ],
)
def test_the_type_of_the_highest_weight_is_sent_and_json_where_none_is(accepted: tuple[str, ...], wanted: str) -> None:
    assert preferred(request(*accepted), OFFERED) == wanted


def test_the_most_specific_range_gives_the_weight() -> None:
    field = "*/*;q=0.1, text/*;q=0.4, text/html;q=0.7"
    assert [weight_of(field, name) for name in ("text/html", "text/plain", "image/png")] == [0.7, 0.4, 0.1]


@pytest.mark.parametrize("weight", ["7", "-1", "nan", "inf", ""])
def test_what_is_no_weight_wants_nothing(weight: str) -> None:
    assert weight_of(f"text/html;q={weight}", "text/html") == 0
