import pytest
import torch

from service.contract.reports import Interval
from tests.reference import evaluation as reference
from tests.unit.evaluation.predictions import CLASSES, labelled_logits
from tests.unit.evaluation.reports import present
from workers.evaluation.by_class import MOST_CLASSES, by_class


def share(successes: int, trials: int) -> Interval | None:
    if trials == 0:
        return None
    low, high = reference.wilson(successes, trials)
    return Interval(value=successes / trials, low=low, high=high)


def close(found: Interval | None, expected: Interval | None) -> bool:
    if found is None or expected is None:
        return found is expected
    return all(
        getattr(found, end) == pytest.approx(getattr(expected, end), abs=1e-12) for end in ("value", "low", "high")
    )


def test_every_number_is_what_counting_one_example_after_the_other_gives() -> None:
    teacher, labels = labelled_logits(0, 60)
    student, _ = labelled_logits(1, strength=1.0, labels=labels)
    answers = {name: [reference.most_likely(row) for row in rows.tolist()] for name, rows in
               (("teacher", teacher), ("student", student))}  # fmt: skip
    found = by_class(teacher, student, labels)
    assert (found.classes, [outcome.label for outcome in found.outcomes]) == (CLASSES, list(range(CLASSES)))
    for outcome in found.outcomes:
        for role in ("teacher", "student"):
            examples, said, right = reference.of_class(answers[role], labels.tolist(), outcome.label)
            assert outcome.examples == examples
            assert close(getattr(outcome, f"{role}_recall"), share(right, examples))
            assert close(getattr(outcome, f"{role}_precision"), share(right, said))
        rows = [row for row, label in enumerate(labels.tolist()) if label == outcome.label]
        same = sum(answers["teacher"][row] == answers["student"][row] for row in rows)
        assert close(outcome.agreement, share(same, len(rows)))
        kls = [
            reference.kl(reference.softmax(teacher[row].tolist()), reference.softmax(student[row].tolist()))
            for row in rows
        ]
        assert outcome.kl == pytest.approx(sum(kls) / len(kls))


def test_a_class_that_is_predicted_only_has_no_recall_and_one_that_is_not_predicted_no_precision() -> None:
    one_hot = 9.0 * torch.eye(4)
    labels = torch.tensor([0, 1, 1])
    found = by_class(one_hot[[0, 2, 2]], one_hot[[0, 0, 0]], labels)
    assert [outcome.label for outcome in found.outcomes] == [0, 1, 2]
    only_predicted = found.outcomes[2]
    assert (only_predicted.examples, only_predicted.teacher_recall, only_predicted.kl) == (0, None, None)
    assert present(only_predicted.teacher_precision).value == 0
    assert found.outcomes[1].student_precision is None
    assert present(found.outcomes[1].student_recall).value == 0


def test_of_very_many_classes_those_are_kept_on_which_the_models_differ_most() -> None:
    K = MOST_CLASSES + 30
    labels = torch.arange(K)
    teacher = 5.0 * torch.eye(K)
    student = teacher.clone()
    student[20] = 0.0
    student[125] = 0.0
    found = by_class(teacher, student, labels)
    kept = [outcome.label for outcome in found.outcomes]
    assert (found.classes, len(kept)) == (K, MOST_CLASSES)
    assert {20, 125} <= set(kept)
    assert kept == sorted(kept)


def test_classes_have_the_names_of_the_dataset_as_far_as_it_has_them() -> None:
    teacher, labels = labelled_logits(0, 60)
    found = by_class(teacher, teacher, labels, ["cat", "dog", "fish"])
    assert [outcome.name for outcome in found.outcomes] == ["cat", "dog", "fish", None, None]
