import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from service.contract.errors import Diverged, Invalid
from service.contract.specs import SGD, AdamW, Constant, Cosine, EarlyStopping, KdObjective, Training
from tests.unit.training.blobs import CPU, Listening, blobs, fingerprint, small_network
from workers.distillation.objectives import labels_only, objective
from workers.training.data import Dataset
from workers.training.learner import Loss
from workers.training.loop import train
from workers.training.outcome import TrainingOutcome
from workers.training.validation import validate

LABELS = labels_only(KdObjective())
CONSTANT = Constant(name="constant")


def trained(training: Training, dataset: Dataset | None = None, **options: object) -> TrainingOutcome:
    arguments = {"seed": 0, "device": CPU, "journal": Listening(), **options}
    return train(small_network(), dataset or blobs(), LABELS, training, **arguments)  # type: ignore[arg-type]  # by name


def test_a_network_learns() -> None:
    outcome = trained(Training(epochs=15, batch_size=16, optimizer=AdamW(lr=0.03)), blobs(noise=0.5))
    assert outcome.history[-1]["validation/accuracy"] > 0.9
    assert outcome.history[-1]["train/loss"] < outcome.history[0]["train/loss"] / 2


def test_the_same_seed_gives_the_same_bits_and_another_seed_others() -> None:
    training = Training(epochs=2, batch_size=16)
    first, again, other = trained(training), trained(training), trained(training, seed=1)
    assert fingerprint(first.last_state) == fingerprint(again.last_state)
    assert first.history == again.history
    assert fingerprint(first.last_state) != fingerprint(other.last_state)


def test_the_callers_random_state_changes_nothing() -> None:
    training = Training(epochs=2, batch_size=16)
    first = trained(training)
    torch.rand(5)
    assert fingerprint(trained(training).last_state) == fingerprint(first.last_state)


def test_every_example_is_seen_once_an_epoch_with_its_own_teacher_row() -> None:
    dataset = blobs(num_train=61)
    assert dataset.train is not None
    rows = np.zeros((61, 3), np.float32)
    rows[:, 0] = np.arange(61)
    x, _ = dataset.train.batch(np.arange(61), CPU)
    model, seen, inputs = small_network(), [], []
    model.register_forward_pre_hook(lambda _module, given: inputs.append(given[0]))

    def loss(logits: Tensor, taught: Tensor | None, labels: Tensor | None) -> Tensor:
        assert taught is not None
        seen.append(taught[:, 0].long())
        return LABELS(logits, None, labels)

    train(model, Dataset(dataset.train, None, None, 3, (6,)), loss, Training(epochs=1, batch_size=20, select="last"),
          seed=0, device=CPU, journal=Listening(), teacher_logits={"train": rows})  # fmt: skip
    assert torch.cat(seen).sort().values.tolist() == list(range(61))
    assert torch.equal(torch.cat(inputs), x[torch.cat(seen)])


def test_metrics_are_told_each_epoch_and_progress_each_step() -> None:
    journal = Listening()
    outcome = trained(Training(epochs=3, batch_size=16), journal=journal)
    assert [step for step, _ in journal.metric_points] == [1, 2, 3]
    assert set(journal.metric_points[0][1]) == {
        "train/loss", "train/accuracy", "validation/loss", "validation/accuracy",
        "learning_rate", "examples_per_second",
    }  # fmt: skip
    assert journal.steps == [(step, 12) for step in range(1, 13)]
    assert [row["epoch"] for row in outcome.history] == [1, 2, 3]


def test_the_divergence_from_the_teacher_is_told_where_there_is_one() -> None:
    dataset = blobs()
    assert dataset.validation is not None
    logits = {"train": np.zeros((60, 3), np.float32), "validation": np.zeros((20, 3), np.float32)}
    loss = objective(KdObjective(alpha=0.0, temperature=1.0))
    outcome = train(small_network(), dataset, loss, Training(epochs=1), seed=0, device=CPU, journal=Listening(),
                    teacher_logits=logits)  # fmt: skip
    row = outcome.history[0]
    # At temperature 1 and alpha 0 the loss is the divergence.
    assert row["validation/kl"] == pytest.approx(row["validation/loss"], rel=1e-6)


def test_unlabelled_data_train_on_the_teacher_alone_without_accuracies() -> None:
    logits = {"train": np.zeros((60, 3), np.float32), "validation": np.zeros((20, 3), np.float32)}
    loss = objective(KdObjective(alpha=0.0))
    outcome = train(small_network(), blobs(labelled=False), loss, Training(epochs=2), seed=0, device=CPU,
                    journal=Listening(), teacher_logits=logits)  # fmt: skip
    assert set(outcome.history[0]) == {"epoch", "train/loss", "validation/loss", "validation/kl", "learning_rate"}


def test_the_names_of_a_second_trainings_metrics_are_told_apart() -> None:
    journal = Listening()
    trained(Training(epochs=1), journal=journal, series="control/")
    assert "control/validation/loss" in journal.metric_points[0][1]


