"""Gates of the information bottleneck: their loss by its formula, what they leave alone, and whom they let drown."""

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from service.contract.criteria import InformationBottleneck, OutputKl
from service.contract.errors import Diverged, Invalid
from tests.architectures import ARCHIVES, export
from tests.reference.bottleneck import step_loss
from tests.reference.groups import in_double
from tests.unit.pruning.subjects import AMPLE, SILENT, Subject, judged, outputs, subject
from workers.formats.pt2_reader import read_pt2
from workers.graph.lifting import lift
from workers.journal import Silent, Stopped
from workers.pruning.criteria.bottleneck import BottleneckTraining, Gates, Trainer, information_bottleneck, scores_of
from workers.pruning.criteria.criteria import score
from workers.pruning.criteria.gates import output_kl_fisher
from workers.pruning.ranks import spearman
from workers.pruning.scores import Scores

BRIEF = {"epochs": 2, "beta": 0.1, "lr": 0.05, "weight_rate": 0.1, "batch_size": 4, "loss": None}


def trained(case: Subject, **changes: Any) -> Scores:
    also = {name: changes.pop(name) for name in ("seed", "reference", "memory_bytes", "journal") if name in changes}
    settings = {"reference": None, "seed": 0, "memory_bytes": AMPLE, "journal": SILENT} | also
    return information_bottleneck(*case.all, BottleneckTraining(**(BRIEF | changes)), **settings)


def trainer_of(case: Subject, targets: Tensor, memory_bytes: int = AMPLE, **changes: Any) -> Trainer:
    return Trainer(*case.all, BottleneckTraining(**(BRIEF | changes)), targets, 0, memory_bytes)


def row(scores: Scores) -> Tensor:
    return torch.cat(list(scores.values.values()))


def by_group(case: Subject, flat: Tensor) -> dict[str, Tensor]:
    sizes = [group.num_units for group in case.groups.values()]
    return dict(zip(case.groups, flat.split(sizes, -1), strict=True))


# The loss ------------------------------------------------------------------------------------------------------------


class Queries(nn.Module):
    """(B, 6) -> (B, 5): hidden units that no example changes meet such as every example does."""

    def __init__(self) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.randn(5, 4))
        self.hidden, self.keys = nn.Linear(4, 8), nn.Linear(8, 7)
        self.embed = nn.Linear(6, 7)

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x) @ self.keys(self.hidden(self.queries).relu()).T


@functools.cache
def learned_queries() -> Subject:
    torch.manual_seed(0)
    x = torch.randn(3, 6)
    network = in_double(lift(read_pt2(export(Queries(), (x,), Path(ARCHIVES.name) / "queries.pt2")))).eval()
    return judged(network, x.numpy(), np.array([0, 3, 1]))


def moved(trainer: Trainer) -> Gates:
    """The trainer's gates, somewhere else than where they begin, where noise is loud."""
    with torch.no_grad():
        trainer.gates.mean.add_(0.3 * torch.randn_like(trainer.gates.mean))
        trainer.gates.log_variance.add_(8 + torch.randn_like(trainer.gates.mean))
    return trainer.gates


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("mlp", "task"),
        ("mlp", "distillation"),
        ("resnet8", "task"),
        ("densenet", "task"),
        ("vit", "distillation"),
        ("torch_encoder", "task"),
        ("sentences", "task"),
    ],
)
def test_loss_and_gradients_are_those_of_the_formula(name: str, loss: str) -> None:
    case = subject(name, 3)
    torch.manual_seed(1)
    targets = case.labels if loss == "task" else torch.randn_like(outputs(case))
    assert_formula(case, targets, torch.randn(3, sum(group.num_units for group in case.groups.values())))


def test_what_no_example_changes_has_the_noise_of_one() -> None:
    case = learned_queries()
    noise = torch.randn(sum(group.num_units for group in case.groups.values()), generator=torch.Generator())
    assert_formula(case, case.labels, noise.expand(3, -1))


def assert_formula(case: Subject, targets: Tensor, noise: Tensor) -> None:
    trainer = trainer_of(case, targets, beta=0.7)
    gates, noise = moved(trainer), noise.double()
    found = trainer.loss(np.arange(3), noise) / 3 + 0.7 * gates.penalty()
    parts = [by_group(case, part) for part in (gates.mean, gates.log_variance, noise)]
    expected = step_loss(case.network, case.groups, case.reads, case.x, targets, *parts, beta=0.7)
    torch.testing.assert_close(found, expected)
    for gate in (gates.mean, gates.log_variance):
        slopes = [torch.autograd.grad(value, gate, retain_graph=True)[0] for value in (found, expected)]
        assert slopes[0].abs().sum() > 0
        torch.testing.assert_close(*slopes)


