import pytest
import torch
from sklearn.metrics import confusion_matrix, mutual_info_score
from torch import Tensor

from tests.reference import information as reference
from workers.information.bootstrap import Resampling
from workers.information.mutual import predictive_information
from workers.information.tally import QUANTUM, JointTally, PredictionTally


@pytest.fixture
def logits() -> Tensor:
    return 3 * torch.randn(257, 10, generator=torch.Generator().manual_seed(0))


def tally(logits: Tensor, batch_size: int) -> PredictionTally:
    result = PredictionTally(10)
    for batch in torch.split(logits, batch_size):
        result.update(batch)
    return result


def state(of: PredictionTally) -> tuple[int, int, list[int]]:
    return of.num_rows, of.entropy_quanta, of.probability_quanta.tolist()


def test_a_prediction_tally_measures_what_the_formulas_say(logits: Tensor) -> None:
    measured, table = tally(logits, 64), logits.double().tolist()
    assert measured.mean_prediction().tolist() == pytest.approx(reference.mean_prediction(table), rel=1e-8)
    assert measured.predictive_entropy() == pytest.approx(reference.predictive_entropy(table), rel=1e-8)
    mean_entropy = reference.entropy(reference.mean_prediction(table))
    assert measured.entropy_of_mean_prediction() == pytest.approx(mean_entropy, rel=1e-8)
    assert measured.predictive_information() == pytest.approx(reference.predictive_information(table), rel=1e-8)
    in_bits = float(predictive_information(logits.double(), base=2))
    assert measured.predictive_information(base=2) == pytest.approx(in_bits, rel=1e-8)


@pytest.mark.parametrize("batch_size", [1, 10, 257])
def test_a_prediction_tally_is_the_same_to_the_last_bit_whatever_the_batches(logits: Tensor, batch_size: int) -> None:
    assert state(tally(logits, batch_size)) == state(tally(logits.flip(0), 100))


def test_the_quanta_are_rounded_and_not_cut_off(logits: Tensor) -> None:
    exact = 257 * reference.predictive_entropy(logits.double().tolist())
    # 257 roundings leave about 5 quanta; cutting off would leave 128.
    assert abs(tally(logits, 64).entropy_quanta - exact / QUANTUM) < 25


def test_prediction_tallies_merge_exactly(logits: Tensor) -> None:
    first, second = tally(logits[:40], 7), tally(logits[40:], 50)
    first.merge(second)
    assert state(first) == state(tally(logits, 257))


def test_one_prediction_claims_no_information(logits: Tensor) -> None:
    assert tally(logits[:1], 1).predictive_information() == pytest.approx(0.0, abs=1e-9)


def test_a_prediction_tally_refuses_what_is_no_prediction(logits: Tensor) -> None:
    with pytest.raises(ValueError, match="empty"):
        PredictionTally(10).predictive_entropy()
    with pytest.raises(ValueError, match=r"expected \(n, 10\)"):
        PredictionTally(10).update(logits[:, :9])
    with pytest.raises(ValueError, match="A prediction is NaN"):
        PredictionTally(10).update(logits * torch.nan)
    with pytest.raises(ValueError, match="10 and 9 classes"):
        PredictionTally(10).merge(PredictionTally(9))
    full = PredictionTally(10, num_rows=2**26)
    with pytest.raises(OverflowError, match="at most 67108864 rows"):
        full.update(logits[:1])


def test_a_joint_tally_is_the_confusion_matrix_whatever_the_batches() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(4, (300,), generator=generator)
    predictions = torch.where(torch.rand(300, generator=generator) < 0.7, labels, 0)
    first, second = JointTally(4, 4), JointTally(4, 4)
    for batch in torch.split(torch.arange(200), 33):
        first.update(labels[batch], predictions[batch])
    second.update(labels[200:], predictions[200:])
    first.merge(second)
    assert first.counts.tolist() == confusion_matrix(labels, predictions).tolist()
    estimate = first.mutual_information(estimator="plug_in", resampling=Resampling(500))
    assert estimate.value == pytest.approx(mutual_info_score(labels, predictions))
    assert estimate.num_samples == 300
    assert estimate.interval is not None
    assert estimate.interval.low < estimate.value - estimate.bias < estimate.interval.high


def test_a_joint_tally_refuses_what_is_outside_its_table() -> None:
    with pytest.raises(ValueError, match=r"expected 0\.\.3"):
        JointTally(4, 4).update(torch.tensor([4]), torch.tensor([0]))
    with pytest.raises(ValueError, match="one per example"):
        JointTally(4, 4).update(torch.tensor([1]), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="differ"):
        JointTally(4, 4).merge(JointTally(4, 5))
