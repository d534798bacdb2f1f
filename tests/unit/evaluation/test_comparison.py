import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from tests.reference import evaluation as reference
from tests.unit.evaluation.predictions import labelled_logits
from tests.unit.evaluation.reports import present
from workers.evaluation.comparison import (
    Ratios,
    advantage_over_each,
    agreement_on_errors,
    compare,
    divergence_rows,
    mcnemar,
    symmetric_binomial_p_value,
)
from workers.evaluation.intervals import mean_intervals
from workers.evaluation.quality import correct
from workers.information.bootstrap import Resampling

Answers = tuple[Tensor, Tensor, Tensor]
RATIOS = Ratios(latency=0.5, macs=0.25, parameters=0.2)


@pytest.fixture(scope="module")
def answers() -> Answers:
    teacher, labels = labelled_logits(0, strength=4.0)
    student, _ = labelled_logits(1, strength=2.0, labels=labels)
    return teacher, student, labels


def test_divergences_are_what_the_formulas_say(answers: Answers) -> None:
    teacher, student, labels = answers
    found = compare(teacher, student, labels, ratios=RATIOS)
    pairs = [
        (reference.softmax(t), reference.softmax(s))
        for t, s in zip(teacher.double().tolist(), student.double().tolist(), strict=True)
    ]
    n = len(pairs)
    assert found.kl_teacher_student.value == pytest.approx(sum(reference.kl(p, q) for p, q in pairs) / n)
    assert found.kl_student_teacher.value == pytest.approx(sum(reference.kl(q, p) for p, q in pairs) / n)
    assert found.jensen_shannon.value == pytest.approx(sum(reference.jensen_shannon(p, q) for p, q in pairs) / n)


def test_differences_are_student_minus_teacher(answers: Answers) -> None:
    teacher, student, labels = answers
    found = compare(teacher, student, labels, ratios=RATIOS)
    t, s, y = teacher.double().tolist(), student.double().tolist(), labels.tolist()
    nll = reference.negative_log_likelihood(s, y) - reference.negative_log_likelihood(t, y)
    assert present(found.nll_difference).value == pytest.approx(nll)
    certainty = reference.predictive_entropy(s) - reference.predictive_entropy(t)
    assert present(found.predictive_entropy_difference).value == pytest.approx(certainty)
    right = [sum(reference.most_likely(row) == label for row, label in zip(m, y, strict=True)) for m in (t, s)]
    assert present(found.accuracy_difference).value == pytest.approx((right[1] - right[0]) / len(y))


def test_agreement_is_counted_over_all_examples_and_over_the_teachers_errors(answers: Answers) -> None:
    teacher, student, labels = answers
    found = compare(teacher, student, labels, ratios=RATIOS)
    same = [reference.most_likely(t) == reference.most_likely(s) for t, s in zip(teacher, student, strict=True)]
    wrong = [reference.most_likely(t) != y for t, y in zip(teacher, labels.tolist(), strict=True)]
    assert found.agreement.value == sum(same) / len(same)
    shared = [a for a, b in zip(same, wrong, strict=True) if b]
    assert present(found.agreement_on_teacher_errors).value == sum(shared) / len(shared)


def test_a_teacher_without_errors_has_no_agreement_on_them() -> None:
    logits = torch.eye(3)
    assert agreement_on_errors(logits, logits, torch.arange(3)) is None


def test_a_copy_of_the_teacher_differs_in_nothing(answers: Answers) -> None:
    teacher, _, labels = answers
    found = compare(teacher, teacher.clone(), labels, ratios=RATIOS)
    assert found.agreement.value == 1
    zero = [
        found.kl_teacher_student,
        found.jensen_shannon,
        *map(present, (found.accuracy_difference, found.nll_difference)),
    ]
    assert all((i.value, i.low, i.high) == pytest.approx((0, 0, 0), abs=1e-15) for i in zero)
    assert (present(found.mcnemar).b, present(found.mcnemar).c, present(found.mcnemar).p_value) == (0, 0, 1.0)


def test_without_labels_only_what_needs_none_is_said(answers: Answers) -> None:
    teacher, student, labels = answers
    found = compare(teacher, student, None, ratios=RATIOS)
    full = compare(teacher, student, labels, ratios=RATIOS)
    assert [found.mcnemar, found.accuracy_difference, found.agreement_on_teacher_errors] == [None] * 3
    assert found.kl_teacher_student == full.kl_teacher_student


def test_the_same_seed_gives_the_same_intervals_and_another_seed_others(answers: Answers) -> None:
    first, again, other = (compare(*answers, ratios=RATIOS, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.kl_teacher_student.low != other.kl_teacher_student.low


def test_pairing_makes_the_interval_of_a_difference_narrower_than_two_separate_ones() -> None:
    teacher, labels = labelled_logits(0, 400, strength=1.0)
    student = teacher + 0.3 * torch.randn(teacher.shape, generator=torch.Generator().manual_seed(5))
    found = compare(teacher, student, labels, ratios=RATIOS)
    right = correct(student, labels).double()
    unpaired = 2 * 1.96 * math.sqrt(2 * float(right.var()) / 400)
    interval = present(found.accuracy_difference)
    assert interval.high - interval.low < 0.6 * unpaired


def test_the_divergence_intervals_cover_the_truth_about_95_times_in_100() -> None:
    population = divergence_rows(labelled_logits(0, 20_000)[0], labelled_logits(1, 20_000)[0])["jensen_shannon"]
    truth, generator = float(population.mean()), torch.Generator().manual_seed(0)
    covered = 0
    for seed in range(100):
        drawn = population[torch.randint(len(population), (100, 1), generator=generator)]
        (interval,) = mean_intervals(drawn, Resampling(num_resamples=400, seed=seed))
        covered += interval.low <= truth <= interval.high
    assert 0.90 <= covered / 100 <= 0.99


@pytest.mark.parametrize(("b", "c"), [(0, 0), (0, 1), (0, 6), (5, 5), (3, 11), (40, 22), (300, 250)])
def test_mcnemars_test_is_exact(b: int, c: int) -> None:
    found = symmetric_binomial_p_value(b, c)
    assert found == pytest.approx(reference.mcnemar_p_value(b, c), rel=1e-9)
    if b + c:
        assert found == pytest.approx(stats.binomtest(b, b + c).pvalue, rel=1e-9)


def test_mcnemars_test_holds_for_a_million_examples() -> None:
    assert symmetric_binomial_p_value(500_000, 501_500) == pytest.approx(
        stats.binomtest(500_000, 1_001_500).pvalue, rel=1e-6
    )
    assert symmetric_binomial_p_value(10, 500_000) == 0


def test_mcnemar_counts_only_the_examples_on_which_the_models_differ() -> None:
    first = torch.tensor([True, True, True, False, False])
    second = torch.tensor([True, False, False, True, False])
    found = mcnemar(first, second)
    assert (found.b, found.c) == (2, 1)


def test_the_effect_of_distillation_is_the_student_minus_its_control(answers: Answers) -> None:
    teacher, student, labels = answers
    control, _ = labelled_logits(2, strength=1.0, labels=labels)
    effect = advantage_over_each(teacher, student, {"control": control}, labels)["control"]
    student_kl = divergence_rows(teacher, student)["kl_teacher_student"].mean()
    control_kl = divergence_rows(teacher, control)["kl_teacher_student"].mean()
    assert effect.kl_difference.value == pytest.approx(float(student_kl - control_kl))
    assert present(effect.accuracy_difference).low > 0
    assert present(effect.mcnemar).c > present(effect.mcnemar).b
    assert present(effect.nll_difference).high < 0