@pytest.mark.parametrize(("memory_bytes", "weight_rate"), [(1, 0.1), (AMPLE, 0.1), (AMPLE, 0.0)])
def test_the_first_step_goes_down_the_gradient_of_the_formula(memory_bytes: int, weight_rate: float) -> None:
    case = subject("lenet", 3)
    trainer = trainer_of(case, case.labels, memory_bytes, weight_rate=weight_rate)
    assert (trainer.part == 1) == (memory_bytes == 1)
    generator = torch.Generator()
    generator.set_state(trainer.generator.get_state())
    noise = torch.randn(3, len(trainer.gates.mean), generator=generator, dtype=torch.float64)
    gates = [part.detach().clone().requires_grad_() for part in (trainer.gates.mean, trainer.gates.log_variance)]
    weights = [weight.detach().clone() for weight in trainer.network.parameters()]
    rows = np.array([2, 0, 1])
    parts = [by_group(case, part) for part in (*gates, noise)]
    value = step_loss(case.network, case.groups, case.reads, case.x[rows], case.labels[rows], *parts, beta=0.1)
    slopes = torch.autograd.grad(value, gates)
    trainer.take_step(rows, 0.5)
    for gate, slope, found in zip(gates, slopes, (trainer.gates.mean, trainer.gates.log_variance), strict=True):
        step = 0.5 * 0.05 * slope / (slope.abs() + 1e-8)  # Adam's first, of Kingma and Ba 2015
        torch.testing.assert_close(found.detach(), (gate - step).detach())
    after = [weight.detach() for weight in trainer.network.parameters()]
    moves = [float((new - old).abs().max()) for new, old in zip(after, weights, strict=True)]
    assert max(moves) == pytest.approx(0.5 * 0.05 * weight_rate, rel=1e-3)


@pytest.mark.parametrize("name", ["mlp", "resnet8", "vit", "torch_encoder", "sentences"])
def test_gates_of_one_without_noise_are_the_network_as_it_was(name: str) -> None:
    case = subject(name, 3)
    trainer = trainer_of(case, case.labels)
    with torch.no_grad():
        trainer.gates.mean.fill_(1)
        trainer.gates.log_variance.fill_(-200)
        trainer.listener.use(trainer.gates.sample(torch.randn(3, len(trainer.gates.mean), dtype=torch.float64)))
        torch.testing.assert_close(trainer.reading.outputs(case.x), outputs(case))


# The scores ----------------------------------------------------------------------------------------------------------


def test_scores_are_signal_to_noise_times_cost_and_the_notes_count_who_drowned() -> None:
    case = subject("mlp", 3)
    first, second, *rest = case.groups.values()
    total = sum(group.num_units for group in case.groups.values())
    gates = Gates.drawn(case.groups, torch.float64, torch.device("cpu"), torch.Generator())
    with torch.no_grad():
        gates.mean.fill_(-2)
        gates.log_variance.zero_()
        gates.mean[0] = 1  # log(σ²/μ²) = 0
        gates.mean[first.num_units + 1] = 0
    found = scores_of(case.groups, gates, 3)
    macs = sum(group.macs_per_unit * group.num_units for group in case.groups.values())
    assert found.values[first.name][0] == pytest.approx(first.macs_per_unit / macs)
    assert found.values[second.name][0] == pytest.approx(4 * second.macs_per_unit / macs)
    assert found.values[second.name][1] == 0
    rule = f"Of {total} units, 2 have log(σ²/μ²) ≥ 0, and would go by VIBNet's own rule"
    assert found.notes == (f"{rule}: {first.name} 1, {second.name} 1.",)
    assert rest == []


@pytest.mark.parametrize("name", ["resnet8", "vit", "torch_encoder", "sentences"])
def test_every_unit_is_scored(name: str) -> None:
    case = subject(name, 4)
    found = trained(case)
    assert {name: len(values) for name, values in found.values.items()} == {
        name: group.num_units for name, group in case.groups.items()
    }
    assert row(found).isfinite().all()
    assert (row(found) >= 0).all()
    assert found.examples == 4


def test_the_same_seed_gives_the_same_scores_and_another_others() -> None:
    case = subject("lenet", 5)
    assert torch.equal(row(trained(case, seed=3)), row(trained(case, seed=3)))
    assert not torch.equal(row(trained(case, seed=3)), row(trained(case, seed=4)))


def test_batches_that_do_not_fit_into_the_memory_run_in_parts() -> None:
    case = subject("resnet8", 4)
    torch.testing.assert_close(row(trained(case, memory_bytes=1)), row(trained(case)), rtol=1e-6, atol=0)


