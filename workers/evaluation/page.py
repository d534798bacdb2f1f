"""The report as one page that needs nothing else: no network, no script, no file beside it.

The findings in words come first, then the numbers that they rest on, with figures. Everything comes from the report
and from what the job was; whatever a user may have written (labels, names of layers and classes) is escaped, and the
page's own policy lets a browser run no script and load nothing. The same report gives the same bytes.
"""

from service.contract.reports import Report
from workers.evaluation.html import Markup, element, joined
from workers.evaluation.page_sections import SECTIONS, Background
from workers.evaluation.page_style import POLICY, STYLE
from workers.evaluation.roles import title_of


def report_page(report: Report, background: Background) -> str:
    """The page, as HTML."""
    name = None if background.architecture is None else str(background.architecture["name"])
    title = title_of(report, name)
    found = [(heading, parts) for heading, make in SECTIONS.items() if (parts := list(make(report, background)))]
    ids = {heading: f"s{index}" for index, (heading, _) in enumerate(found, start=1)}
    links = (element("li", element("a", heading, href=f"#{ids[heading]}")) for heading, _ in found)
    sections = (
        element("section", element("h2", heading, id=ids[heading]), joined(parts), aria_labelledby=ids[heading])
        for heading, parts in found
    )
    body = element(
        "body",
        element("h1", title),
        element(
            "p",
            f"Report of {report.job}: teacher and student on {report.examples:,} examples of the {report.split} split, "
            "which training did not touch unless a finding says so. Intervals are 95%.",
            class_="what",
        ),
        element("nav", element("ul", joined(links)), aria_label="Contents"),
        element("main", joined(sections)),
        element("footer", _versions(report)),
    )
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="referrer", content="no-referrer"),
        element("title", f"{title}, {report.job}"),
        Markup(f"<style>{STYLE}</style>"),
    )
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _versions(report: Report) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in sorted(report.environment.versions.items()))
    return f"Made by Stillhouse: {versions}."