def test_the_best_state_is_the_one_whose_validation_loss_is_lowest() -> None:
    # Labels of noise and a rate that overfits: the best epoch is not the last.
    dataset = blobs(noise=4.0)
    training = Training(epochs=25, batch_size=16, optimizer=AdamW(lr=0.1), schedule=CONSTANT)
    outcome = trained(training, dataset)
    losses = [row["validation/loss"] for row in outcome.history]
    assert outcome.best_epoch == losses.index(min(losses)) + 1 < outcome.last_epoch == 25
    assert dataset.validation is not None
    model = small_network()
    model.load_state_dict(outcome.state("best"))
    again = validate(model, dataset.validation, LABELS, None, batch_size=16, precision="float32", device=CPU,
                     journal=Listening())  # fmt: skip
    assert again["validation/loss"] == min(losses)


def test_early_stopping_ends_the_training() -> None:
    stopping = EarlyStopping(patience=2, min_delta=100.0)
    outcome = trained(Training(epochs=20, early_stopping=stopping))
    assert outcome.stopped_early
    assert outcome.last_epoch == 3


def test_without_a_validation_split_the_last_epoch_is_the_best_and_that_is_said() -> None:
    journal = Listening()
    outcome = trained(Training(epochs=2), blobs(num_validation=0), journal=journal)
    assert outcome.best_epoch == outcome.last_epoch == 2
    assert fingerprint(outcome.best_state) == fingerprint(outcome.last_state)
    assert any(kind == "warning" and "no validation split" in data["text"] for kind, data in journal.events)
    assert not any(name.startswith("validation/") for name in outcome.history[0])


def test_a_dataset_without_a_training_split_is_refused() -> None:
    with pytest.raises(Invalid, match="no training split"):
        trained(Training(epochs=1), blobs(num_train=0))


def test_divergence_ends_the_training_with_advice() -> None:
    training = Training(epochs=50, batch_size=16, optimizer=SGD(name="sgd", lr=100.0, weight_decay=100.0))
    with pytest.raises(Diverged, match=r"Try a tenth of the learning rate, a gradient_clip of 1"):
        trained(training)


def test_a_loss_of_nan_ends_the_training_although_no_weight_is_nan_yet() -> None:
    def loss(logits: Tensor, _taught: Tensor | None, _labels: Tensor | None) -> Tensor:
        return logits.mean() * 0.0 + math.nan

    with pytest.raises(Diverged, match="step 4 of 8"):
        train(
            small_network(), blobs(), loss, Training(epochs=2, batch_size=16), seed=0, device=CPU, journal=Listening()
        )


def test_gradients_are_clipped_to_their_norm() -> None:
    # Plain gradient descent, one step: the weights move by exactly lr * clip when the gradient is longer.
    training = Training(epochs=1, batch_size=60, gradient_clip=1e-3, schedule=CONSTANT,
                        optimizer=SGD(name="sgd", lr=1.0, momentum=0.0, weight_decay=0.0))  # fmt: skip
    before, outcome = small_network(), trained(training)
    moved = [parameter.detach() - outcome.last_state[name] for name, parameter in before.named_parameters()]
    assert float(torch.cat([m.flatten() for m in moved]).norm()) == pytest.approx(1e-3, rel=1e-3)


def test_the_learning_rate_told_is_that_of_the_epochs_last_step() -> None:
    outcome = trained(Training(epochs=2, batch_size=30, optimizer=AdamW(lr=1.0), schedule=Cosine()))
    expected = [0.5 * (1 + math.cos(math.pi * step / 4)) for step in (1, 3)]
    assert [row["learning_rate"] for row in outcome.history] == pytest.approx(expected)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_lower_precisions_train_too_and_keep_float32_weights(precision: str) -> None:
    optimizer = {"name": "adamw", "lr": 0.03}
    training = Training.model_validate({"epochs": 10, "batch_size": 16, "optimizer": optimizer, "precision": precision})
    outcome = trained(training)
    assert outcome.precision == precision
    assert outcome.history[-1]["train/loss"] < outcome.history[0]["train/loss"]
    assert all(tensor.dtype in {torch.float32, torch.int64} for tensor in outcome.last_state.values())


def test_batch_norm_on_single_examples_is_told_in_words() -> None:
    with pytest.raises(Invalid, match="use a batch_size of 2 or more"):
        trained(Training(epochs=1, batch_size=1))


class Listed:
    """A loss that remembers the moments it was asked for; at its end it is four times the labels' own."""

    def __init__(self) -> None:
        self.moments: list[tuple[int, float]] = []

    def __call__(self, logits: Tensor, taught: Tensor | None, labels: Tensor | None) -> Tensor:
        return 4 * LABELS(logits, taught, labels)

    def at(self, epoch: int, share: float) -> Loss:
        self.moments.append((epoch, share))
        return LABELS


def test_a_loss_that_changes_is_asked_for_by_step_and_judged_by_its_end() -> None:
    loss, training = Listed(), Training(epochs=2, batch_size=30, select="last")
    arguments: dict[str, Any] = {"seed": 0, "device": CPU, "journal": Listening()}
    changing = train(small_network(), blobs(), loss, training, **arguments)
    constant = train(small_network(), blobs(), LABELS, training, **arguments)
    assert loss.moments == [(1, 0.0), (1, 0.25), (2, 0.5), (2, 0.75)]
    assert fingerprint(changing.last_state) == fingerprint(constant.last_state)
    for ours, theirs in zip(changing.history, constant.history, strict=True):
        assert ours["train/loss"] == theirs["train/loss"]
        assert ours["validation/loss"] == pytest.approx(4 * theirs["validation/loss"], rel=1e-6)