def test_network_and_random_numbers_are_left_as_they_were() -> None:
    case = subject("resnet8", 4)
    next(case.network.parameters()).requires_grad_(False)
    state = {name: value.clone() for name, value in case.network.state_dict().items()}
    flags = [(weight.requires_grad, weight.grad) for weight in case.network.parameters()]
    case.network.train()
    generator = torch.get_rng_state()
    trained(case)
    assert case.network.training
    case.network.eval()
    assert all(torch.equal(value, state[name]) for name, value in case.network.state_dict().items())
    assert [(weight.requires_grad, weight.grad) for weight in case.network.parameters()] == flags
    assert torch.equal(torch.get_rng_state(), generator)


def test_without_labels_it_distils_the_network_itself() -> None:
    labelled, bare = subject("mlp", 5), subject("mlp", 5, labelled=False)
    found = trained(bare)
    assert torch.equal(row(found), row(trained(labelled, loss="distillation")))
    assert not torch.equal(row(found), row(trained(labelled)))
    assert torch.equal(row(found), row(trained(bare, reference=outputs(bare))))
    assert not torch.equal(row(found), row(trained(bare, reference=-outputs(bare))))


def test_the_task_loss_wants_labels() -> None:
    with pytest.raises(Invalid, match="task loss needs labels"):
        trained(subject("mlp", 4, labelled=False), loss="task")


def test_it_can_be_stopped_between_steps() -> None:
    class Impatient(Silent):
        def __init__(self) -> None:
            self.steps: list[tuple[int, int]] = []

        def progress(self, step: int, total: int) -> None:
            self.steps.append((step, total))

        def check(self) -> None:
            if len(self.steps) == 3:
                raise Stopped

    journal = Impatient()
    with pytest.raises(Stopped):
        trained(subject("mlp", 5), epochs=2, batch_size=2, journal=journal)
    assert journal.steps == [(1, 4), (2, 4), (3, 4)]


def test_a_rate_that_is_too_high_is_told() -> None:
    with pytest.raises(Diverged, match="try a tenth of the criterion's lr"):
        trained(subject("mlp", 5), lr=1e4)


# A trained network ---------------------------------------------------------------------------------------------------


@functools.cache
def padded_perceptron() -> Subject:
    """A perceptron trained on digits, then given as many units again: some dead, some that say next to nothing."""
    x, y = load_digits(return_X_y=True)
    x, y = torch.from_numpy(x).float() / 16, torch.from_numpy(y)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(64, 20), nn.ReLU(), nn.Linear(20, 12), nn.ReLU(), nn.Linear(12, 10))
        optimizer = torch.optim.Adam(network.parameters(), 5e-3)
        for _ in range(20):
            for rows in torch.randperm(1500).view(-1, 50):
                optimizer.zero_grad()
                nn.functional.cross_entropy(network(x[rows]), y[rows]).backward()
                optimizer.step()
        padded = nn.Sequential(nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 24), nn.ReLU(), nn.Linear(24, 10))
        with torch.no_grad():
            for layer, source in zip(padded[::2], network[::2], strict=True):
                outputs_, inputs = source.weight.shape
                layer.weight[:outputs_, inputs:] *= 0.01
                layer.weight[:outputs_, :inputs] = source.weight
                layer.bias[:outputs_] = source.bias
                layer.bias[outputs_ : outputs_ + (len(layer.bias) - outputs_) // 2] = -100.0
    network = lift(read_pt2(export(padded, (x[:2],), Path(ARCHIVES.name) / "padded.pt2"))).eval()
    return judged(network, x[:512].numpy(), y[:512].numpy())


def test_under_a_light_penalty_scores_are_those_of_fisher_by_beta() -> None:
    case, beta = padded_perceptron(), 0.01
    changes = {"loss": "distillation", "beta": beta, "epochs": 60, "weight_rate": 0.0, "batch_size": 128}
    found = row(trained(case, **changes)) * beta / 2
    fisher = row(output_kl_fisher(*case.all, probes=None, seed=0, memory_bytes=AMPLE, journal=SILENT))
    useful = fisher > 1e-3
    assert useful.sum() > 20
    assert float((found / fisher)[useful].median()) == pytest.approx(1, abs=0.1)
    assert spearman(found[useful], fisher[useful]) > 0.9


@pytest.mark.parametrize("loss", ["task", "distillation"])
def test_useless_units_drown_and_useful_ones_stay_above_them(loss: str) -> None:
    case = padded_perceptron()
    also = {"reference": None, "seed": 0, "memory_bytes": AMPLE, "journal": SILENT}
    found = score(*case.all, InformationBottleneck(name="information_bottleneck", loss=loss, epochs=30), **also)
    exact = score(*case.all, OutputKl(mode="exact", ablation="zero"), **also)
    for group, values in found.values.items():
        count = len(values) // 2
        useful = values[:count][exact.values[group][:count] > 0.01]
        assert len(useful) >= count // 2
        assert useful.min() > 100 * values[count:].max()
    num_useless = sum(group.num_units for group in case.groups.values()) // 2
    assert num_useless <= int(found.notes[0].split(" units, ")[1].split()[0]) < 2 * num_useless
