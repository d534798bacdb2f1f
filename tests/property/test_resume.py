"""Wherever a training is interrupted, and however often, it ends with the bits of the uninterrupted one."""

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.contract.objectives import DecoupledObjective, KdObjective
from service.contract.specs import Training
from tests.unit.training.blobs import CPU, Crash, Interrupting, Listening, blobs, fingerprint, small_network
from workers.distillation.objectives import objective
from workers.journal import Journal, Stopped
from workers.training import loop
from workers.training.checkpoint import load_checkpoint, save_checkpoint
from workers.training.loop import train
from workers.training.outcome import TrainingOutcome

LOSS = objective(KdObjective(temperature=2.0, alpha=0.5, label_smoothing=0.1))
CHANGING = {
    "ramps": objective(
        KdObjective.model_validate(
            {"temperature": {"from": 8, "to": 1, "shape": "cosine"}, "alpha": {"from": 1, "to": 0}}
        )
    ),
    "warm-up": objective(DecoupledObjective(name="dkd", warmup_epochs=3)),
}
TEACHER = {
    name: np.random.default_rng(size).normal(size=(size, 3)).astype(np.float32)
    for name, size in (("train", 60), ("validation", 20))
}
TRAININGS: dict[str, dict[str, Any]] = {
    "adamw": {"schedule": {"name": "cosine", "warmup_epochs": 1.5}, "gradient_clip": 0.5},
    "sgd": {
        "optimizer": {"name": "sgd", "lr": 0.05, "nesterov": True},
        "schedule": {"name": "step", "milestones": [2]},
    },
    "float16": {"precision": "float16", "optimizer": {"name": "adamw", "lr": 0.03}},
    "ramps": {},
    "warm-up": {},
    "patient": {"early_stopping": {"patience": 2, "min_delta": 0.4}, "optimizer": {"name": "adamw", "lr": 0.1}},
}
NEVER = 10**9
EPOCHS, BATCH = 4, 16  # 4 steps and 2 validation batches an epoch


def run(kind: str, journal: Journal, checkpoint: Path | None, *, initial_seed: int = 0) -> TrainingOutcome:
    """Train from the checkpoint, if there is one, as a new process would."""
    training = Training.model_validate({"epochs": EPOCHS, "batch_size": BATCH, **TRAININGS[kind]})

    def save(state: dict[str, Any]) -> Path:
        assert checkpoint is not None
        save_checkpoint(checkpoint, state)
        return checkpoint

    return train(
        small_network(initial_seed),
        blobs(),
        CHANGING.get(kind, LOSS),
        training,
        seed=5,
        device=CPU,
        journal=journal,
        teacher_logits=TEACHER,
        save=save if checkpoint else None,
        resume_from=load_checkpoint(checkpoint) if checkpoint and checkpoint.exists() else None,
    )


@pytest.fixture(autouse=True)
def _a_scale_that_overflows_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """float16 skips the steps whose gradients overflow; here they do within a few steps, not thousands."""

    def eager_scaler(precision: str, _device: torch.device) -> torch.amp.GradScaler:
        return torch.amp.GradScaler("cpu", init_scale=2.0**17, growth_interval=2, enabled=precision == "float16")

    monkeypatch.setattr("workers.training.learner.gradient_scaler", eager_scaler)


@cache
def uninterrupted(kind: str) -> TrainingOutcome:
    return run(kind, Listening(), None)


def assert_same(outcome: TrainingOutcome, kind: str) -> None:
    expected = uninterrupted(kind)
    assert fingerprint(outcome.last_state) == fingerprint(expected.last_state)
    assert fingerprint(outcome.best_state) == fingerprint(expected.best_state)
    assert (outcome.best_epoch, outcome.last_epoch) == (expected.best_epoch, expected.last_epoch)
    assert outcome.history == expected.history


@pytest.mark.parametrize("kind", TRAININGS)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(interruptions=st.lists(st.tuples(st.booleans(), st.integers(1, 15), st.integers(1, 6)), max_size=5))
def test_the_bits_are_those_of_the_uninterrupted_training(
    tmp_path_factory: pytest.TempPathFactory, kind: str, interruptions: list[tuple[bool, int, int]]
) -> None:
    checkpoint = tmp_path_factory.mktemp("work") / "checkpoint.pt"
    # New weights of the model must not matter once there is a checkpoint; without one they are the first ones.
    for crashes, at, due_every in interruptions:
        journal = Interrupting(due_every=due_every)
        journal.crash_at, journal.stop_at = (at, NEVER) if crashes else (NEVER, at)
        torch.rand(at)
        try:
            outcome = run(kind, journal, checkpoint, initial_seed=at if checkpoint.exists() else 0)
        except (Crash, Stopped):
            continue
        assert_same(outcome, kind)
        return
    assert_same(run(kind, Listening(), checkpoint, initial_seed=99 if checkpoint.exists() else 0), kind)


@pytest.mark.parametrize("kind", TRAININGS)
def test_every_single_place_can_be_stopped_at_and_at_most_nothing_is_done_twice(tmp_path: Path, kind: str) -> None:
    at = 1
    while True:
        checkpoint, first, second = tmp_path / f"{at}.pt", Interrupting(stop_at=at), Listening()
        try:
            run(kind, first, checkpoint)
        except Stopped:
            outcome = run(kind, second, checkpoint, initial_seed=99)
        else:
            break
        assert_same(outcome, kind)
        steps = [step for step, _ in first.steps + second.steps]
        assert steps == list(range(1, len(steps) + 1))
        assert [step for step, _ in first.metric_points + second.metric_points] == list(
            range(1, outcome.last_epoch + 1)
        )
        at += 1
    assert at > 6


def test_an_epochs_end_is_written_down_when_none_was_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    quick, slow = Listening(), Listening()
    run("adamw", quick, tmp_path / "quick.pt")
    assert quick.checkpoints == []
    monkeypatch.setattr(loop, "EPOCH_END_SECONDS", -1.0)
    monkeypatch.setattr(loop, "SAVE_SHARE", float("inf"))
    run("adamw", slow, tmp_path / "slow.pt")
    assert [step for _, step in slow.checkpoints] == [4, 8, 12, 16]


def test_a_resumed_training_keeps_its_precision_whatever_it_would_choose_now(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "checkpoint.pt"
    monkeypatch.setattr("workers.training.learner.resolve_precision", lambda *_: "bfloat16")
    with pytest.raises(Stopped):
        run("adamw", Interrupting(stop_at=7), checkpoint)
    monkeypatch.undo()
    assert run("adamw", Listening(), checkpoint).precision == "bfloat16"
