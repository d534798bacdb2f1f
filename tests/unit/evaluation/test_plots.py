import re
import xml.etree.ElementTree as ET

import matplotlib as mpl
import pytest

from workers.evaluation.plots import COLOURS, learning_curve

EPOCHS = range(1, 11)


def records(scale: float = 1.0, *, labelled: bool = True) -> list[dict[str, float]]:
    found = [{"epoch": e, "train/loss": scale / e, "validation/loss": scale / e + 0.1} for e in EPOCHS]
    if labelled:
        found = [
            {**r, "train/accuracy": 1 - 0.5 / e, "validation/accuracy": 1 - 0.6 / e}
            for e, r in zip(EPOCHS, found, strict=True)
        ]
    return found


def settings() -> list[object]:
    rc = mpl.rcParams
    return [rc["svg.hashsalt"], rc["svg.fonttype"], rc["font.family"], rc["font.size"]]


def texts(svg: bytes) -> list[str]:
    """What is written in the picture: matplotlib leaves the text as a comment beside its shapes."""
    return re.findall(r"<!-- (.*?) -->", svg.decode())


def test_the_same_history_gives_the_same_bytes() -> None:
    history = {"student": records(), "control": records(1.2)}
    assert learning_curve(history, teacher_accuracy=0.98) == learning_curve(history, teacher_accuracy=0.98)


def test_every_series_is_named() -> None:
    svg = learning_curve({"student": records(), "control": records(1.2)}, teacher_accuracy=0.98)
    names = {"student, train", "student, validation", "control, train", "control, validation", "teacher, test"}
    assert names <= set(texts(svg))


def test_student_and_control_differ_in_colour_and_marker_and_the_splits_in_line_style() -> None:
    svg = learning_curve({"student": records(), "control": records(1.2)}).decode().lower()
    assert all(colour.lower() in svg for colour in COLOURS.values())
    assert "stroke-dasharray" in svg
    both = re.findall(r'<path id="m[0-9a-f]+" d="(.*?)"', svg, flags=re.DOTALL)
    assert len(set(both)) >= 2


def test_without_labels_the_accuracy_is_said_not_to_be_measured() -> None:
    svg = learning_curve({"student": records(labelled=False)})
    assert "not measured" in texts(svg)


def test_one_epoch_is_enough() -> None:
    assert "student, validation" in texts(learning_curve({"student": records()[:1]}))


@pytest.mark.parametrize("epochs", [0, 3])
def test_it_is_a_self_contained_picture_without_a_date(epochs: int) -> None:
    svg = learning_curve({"student": records()[:epochs]})
    assert ET.fromstring(svg).tag == "{http://www.w3.org/2000/svg}svg"
    assert b"dc:date" not in svg
    assert not re.search(rb'(href|src)="http', svg)


def test_the_global_settings_of_matplotlib_are_left_alone() -> None:
    before = settings()
    learning_curve({"student": records()})
    assert settings() == before
