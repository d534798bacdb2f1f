"""What units say by themselves: binned activations, and what they know of the label."""

import numpy as np
import pytest
import torch

from service.contract.errors import Invalid
from tests.reference import criteria as reference
from tests.unit.pruning.subjects import AMPLE, SILENT, judged, subject
from workers.pruning import observation
from workers.pruning.criteria.activation import activation_entropy, label_information

NAMES = ["lenet", "densenet", "torch_encoder", "sentences"]
OPTIONS = {"memory_bytes": AMPLE, "journal": SILENT}


@pytest.mark.parametrize("name", NAMES)
def test_activation_entropy_is_the_entropy_of_the_bins(name: str) -> None:
    case = subject(name, 12)
    found = activation_entropy(*case.all, bins=4, **OPTIONS)
    assert not found.comparable
    for group in case.groups:
        values = reference.pooled_activations(case.network, case.reads[group][0], case.x).double().numpy()
        for unit in (0, values.shape[1] - 1):
            expected = reference.counts_entropy(reference.bins_of(values[:, unit], 4))
            assert float(found.values[group][unit]) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", ["lenet", "sentences"])
def test_label_information_is_the_corrected_information_of_the_bins(name: str) -> None:
    case = subject(name, 12)
    found = label_information(*case.all, bins=3, **OPTIONS)
    for group in case.groups:
        values = reference.pooled_activations(case.network, case.reads[group][0], case.x).double().numpy()
        expected = reference.corrected_information(reference.bins_of(values[:, 0], 3), case.labels.numpy())
        assert float(found.values[group][0]) == pytest.approx(expected, abs=1e-9)


def test_neither_depends_on_the_batches_nor_on_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    case = subject("densenet", 12)
    whole = label_information(*case.all, bins=4, **OPTIONS)
    monkeypatch.setattr(observation, "MAX_BATCH", 5)
    parts = label_information(*case.all, bins=4, memory_bytes=2000, journal=SILENT)
    for name, values in whole.values.items():
        torch.testing.assert_close(parts.values[name], values, rtol=1e-9, atol=1e-9)


def test_a_unit_that_never_changes_says_nothing() -> None:
    case = subject("lenet", 6)
    same = judged(case.network, np.repeat(case.calibration.split.x[:1], 6, 0), np.arange(6))
    found = activation_entropy(*same.all, bins=8, **OPTIONS)
    assert all((value.abs() < 1e-12).all() for value in found.values.values())


def test_label_information_wants_labels_and_labels_that_the_network_knows() -> None:
    unlabelled = subject("lenet", labelled=False)
    with pytest.raises(Invalid, match="needs labels"):
        label_information(*unlabelled.all, bins=4, **OPTIONS)
    case = subject("lenet")
    beyond = judged(case.network, case.calibration.split.x, np.arange(5) + 8)
    with pytest.raises(Invalid, match="10 classes"):
        label_information(*beyond.all, bins=4, **OPTIONS)
