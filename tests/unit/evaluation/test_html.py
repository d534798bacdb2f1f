from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.evaluation.html import Markup, element, escaped, joined, table

HOSTILE = "</td><script>alert('x')</script><img src=x onerror=\"y\"> & \u202e"


class Seen(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def seen(markup: str) -> Seen:
    parser = Seen()
    parser.feed(markup)
    parser.close()
    return parser


@given(st.text(), st.text())
def test_whatever_a_text_is_it_makes_no_element_and_no_attribute(text: str, value: str) -> None:
    found = seen(element("p", text, title=value))
    assert found.tags == ["p"]
    assert [name for name, _ in found.attributes] == ["title"]


def test_a_hostile_text_is_shown_as_it_is_but_for_what_turns_the_line() -> None:
    found = seen(table(["a", HOSTILE], [[HOSTILE, "b"]], label=HOSTILE))
    assert "".join(found.texts).count("<script>alert('x')</script>") == 2
    assert "script" not in found.tags
    assert "\u202e" not in "".join(found.texts)


def test_markup_is_not_escaped_again() -> None:
    assert element("p", element("b", "<")) == "<p><b>&lt;</b></p>"
    assert escaped(Markup("<br>")) == "<br>"
    assert joined(["<", Markup("<br>")], " ") == "&lt; <br>"


@pytest.mark.parametrize("made", [element("meta", name="a", content="b"), element("img", src="x", alt=None)])
def test_empty_elements_are_not_closed_and_absent_attributes_left_out(made: str) -> None:
    assert "</" not in made
    assert "alt" not in made


def test_underscores_in_attributes_are_hyphens() -> None:
    assert element("p", "x", class_="a", aria_label="b") == '<p class="a" aria-label="b">x</p>'
