"""The table of criteria: every name, one signature, what each needs, and how well the fast ones stand for the exact."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from sklearn.datasets import load_digits
from torch import Tensor, nn

from service.contract.criteria import CRITERIA, InformationDrop, LossDelta, OutputEntropy, OutputKl
from service.contract.errors import Invalid
from tests.architectures import quiet
from tests.reference import criteria as reference
from tests.unit.pruning.subjects import AMPLE, SILENT, Subject, judged, outputs, subject
from workers.formats.pt2_reader import read_pt2
from workers.graph.lifting import lift
from workers.pruning.criteria.criteria import FUNCTIONS, score
from workers.pruning.ranks import ranks, spearman
from workers.pruning.scores import Scores


def scored(case: Subject, options: Any, **also: Any) -> Scores:
    defaults = {"reference": None, "seed": 0, "memory_bytes": AMPLE, "journal": SILENT}
    return score(*case.all, options, **(defaults | also))


def row(scores: Scores) -> Tensor:
    return torch.cat(list(scores.values.values()))


def test_no_criterion_is_missing() -> None:
    assert set(CRITERIA) == set(FUNCTIONS)


@pytest.mark.parametrize("name", sorted(FUNCTIONS))
def test_each_criterion_scores_every_unit_of_a_residual_network(name: str) -> None:
    case = subject("resnet8", 4)
    found = scored(case, CRITERIA[name](name=name))
    assert {group: len(values) for group, values in found.values.items()} == {
        group: part.num_units for group, part in case.groups.items()
    }
    assert row(found).isfinite().all()
    assert row(found).dtype == torch.float64
    assert found.comparable == CRITERIA[name].comparable
    assert found.examples == (4 if CRITERIA[name].needs_inputs else 0)


@pytest.mark.parametrize("name", sorted(name for name in FUNCTIONS if not CRITERIA[name].needs_labels))
def test_criteria_that_need_no_labels_do_without(name: str) -> None:
    case = subject("mlp", 4, labelled=False)
    assert row(scored(case, CRITERIA[name](name=name))).isfinite().all()


@pytest.mark.parametrize("name", sorted(name for name in FUNCTIONS if CRITERIA[name].needs_labels))
def test_criteria_that_need_labels_say_so(name: str) -> None:
    case = subject("mlp", 4, labelled=False)
    with pytest.raises(Invalid, match=f"{name} needs labels"):
        scored(case, CRITERIA[name](name=name))


@pytest.mark.parametrize("name", ["resnet8", "densenet", "efficientnet", "vit", "sentences"])
def test_exact_scores_are_those_of_the_naive_loop(name: str) -> None:
    case = subject(name, 3)
    base = outputs(case)
    kl = scored(case, OutputKl(mode="exact", ablation="zero"))
    drop = scored(case, InformationDrop(name="information_drop", ablation="zero"))
    loss = scored(case, LossDelta(name="loss_delta", ablation="zero"))
    for group in list(case.groups)[:3]:
        y = reference.ablated_outputs(case.network, case.reads, case.x, group, 1, "zero", {})
        expected = reference.mean(reference.kl_changes(base, base, y, 1.0))
        assert float(kl.values[group][1]) == pytest.approx(expected, rel=1e-6, abs=1e-9)
        expected = reference.information(base) - reference.information(y)
        assert float(drop.values[group][1]) == pytest.approx(expected, rel=1e-6, abs=1e-9)
        before, after = (reference.mean(reference.losses(z, case.labels)) for z in (base, y))
        assert float(loss.values[group][1]) == pytest.approx(after - before, rel=1e-6, abs=1e-9)


# A trained network -------------------------------------------------------------------------------------------------


@functools.cache
def digits_perceptron(tmp_folder: Path) -> Subject:
    """A perceptron trained on the digits of scikit-learn, with 200 held-out digits."""
    x, y = load_digits(return_X_y=True)
    x, y = torch.from_numpy(x).float() / 16, torch.from_numpy(y)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32), nn.ReLU(), nn.Linear(32, 10))
        optimizer = torch.optim.Adam(network.parameters(), 3e-3)
        for _ in range(25):
            for rows in torch.randperm(1500).view(-1, 100):
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
                optimizer.step()
    path = tmp_folder / "digits.pt2"
    with quiet():
        program = torch.export.export(network.eval(), (x[:2],), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        torch.export.save(program, path)
    return judged(lift(read_pt2(path)).eval(), x[1500:1700].numpy(), y[1500:1700].numpy())


@pytest.fixture
def digits(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    return digits_perceptron(tmp_path_factory.getbasetemp())


@pytest.mark.parametrize("ablation", ["zero", "mean", "residual"])
def test_linearised_scores_rank_units_as_exact_ones_do(digits: Subject, ablation: str) -> None:
    linear = scored(digits, OutputKl(ablation=ablation))
    exact = scored(digits, OutputKl(ablation=ablation, mode="exact", temperature=4.0))
    assert spearman(row(linear), row(exact)) > 0.9


def test_probes_rank_units_nearly_as_well_as_all_classes(digits: Subject) -> None:
    every, probed = scored(digits, OutputKl()), scored(digits, OutputKl(probes=4))
    assert spearman(row(every), row(probed)) > 0.9


def test_screened_scores_remove_whom_exact_ones_remove(digits: Subject) -> None:
    cuts = {name: group.num_units // 2 for name, group in digits.groups.items()}
    found = scored(digits, OutputKl(mode="screened"), expected_removed=cuts)
    exact = scored(digits, OutputKl(mode="exact", temperature=4.0))
    for name, count in cuts.items():
        going, should = (set(part.values[name].argsort()[:count].tolist()) for part in (found, exact))
        assert len(going - should) <= 1
    assert "scored exactly" in found.notes[-1]


def test_taken_literally_the_starting_formula_is_told_to_rank_backwards(digits: Subject) -> None:
    found = scored(digits, OutputEntropy(name="output_entropy"))
    assert len(found.notes) == 1
    negative = float((row(found) < 0).double().mean())
    assert f"{negative:.0%} of the units have a negative score" in found.notes[0]
    exact = scored(digits, OutputKl(mode="exact", ablation="mean"))
    assert (
        f"correlation with the exact KL of the same ablation is {spearman(row(found), row(exact)):+.2f}"
        in found.notes[0]
    )
    assert spearman(row(found), row(exact)) < -0.5


@pytest.mark.parametrize("options", [{"absolute": True}, {"reading": "marginal"}])
def test_other_readings_of_the_starting_formula_come_without_the_warning(digits: Subject, options: Any) -> None:
    assert scored(digits, OutputEntropy(name="output_entropy", **options)).notes == ()


def test_a_teacher_is_looked_at_unless_the_current_network_is_asked_for(digits: Subject) -> None:
    teacher = torch.zeros(200, 10)
    own = scored(digits, OutputKl(reference="current"), reference=teacher)
    assert torch.equal(row(own), row(scored(digits, OutputKl())))
    assert not torch.equal(row(own), row(scored(digits, OutputKl(), reference=teacher)))


def test_the_default_temperature_is_one_for_exact_scores_and_four_else(digits: Subject) -> None:
    def same(left: OutputKl, right: OutputKl) -> bool:
        return torch.allclose(row(scored(digits, left)), row(scored(digits, right)))

    assert same(OutputKl(mode="exact"), OutputKl(mode="exact", temperature=1.0))
    assert same(OutputKl(), OutputKl(temperature=4.0))


# Ranks ---------------------------------------------------------------------------------------------------------------


def test_ties_share_their_rank() -> None:
    assert ranks(torch.tensor([3.0, 1.0, 3.0, 2.0])).tolist() == [3.5, 1.0, 3.5, 2.0]


def test_spearman_is_that_of_scipy() -> None:
    a, b = np.random.default_rng(0).integers(0, 9, (2, 50))
    assert spearman(torch.from_numpy(a), torch.from_numpy(b)) == pytest.approx(spearmanr(a, b).statistic)
