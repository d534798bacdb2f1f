import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from functools import cache

import pytest
from matplotlib.figure import Figure

from service.contract.reports import Report
from tests.unit.evaluation.reports import answers, present, pruned_report, pruning, report
from tests.unit.evaluation.test_plots import settings
from workers.evaluation import figures_pruning, figures_quality
from workers.evaluation.figures import LOOKS, compact, inlined, paper, short, svg_of

HOSTILE = "<script>$\\frac{a}$ --> ]]> & \"'\n\x07 a name far too long for any axis"
QUALITY = [
    figures_quality.accuracies,
    figures_quality.calibration_diagram,
    figures_quality.divergence_spread,
    figures_quality.recall_by_class,
    figures_quality.latencies,
]
PRUNING = [figures_pruning.pareto, figures_pruning.units_by_group, figures_pruning.score_distributions]
PRUNED = pruned_report()
Draw = Callable[[Report], Figure | None]


def drawn(draw: Draw, found: Report) -> bytes:
    with paper():
        return svg_of(present(draw(found)), "A figure")


@cache
def of_pruned(draw: Draw) -> bytes:
    """The figure of the report that most tests look at, drawn once."""
    return drawn(draw, PRUNED)


def texts(svg: bytes) -> list[str]:
    """What is written in the picture: matplotlib leaves the text as a comment beside its shapes."""
    return re.findall(r"<!-- (.*?) -->", svg.decode())


@pytest.mark.parametrize("draw", QUALITY + PRUNING)
def test_the_same_report_gives_the_same_bytes_and_leaves_the_settings_alone(draw: Draw) -> None:
    before = settings()
    svg = drawn(draw, pruned_report())
    assert svg == of_pruned(draw)
    assert settings() == before
    assert ET.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert not re.search(rb'(href|src)="(http|//)', svg)


@pytest.mark.parametrize("draw", QUALITY + PRUNING)
def test_in_a_page_a_figure_has_names_of_its_own_and_no_style(draw: Draw) -> None:
    text = inlined(of_pruned(draw), "one", "What it shows")
    root = ET.fromstring(text)
    names = {value for node in root.iter() for name, value in node.attrib.items() if name == "id"}
    assert names
    assert all(name.startswith("one-") for name in names)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', text))
    assert used <= names
    assert "style" not in text
    assert "<!--" not in text
    assert (root.get("role"), root.get("aria-label")) == ("img", "What it shows")


@pytest.mark.parametrize("draw", [figures_quality.accuracies, figures_quality.latencies, figures_pruning.pareto])
def test_every_model_is_named(draw: Draw) -> None:
    written = " ".join(texts(of_pruned(draw)))
    assert all(name in written for name in ("student", "l2", "random"))


def test_models_differ_in_marker_and_line_and_not_in_colour_alone() -> None:
    assert len({look.marker for look in LOOKS.values()}) == len(LOOKS)
    assert len({str(look.line) for look in LOOKS.values()}) == len(LOOKS)


def test_what_was_not_measured_has_no_figure() -> None:
    unlabelled = report(*answers(labelled=False))
    assert figures_quality.calibration_diagram(unlabelled) is None
    assert figures_quality.recall_by_class(unlabelled) is None
    assert figures_quality.accuracies(unlabelled) is None
    assert [draw(report()) for draw in PRUNING] == [None] * 3


@pytest.mark.parametrize("draw", PRUNING)
@pytest.mark.parametrize("steps", [1, 3])
def test_pruning_is_drawn_without_labels_with_signed_scores_in_any_number_of_steps(draw: Draw, steps: int) -> None:
    assert drawn(draw, pruned_report(labelled=False, signed=True, steps=steps))


@pytest.mark.parametrize("draw", [figures_pruning.units_by_group, figures_pruning.score_distributions])
def test_a_hostile_name_of_a_layer_is_drawn_as_text(draw: Draw) -> None:
    svg = drawn(draw, pruned_report(names=(HOSTILE, "$x_")))
    assert b"<script" not in svg
    assert "$x_" in " ".join(texts(svg))
    assert ET.fromstring(svg).tag.endswith("svg")


def test_a_hostile_name_of_a_class_is_drawn_as_text() -> None:
    svg = drawn(figures_quality.recall_by_class, pruned_report(classes=[HOSTILE, "b", "c", "d", "e"]))
    assert b"<script" not in svg


def test_a_figure_shows_the_groups_that_hold_most_macs_in_the_networks_order() -> None:
    many = pruning(names=tuple(f"layer{index}" for index in range(40)))
    shown = figures_pruning.groups_shown(many, 24)
    assert [group.name for group in shown] == [f"layer{index}" for index in range(24)]
    assert len(figures_pruning.groups_with_scores(many)) == figures_pruning.MOST_GROUPS_WITH_SCORES


def test_the_bars_are_as_long_as_the_units_are_many() -> None:
    with paper():
        left, right = present(figures_pruning.units_by_group(PRUNED)).axes
    assert [bar.get_width() for container in left.containers for bar in container] == [32, 20, 32, 20]
    assert [bar.get_width() for container in right.containers[:2] for bar in container] == pytest.approx(
        [32 * 5000 / 400_000, 20 * 5000 / 400_000]
    )


def test_the_cut_is_drawn_where_it_was() -> None:
    with paper():
        axes = present(figures_pruning.score_distributions(PRUNED)).axes[0]
    (cut,) = [line for line in axes.lines if "cut" in str(line.get_label())]
    assert list(cut.get_xdata()) == [1e-5, 1e-5]
    assert [bar.get_height() for bar in axes.containers[0]] == [29, *[0] * 17, 2, 1]


def test_the_way_is_drawn_over_the_macs_of_every_step() -> None:
    with paper():
        axes = present(figures_pruning.pareto(PRUNED)).axes[0]
    (way,) = [line for line in axes.lines if "on the way" in str(line.get_label())]
    assert list(way.get_xdata()) == [300_000, 200_000, 100_000]
    assert list(way.get_ydata()) == pytest.approx([0.95, 0.94, 0.93])


@pytest.mark.parametrize(
    ("number", "written"),
    [(0, "0"), (0.25, "0.25"), (-0.004, "-0.004"), (1e-7, "1e-7"), (2.5e-5, "2.5e-5"), (1500, "1.5k"), (4e9, "4G")],
)
def test_numbers_on_axes_are_short(number: float, written: str) -> None:
    assert compact(number) == written


def test_of_a_long_name_the_end_is_kept() -> None:
    assert short("encoder.layers.11.attention.output.dense") == "…s.11.attention.output.dense"
    assert len(short(HOSTILE)) == 28
    assert short("a\nb") == "a\N{REPLACEMENT CHARACTER}b"
