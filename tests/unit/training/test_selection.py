import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.contract.errors import Invalid
from service.contract.specs import EarlyStopping, Training
from tests.reference import training as reference
from tests.unit.training.blobs import blobs
from workers.training.selection import Watch, doubt_about_selection, is_over, observe, score

LOSSES = st.lists(st.sampled_from([0.5, 0.6, 0.7, 0.8, 0.9, 1.0]), min_size=1, max_size=25)


@given(LOSSES, st.integers(1, 5), st.sampled_from([0.0, 0.15, 0.3]))
def test_patience_ends_where_the_definition_says(losses: list[float], patience: int, min_delta: float) -> None:
    stopping = EarlyStopping(patience=patience, min_delta=min_delta)
    watch, epoch = Watch(), 0
    while epoch < len(losses) and not is_over(watch, stopping):
        epoch += 1
        watch = observe(watch, epoch, losses[epoch - 1], min_delta)
    assert epoch == reference.last_epoch_by_patience(losses, patience, min_delta)


@given(LOSSES)
def test_the_best_epoch_is_the_first_of_the_lowest(losses: list[float]) -> None:
    watch = Watch()
    for epoch, loss in enumerate(losses, start=1):
        watch = observe(watch, epoch, loss, min_delta=0.25)
    assert watch.best_epoch == losses.index(min(losses)) + 1


def test_without_early_stopping_patience_never_ends() -> None:
    assert not is_over(replace(Watch(), epochs_waited=10**6), None)


def test_a_higher_accuracy_is_a_lower_score() -> None:
    better, worse = {"validation/accuracy": 0.9}, {"validation/accuracy": 0.8}
    assert score(better, "accuracy") < score(worse, "accuracy") < math.inf
    assert score({"validation/loss": 1.5}, "loss") == 1.5


def test_a_missing_validation_split_is_told() -> None:
    assert "no validation split" in str(doubt_about_selection(Training(), None))
    assert doubt_about_selection(Training(select="last"), None) is None
    assert doubt_about_selection(Training(), blobs().validation) is None


def test_the_accuracy_of_unlabelled_data_cannot_be_watched() -> None:
    watching = Training(early_stopping=EarlyStopping(monitor="accuracy"))
    with pytest.raises(Invalid, match="no labels"):
        doubt_about_selection(watching, blobs(labelled=False).validation)
