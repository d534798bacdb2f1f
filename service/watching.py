"""A job as it runs, in a terminal: a live bar where there is one, else a line for each change worth one."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.progress import Progress

    from service.client import Client

Json = dict[str, Any]
SHOWN_METRICS = 3
LINE_EVERY = 0.1  # of the whole, where there is no terminal
STEPS = frozenset({"scoring", "removing", "refitting"})  # stages that come again with each step of a pruning


def watch(client: "Client", job_id: str, console: "Console") -> Json:
    """Show the job until it is done, and return it."""
    follow = follow_live if console.is_terminal else follow_in_lines

    def metrics(job: Json) -> str:
        return latest(client.metrics(job_id, max_points=2), (job["stage"] or {}).get("name", ""))

    *_, job = follow(client.watch(job_id), metrics, console)
    return job


def follow_live(jobs: Iterator[Json], metrics: Callable[[Json], str], console: "Console") -> Iterator[Json]:
    """Draw a bar that moves, with the stage, the share that is done, the time left and the latest metrics."""
    with bar(console) as progress:
        task = progress.add_task("waiting", total=1.0, metrics="")
        for job in jobs:
            progress.update(
                task,
                description=headline(job),
                completed=fraction(job),
                metrics=f"{time_left(job)}{metrics(job)}",
            )
            yield job


def bar(console: "Console") -> "Progress":
    """Return the bar, not yet drawn."""
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[metrics]}", markup=False),
        console=console,
    )


def follow_in_lines(jobs: Iterator[Json], metrics: Callable[[Json], str], console: "Console") -> Iterator[Json]:
    """Print a line when the state or stage changes, and every tenth of the way; of a stage that comes again, one."""
    last: tuple[str, int] | None = None
    left: set[str] = set()  # the headlines that were followed by another
    for job in jobs:
        told = headline(job)
        if last is not None and last[0] != told:
            left.add(last[0])
        now = (told, 0 if told in left else int(fraction(job) / LINE_EVERY))
        if now != last:
            percent = f"{fraction(job):4.0%}"
            line = "  ".join(part for part in (percent, headline(job), f"{time_left(job)}{metrics(job)}") if part)
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        last = now
        yield job


def headline(job: Json) -> str:
    """Return the job's state, its stage, and why it waits if it does."""
    stage = job.get("stage")
    if stage and not job["done"]:
        return f"{job['state']}: {stage['name']} ({stage['index']}/{stage['total']})"
    place = f" (place {job['queue_position']})" if job.get("queue_position") else ""
    reason = f": {job['reason']}" if job.get("reason") else ""
    return f"{job['state']}{place}{reason}"


def fraction(job: Json) -> float:
    """Return how much is done, 0 to 1."""
    return 1.0 if job["state"] == "succeeded" else float(job["progress"]["fraction"] or 0.0)


def time_left(job: Json) -> str:
    """Return the estimate of the time left, if there is one, with a separator after it."""
    eta = job["progress"].get("eta_seconds")
    if eta is None or job["done"]:
        return ""
    minutes, seconds = divmod(round(eta), 60)
    return f"{minutes}:{seconds:02d} left  "


def latest(series: Json, stage: str) -> str:
    """Return the last point of a few series, the stage's own if it has some, validation before training."""
    own = {name: points for name, points in series.items() if belongs(name, stage)}
    last = {name: points[-1] for name, points in (own or series).items() if points}
    newest_first = sorted(last, key=lambda name: (-last[name][0], "validation" not in name, "accuracy" not in name))
    shown = [name for name in newest_first if last[name][1] is not None][:SHOWN_METRICS]
    step = f"step {last[shown[0]][0]}: " if shown and shown[0].startswith("pruning/") else ""
    return step + "  ".join(f"{name} {last[name][1]:.4g}" for name in shown)


def belongs(name: str, stage: str) -> bool:
    """Whether a series tells of a stage."""
    if stage == "recovering":
        return not name.startswith("pruning/")
    return name.startswith("pruning/" if stage in STEPS else f"{stage}/")
