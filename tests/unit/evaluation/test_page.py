import base64
import hashlib
import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pytest

from service.contract.reports import Report
from tests.unit.evaluation.reports import answers, present, pruned_report, report
from tests.unit.evaluation.test_html import HOSTILE, Seen
from workers.evaluation.page import report_page
from workers.evaluation.page_sections import SECTIONS, Background
from workers.evaluation.thumbnails import png

HISTORY = {"student": [{"epoch": 1.0, "train/loss": 1.0, "validation/loss": 1.1, "validation/accuracy": 0.5}]}
ALLOWED = {
    "html", "head", "meta", "title", "style", "body", "h1", "h2", "h3", "p", "nav", "ul", "li", "a", "main", "section",
    "div", "table", "thead", "tbody", "tr", "th", "td", "span", "figure", "figcaption", "img", "details", "summary",
    "pre", "footer", "svg", "g", "path", "use", "defs", "clippath", "rect", "pattern",
}  # fmt: skip


def page(found: Report | None = None, **changes: Any) -> str:
    background = Background(**{"history": {}, "spec": {"type": "distill"}, "lineage": {"teacher": "mdl_a"}, **changes})
    return report_page(found or report(), background)


class Parsed(Seen):
    """The page's elements, its texts outside of the style, and where it refers to."""

    @property
    def references(self) -> list[str]:
        names = {"src", "href", "xlink:href", "action", "data", "srcset", "poster"}
        return [value or "" for name, value in self.attributes if name in names]


def parsed(text: str) -> Parsed:
    parser: HTMLParser = Parsed()
    parser.feed(text)
    parser.close()
    assert isinstance(parser, Parsed)
    return parser


def headings(text: str) -> list[str]:
    return re.findall(r"<h2[^>]*>(.*?)</h2>", text)


STANDARD, PRUNED = page(history=HISTORY), page(pruned_report())


@pytest.mark.parametrize("text", [STANDARD, PRUNED])
def test_it_stands_alone(text: str) -> None:
    found = parsed(text)
    assert set(found.tags) <= ALLOWED
    assert all(reference.startswith(("#", "data:image/png;base64,")) for reference in found.references)
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    assert not any(name.startswith("on") or name == "style" for name, _ in found.attributes)


def test_its_policy_names_its_one_style_by_its_hash() -> None:
    (style,) = re.findall(r"<style>(.*?)</style>", STANDARD, flags=re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    (policy,) = [
        value for name, value in parsed(STANDARD).attributes if name == "content" and "default-src" in str(value)
    ]
    assert f"style-src 'sha256-{digest}'" in present(policy)
    assert "default-src 'none'" in present(policy)


@pytest.mark.parametrize("text", [STANDARD, PRUNED])
def test_every_name_in_it_is_given_once_and_every_reference_leads_somewhere(text: str) -> None:
    found = parsed(text)
    names = [value for name, value in found.attributes if name == "id"]
    assert len(names) == len(set(names))
    assert {reference[1:] for reference in found.references if reference.startswith("#")} <= set(names)


def test_the_findings_come_first_and_all_of_them() -> None:
    found = pruned_report()
    assert headings(PRUNED)[0] == "Findings"
    texts = "".join(parsed(PRUNED).texts)
    assert all(finding.text in texts for finding in found.findings)


def test_a_section_is_there_when_there_is_something_to_say() -> None:
    assert headings(STANDARD) == [name for name in SECTIONS if name not in ("What was removed", "Verification")]
    assert "What was removed" in headings(PRUNED)
    assert "Training" not in headings(PRUNED)
    unlabelled = headings(page(report(*answers(labelled=False))))
    assert not {"Calibration", "Class by class"} & set(unlabelled)


def test_hostile_names_and_labels_are_text() -> None:
    found = pruned_report(names=(HOSTILE, "b"), classes=[HOSTILE] * 5)
    text = page(
        found, spec={"labels": {HOSTILE: HOSTILE}}, lineage={"teacher": HOSTILE}, architecture={"name": HOSTILE}
    )
    seen = parsed(text)
    assert set(seen.tags) <= ALLOWED
    assert all(value == "" or not str(value).startswith("x") for name, value in seen.attributes if name == "src")
    assert not any(name.startswith("on") for name, _ in seen.attributes)
    assert "".join(seen.texts).count("<script>alert") >= 4
    assert "\u202e" not in text


def test_the_same_report_gives_the_same_bytes() -> None:
    assert page(pruned_report()) == PRUNED


def test_inputs_that_are_images_are_shown() -> None:
    found = report()
    picture = png(np.zeros((1, 8, 8), np.uint8))
    rows = [each.row for each in present(found.by_input).most_different]
    text = page(found, pictures={rows[0]: picture})
    assert text.count("<img ") == 1
    assert f"data:image/png;base64,{base64.b64encode(picture).decode()}" in text
    assert f'alt="input of row {rows[0]}"' in text


def test_each_stage_says_what_it_bought() -> None:
    text = "".join(re.sub(r"<[^>]+>", "|", PRUNED).split())
    assert "removing||2||61.0%||-35points||1.25||+1.25|" in text
    assert "refitting||4||93.0%||+32points||0.125||-1.12|" in text


def test_it_can_be_printed() -> None:
    assert "@media print" in STANDARD
    assert "color-scheme: light" in STANDARD
