import math

import pytest
import torch

from tests.reference import evaluation as reference
from tests.unit.evaluation.predictions import labelled_logits
from workers.evaluation.by_input import by_input, histogram_of, spread


def test_mean_and_quantiles_are_those_of_the_divergences() -> None:
    teacher, labels = labelled_logits(0, 101)
    student, _ = labelled_logits(1, labels=labels)
    pairs = [(reference.softmax(t), reference.softmax(s)) for t, s in
             zip(teacher.tolist(), student.tolist(), strict=True)]  # fmt: skip
    found = by_input(teacher, student, labels)
    for quantity, function in ((found.kl, reference.kl), (found.jensen_shannon, reference.jensen_shannon)):
        values = [function(p, q) for p, q in pairs]
        assert quantity.mean == pytest.approx(sum(values) / len(values))
        for percent, value in quantity.quantiles.items():
            assert value == pytest.approx(reference.quantile(values, int(percent) / 100))
        assert sum(quantity.histogram) == 101
        assert len(quantity.edges) == len(quantity.histogram) + 1


def test_every_value_is_in_the_bin_between_whose_edges_it_lies() -> None:
    values = torch.tensor([0.0, 1e-12, 0.002, 0.01, 0.5, 0.5, 1e5], dtype=torch.float64)
    edges, histogram = histogram_of(values)
    assert edges[0] == pytest.approx(1e-8)
    assert edges[-1] == pytest.approx(1e2)
    assert (histogram[0], histogram[-1], sum(histogram)) == (2, 1, 7)
    for value, count in ((0.002, 1), (0.01, 1), (0.5, 2)):
        (inside,) = [i for i in range(len(histogram)) if edges[i] <= value * (1 + 1e-12) and value < edges[i + 1]]
        assert histogram[inside] == count


def test_the_histogram_leaves_empty_bins_at_its_ends_out() -> None:
    edges, histogram = histogram_of(torch.full((5,), 0.3, dtype=torch.float64))
    assert histogram == (5,)
    assert math.log10(edges[1] / edges[0]) == pytest.approx(0.25)


def test_equal_models_have_no_divergence_at_all() -> None:
    teacher, _ = labelled_logits(0, 50)
    found = by_input(teacher, teacher.clone())
    assert found.kl.mean == found.kl.quantiles["100"] == 0
    assert found.jensen_shannon.mean == pytest.approx(0, abs=1e-20)
    assert found.kl.histogram == (50,)


def test_the_ten_most_different_inputs_come_with_what_both_models_say() -> None:
    teacher, labels = labelled_logits(0, 80)
    student = teacher.clone()
    for shift, row in enumerate((3, 77, 41)):
        student[row] = teacher[row].roll(1) * (3 - shift)
    found = by_input(teacher, student, labels, ["a", "b", "c", "d", "e"])
    assert len(found.most_different) == 10
    kls = [each.kl for each in found.most_different]
    assert kls == sorted(kls, reverse=True)
    assert {each.row for each in found.most_different[:3]} == {3, 77, 41}
    for each in found.most_different:
        p, q = reference.softmax(teacher[each.row].tolist()), reference.softmax(student[each.row].tolist())
        assert each.kl == pytest.approx(reference.kl(p, q), abs=1e-12)
        assert (each.teacher.label, each.teacher.probability) == (p.index(max(p)), pytest.approx(max(p)))
        assert (each.student.label, each.student.probability) == (q.index(max(q)), pytest.approx(max(q)))
        assert (each.label, each.name) == (int(labels[each.row]), "abcde"[int(labels[each.row])])


def test_without_labels_there_are_none_beside_the_predictions() -> None:
    teacher, _ = labelled_logits(0, 4)
    found = by_input(teacher, teacher.flip(1))
    assert [each.label for each in found.most_different] == [None] * 4


def test_one_input_is_enough() -> None:
    assert spread(torch.tensor([0.25], dtype=torch.float64)).quantiles["95"] == 0.25
