"""The learning curve: how loss and accuracy went, epoch by epoch; the style is that of all figures (figures.py)."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from workers.evaluation.figures import grid, look_of, new_figure, paper, svg_of

#: Per trained model ("student", and "control" where there is one) its epochs in order: "epoch" and metrics such
#: as "validation/accuracy", as `TrainingOutcome.history` holds them.
History = Mapping[str, Sequence[Mapping[str, float]]]

COLOURS = {role: look_of(role).colour for role in ("student", "control")}
# In grey, student and control differ by their dashes where they have no markers.
DASHES = {"student": (0, (2, 1.5)), "control": (0, (6, 2, 1, 2))}
STYLES: dict[str, dict[str, Any]] = {
    "train": {"linewidth": 1.2},
    "validation": {"linewidth": 1.8, "markersize": 4},
}
# The losses of student and control are different functions: only their own course can be compared.
PANELS = {"loss": "Loss, each by its own objective (nats)", "accuracy": "Accuracy"}


def learning_curve(history: History, *, teacher_accuracy: float | None = None, teacher_split: str = "test") -> bytes:
    """Draw the history, and the teacher's accuracy on `teacher_split` as a line; returns an SVG file.

    Series that are missing are left out: without labels there is no accuracy, for one.
    """
    with paper():
        figure = learning_figure(history, teacher_accuracy, teacher_split)
        return svg_of(figure, "Learning curve")


def learning_figure(history: History, teacher_accuracy: float | None, teacher_split: str) -> Figure:
    """The same as a figure; make it on `paper`."""
    figure = new_figure(3.6)
    for axes, (quantity, label) in zip(figure.subplots(1, len(PANELS)), PANELS.items(), strict=True):
        _draw(axes, history, quantity)
        if quantity == "accuracy" and teacher_accuracy is not None:
            axes.axhline(
                teacher_accuracy, color="black", linestyle="-.", linewidth=1.2, label=f"teacher, {teacher_split}"
            )
        _finish(axes, label)
    return figure


def _draw(axes: Axes, history: History, quantity: str) -> None:
    for model, records in history.items():
        for split, style in STYLES.items():
            name = f"{split}/{quantity}"
            points = [(record["epoch"], record[name]) for record in records if name in record]
            if not points:
                continue
            epochs, values = zip(*points, strict=True)
            marked = split == "validation"
            axes.plot(
                epochs,
                values,
                color=COLOURS[model],
                linestyle="-" if marked else DASHES[model],
                marker=look_of(model).marker if marked else "",
                # About twelve markers whatever the number of epochs: more would hide the line.
                markevery=max(1, len(points) // 12),
                label=f"{model}, {split}",
                **style,
            )


def _finish(axes: Axes, label: str) -> None:
    axes.set_xlabel("Epoch")
    axes.set_ylabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    grid(axes)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(handlelength=3)
    else:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color="0.4")
