import torch

from tests.unit.training.blobs import small_network
from workers.training.outcome import TrainingOutcome, copied_state


def outcome() -> TrainingOutcome:
    network = small_network()
    last = copied_state(network)
    with torch.no_grad():
        next(network.parameters()).add_(1)
    return TrainingOutcome(
        last_state=last,
        best_state=copied_state(network),
        last_epoch=7,
        best_epoch=3,
        num_steps=70,
        stopped_early=True,
        precision="float32",
        history=({"epoch": 1, "train/loss": 0.5},),
    )


def test_a_copied_state_does_not_follow_its_model() -> None:
    made = outcome()
    assert not torch.equal(made.last_state["0.weight"], made.best_state["0.weight"])


def test_either_candidate_can_be_asked_for() -> None:
    made = outcome()
    assert made.state("best") is made.best_state
    assert made.state("last") is made.last_state
    assert (made.epoch("best"), made.epoch("last")) == (3, 7)


def test_an_outcome_survives_a_checkpoint() -> None:
    made = outcome()
    assert TrainingOutcome.from_plain(made.plain()) == made
