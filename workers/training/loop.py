"""One deterministic, resumable loop, used by everything that trains.

An epoch visits every training example once, in an order that is a function of (seed, epoch); a step draws its
randomness from (seed, step). Between two steps the whole state of a training is therefore its weights, its
optimiser's state, its place, and a few sums, all of which `Loop.state` returns and `Loop.restore` puts back:
an interrupted training ends with the same bits as an uninterrupted one.

Losses are summed on the device and looked at now and then, since each look makes a GPU wait.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn

from service.contract.errors import Diverged, Invalid
from service.contract.specs import Training
from workers.journal import Journal, Stopped
from workers.training.data import Dataset, Split
from workers.training.determinism import (
    Positions,
    batch_bounds,
    deterministic,
    epoch_order,
    random_state,
    restore_random_state,
    seed_step,
)
from workers.training.learner import Learner, Loss, loss_at
from workers.training.outcome import State, TrainingOutcome, copied_state
from workers.training.schedules import multiplier
from workers.training.selection import Watch, doubt_about_selection, is_over, observe, score
from workers.training.validation import Logits, gather, validate

STEPS_BETWEEN_LOOKS = 20  # steps whose losses are looked at together
EPOCH_END_SECONDS = 2.0  # an epoch's end is saved unless something was this recently,
SAVE_SHARE = 0.05  # or saving would take more than this share of the time

Save = Callable[[dict[str, Any]], Path]  # state -> the place of the complete checkpoint


def train(
    model: nn.Module,
    dataset: Dataset,
    loss: Loss,
    training: Training,
    *,
    seed: int,
    device: torch.device,
    journal: Journal,
    teacher_logits: Mapping[str, Logits] | None = None,
    save: Save | None = None,
    resume_from: Mapping[str, Any] | None = None,
    series: str = "",
) -> TrainingOutcome:
    """Train `model` in place, on `device`, and return its last and its best state.

    Parameters
    ----------
    loss: (student's logits, teacher's logits or None, labels or None) -> mean over the batch. One that changes
        over the training (`ChangingLoss`) is as it will be at the end where validation judges epochs by it.
    teacher_logits: by split name, "train" and "validation"; rows by position in the split.
    save: writes the given state, durably, and says where; without it nothing is written.
    resume_from: a state that was given to `save`. The model's own weights do not matter then.
    series: goes before the names of metrics, to tell two trainings of one job apart.

    Raises
    ------
    Diverged: the loss or a weight is NaN or infinite.
    Invalid: there is nothing to train, or nothing to train on.
    Stopped: the journal said so; the state of that moment was saved before.
    """
    with deterministic(device):
        loop = Loop(model, dataset, loss, training, seed, device, journal, teacher_logits or {}, save, series)
        if resume_from is not None:
            loop.restore(resume_from)
        return loop.run()


class Loop:
    """A training in progress."""

    def __init__(
        self,
        model: nn.Module,
        dataset: Dataset,
        loss: Loss,
        training: Training,
        seed: int,
        device: torch.device,
        journal: Journal,
        teacher_logits: Mapping[str, Logits],
        save: Save | None,
        series: str,
    ) -> None:
        if dataset.train is None:
            raise Invalid("the dataset has no training split; register one with x_train, or with fewer held-out rows")
        self.learner = Learner(model, training, device)
        self.split: Split = dataset.train
        self.validation = dataset.validation
        self.loss, self.training, self.seed, self.device = loss, training, seed, device
        self.journal, self.teacher_logits, self.save, self.series = journal, teacher_logits, save, series
        self.bounds = batch_bounds(len(self.split), training.batch_size)
        self.num_steps = training.epochs * len(self.bounds)
        self.epoch = 0  # epochs that are complete
        self.step_in_epoch = 0
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.num_correct = torch.zeros((), dtype=torch.int64, device=device)
        self.watch = Watch()
        self.best_state: State | None = None
        self.history: list[dict[str, float]] = []
        self.saved_at: tuple[int, int] | None = None
        self.saved_time, self.save_seconds = time.monotonic(), 0.0
        self.examples_per_second: float | None = None  # of the last epoch that this process took steps in
        if (doubt := doubt_about_selection(training, self.validation)) is not None:
            journal.event("warning", {"text": doubt})

    @property
    def step(self) -> int:
        """Steps that are complete, over all epochs."""
        return self.epoch * len(self.bounds) + self.step_in_epoch

    @property
    def learning_rate(self) -> float:
        """The rate of the step that comes next; in the middle of closing an epoch, of the last one."""
        step = min(self.step, (self.epoch + 1) * len(self.bounds) - 1)
        training = self.training
        return training.optimizer.lr * multiplier(training.schedule, step, len(self.bounds), self.num_steps)

    def run(self) -> TrainingOutcome:
        """Go on from here to the end."""
        text = f"training in {self.learner.precision}, from step {self.step} of {self.num_steps}"
        self.journal.event("log", {"text": text})
        try:
            while not self._is_over():
                self._finish_steps()
                self._close_epoch()
        except Stopped:
            self._save()
            raise
        last = copied_state(self.learner.model)
        return TrainingOutcome(
            last_state=last,
            best_state=last if self.best_state is None else self.best_state,
            last_epoch=self.epoch,
            best_epoch=self.epoch if self.best_state is None else self.watch.best_epoch,
            num_steps=self.step,
            stopped_early=self.epoch < self.training.epochs,
            precision=self.learner.precision,
            history=tuple(self.history),
        )

    def state(self) -> dict[str, Any]:
        """Everything that the rest of this training depends on."""
        return {
            **self.learner.state(),
            "random": random_state(self.device),
            "epoch": self.epoch,
            "step_in_epoch": self.step_in_epoch,
            "loss_sum": self.loss_sum,
            "num_correct": self.num_correct,
            "watch": asdict(self.watch),
            "best_state": self.best_state,
            "history": self.history,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become the training that `state` was taken from; its choices are used again, not made again."""
        self.learner.restore(state)
        restore_random_state(state["random"], self.device)
        self.epoch, self.step_in_epoch = state["epoch"], state["step_in_epoch"]
        self.loss_sum = state["loss_sum"].to(self.device)
        self.num_correct = state["num_correct"].to(self.device)
        self.watch = Watch(**state["watch"])
        self.best_state = state["best_state"]
        self.history = list(state["history"])
        self.saved_at = (self.epoch, self.step_in_epoch)

    def _is_over(self) -> bool:
        return self.epoch == self.training.epochs or is_over(self.watch, self.training.early_stopping)

    def _finish_steps(self) -> None:
        order = epoch_order(self.seed, self.epoch, len(self.split))
        left = self.bounds[self.step_in_epoch :]
        self.learner.model.train()
        started = time.perf_counter()
        for start, stop in left:
            self._take_step(order[start:stop])
            self.journal.progress(self.step, self.num_steps)
            if self.step_in_epoch % STEPS_BETWEEN_LOOKS == 0:
                self._check_loss()
            if self.journal.checkpoint_is_due():
                self._save()
            self.journal.check()
        self._check_loss()  # waits for the device, so that what follows is the true time
        if left:
            self.examples_per_second = (len(self.split) - left[0][0]) / (time.perf_counter() - started)

    def _take_step(self, positions: Positions) -> None:
        x, labels = self.split.batch(positions, self.device)
        taught = gather(self.teacher_logits.get("train"), positions, self.device)
        seed_step(self.seed, self.step, self.device)
        now = loss_at(self.loss, self.epoch + 1, self.step / self.num_steps)
        loss, logits = self.learner.learn(x, labels, taught, now, self.learning_rate)
        self.loss_sum += loss * len(positions)
        if labels is not None:
            self.num_correct += (logits.argmax(dim=-1) == labels).sum()
        self.step_in_epoch += 1

    def _close_epoch(self) -> None:
        """Judge the epoch, remember it, and begin the next; until its last line the epoch can be judged again."""
        if not self.learner.is_finite():
            raise self._diverged("a weight became NaN or infinite")
        metrics = {**self._training_metrics(), **self._validation_metrics(), "learning_rate": self.learning_rate}
        speed = {"examples_per_second": self.examples_per_second} if self.examples_per_second else {}
        epoch = self.epoch + 1
        self.journal.metrics(epoch, {self.series + name: value for name, value in {**metrics, **speed}.items()})
        self.history.append({"epoch": epoch, **metrics})
        self._observe(epoch, metrics)
        self.epoch, self.step_in_epoch = epoch, 0
        self.loss_sum.zero_()
        self.num_correct.zero_()
        pause = max(EPOCH_END_SECONDS, self.save_seconds / SAVE_SHARE)
        if self.journal.checkpoint_is_due() or time.monotonic() - self.saved_time > pause:
            self._save()

    def _training_metrics(self) -> dict[str, float]:
        metrics = {"train/loss": float(self.loss_sum) / len(self.split)}
        if self.split.y is not None:
            metrics["train/accuracy"] = int(self.num_correct) / len(self.split)
        return metrics

    def _validation_metrics(self) -> dict[str, float]:
        if self.validation is None:
            return {}
        metrics = validate(
            self.learner.model,
            self.validation,
            self.loss,
            self.teacher_logits.get("validation"),
            batch_size=self.training.batch_size,
            precision=self.learner.precision,
            device=self.device,
            journal=self.journal,
        )
        if not math.isfinite(metrics["validation/loss"]):
            raise self._diverged(f"the validation loss is {metrics['validation/loss']}")
        return metrics

    def _observe(self, epoch: int, metrics: Mapping[str, float]) -> None:
        if self.validation is None:
            return
        stopping = self.training.early_stopping
        value = score(metrics, "loss" if stopping is None else stopping.monitor)
        self.watch = observe(self.watch, epoch, value, 0.0 if stopping is None else stopping.min_delta)
        if self.watch.best_epoch == epoch:
            self.best_state = copied_state(self.learner.model)

    def _save(self) -> None:
        place = (self.epoch, self.step_in_epoch)
        if self.save is None or self.saved_at == place:
            return
        self._check_loss()
        started = time.monotonic()
        self.journal.checkpoint(self.save(self.state()), self.step)
        self.saved_at, self.saved_time = place, time.monotonic()
        self.save_seconds = self.saved_time - started

    def _check_loss(self) -> None:
        if not math.isfinite(float(self.loss_sum)):
            raise self._diverged("the training loss became NaN or infinite")

    def _diverged(self, what: str) -> Diverged:
        return Diverged(
            f"{what} by step {self.step} of {self.num_steps} (epoch {self.epoch + 1}, learning rate "
            f"{self.learning_rate:.3g}). Try a tenth of the learning rate, a gradient_clip of 1, a warm-up "
            "(schedule.warmup_epochs), or precision float32; and check that the inputs are normalised"
        )
