import torch

from service.contract.objectives import OBJECTIVES as CATALOGUE
from service.contract.objectives import (
    BernoulliObjective,
    DecoupledObjective,
    KdObjective,
    RelationalObjective,
    SquaredErrorObjective,
)
from tests.unit.distillation.examples import classes, logits, zeros_and_ones
from workers.distillation.decoupled import decoupled_distillation
from workers.distillation.losses import knowledge_distillation
from workers.distillation.multilabel import binary_hard_loss, multilabel_distillation
from workers.distillation.objectives import OBJECTIVES, labels_only, objective
from workers.distillation.regression import regression_distillation, squared_error
from workers.distillation.relational import relational_distillation
from workers.training.learner import ChangingLoss, loss_at


def test_every_objective_of_the_catalogue_has_a_loss() -> None:
    assert set(OBJECTIVES) == set(CATALOGUE)


def test_an_objective_passes_its_options_on() -> None:
    student, teacher, y = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    asked = objective(KdObjective(temperature=7.0, alpha=0.25, label_smoothing=0.1))(student, teacher, y)
    direct = knowledge_distillation(student, teacher, y, temperature=7.0, alpha=0.25, label_smoothing=0.1)
    assert torch.equal(asked, direct)


def test_the_preset_is_the_published_setting() -> None:
    student, teacher, y = torch.randn(4, 3), torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    asked = objective(KdObjective.model_validate({"preset": "cifar100"}))(student, teacher, y)
    direct = knowledge_distillation(student, teacher, y, temperature=4.0, alpha=0.1)
    assert torch.equal(asked, direct)


def test_the_controls_loss_ignores_the_teacher_and_keeps_the_smoothing() -> None:
    student, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    loss = labels_only(KdObjective(alpha=0.1, label_smoothing=0.2))
    expected = torch.nn.functional.cross_entropy(student, y, label_smoothing=0.2)
    torch.testing.assert_close(loss(student, torch.randn(4, 3), y), expected)
    torch.testing.assert_close(loss(student, None, y), expected)


def test_every_option_of_kd_is_passed_on() -> None:
    (student, teacher), y = logits(0), classes(0)
    options = {"temperature": 7.0, "alpha": 0.25, "label_smoothing": 0.1, "divergence": "jensen_shannon", "beta": 0.2,
               "standardize": True}  # fmt: skip
    asked = objective(KdObjective.model_validate({**options, "weight": 3.0}))(student, teacher, y)
    assert torch.equal(asked, 3 * knowledge_distillation(student, teacher, y, **options))  # type: ignore[arg-type]


def test_decoupled_distillation_warms_up_by_the_epoch() -> None:
    (student, teacher), y = logits(0), classes(0)
    spec = DecoupledObjective.model_validate({"name": "dkd", "label_smoothing": 0.1, "standardize": True})
    for epoch, warmup in ((1, 0.05), (10, 0.5), (20, 1.0), (30, 1.0)):
        expected = decoupled_distillation(student, teacher, y, temperature=4.0, target_weight=1.0,
                                          non_target_weight=8.0, warmup=warmup, label_smoothing=0.1,
                                          standardize=True)  # fmt: skip
        assert torch.equal(objective(spec).at(epoch, 0.0)(student, teacher, y), expected)
    assert torch.equal(objective(spec)(student, teacher, y), expected)
    at_once = DecoupledObjective.model_validate({**spec.model_dump(), "warmup_epochs": 0})
    assert torch.equal(objective(at_once).at(1, 0.0)(student, teacher, y), expected)


def test_every_option_of_dist_is_passed_on() -> None:
    (student, teacher), y = logits(0), classes(0)
    options = {"temperature": 2.0, "inter_weight": 3.0, "intra_weight": 4.0, "hard_weight": 0.5,
               "label_smoothing": 0.1, "standardize": True}  # fmt: skip
    asked = objective(RelationalObjective.model_validate({"name": "dist", **options}))(student, teacher, y)
    assert torch.equal(asked, relational_distillation(student, teacher, y, **options))  # type: ignore[arg-type]


def test_other_labels_have_losses_of_their_own() -> None:
    (student, teacher), y = logits(0), zeros_and_ones(0)
    several = BernoulliObjective.model_validate({"name": "bernoulli", "temperature": 2.0, "alpha": 0.3})
    numbers = SquaredErrorObjective.model_validate({"name": "mse", "alpha": 0.3})
    expected = multilabel_distillation(student, teacher, y, temperature=2.0, alpha=0.3)
    assert torch.equal(objective(several)(student, teacher, y), expected)
    expected = regression_distillation(student, teacher, y, alpha=0.3)
    assert torch.equal(objective(numbers)(student, teacher, y), expected)
    assert torch.equal(labels_only(several)(student, teacher, y), binary_hard_loss(student, y))
    assert torch.equal(labels_only(numbers)(student, teacher, y), squared_error(student, y))
    for spec in (several, numbers):  # the control of a classifier that they distil without its labels
        expected = torch.nn.functional.cross_entropy(student, classes(0))
        torch.testing.assert_close(labels_only(spec)(student, teacher, classes(0)), expected)


def test_temperature_and_alpha_change_with_the_share_that_is_done_and_end_where_they_head() -> None:
    (student, teacher), y = logits(0), classes(0)
    ramps = {"temperature": {"from": 8.0, "to": 2.0}, "alpha": {"from": 1.0, "to": 0.0}}
    loss = objective(KdObjective.model_validate(ramps))
    assert isinstance(loss, ChangingLoss)
    for share, temperature, alpha in ((0.0, 8.0, 1.0), (0.5, 5.0, 0.5), (1.0, 2.0, 0.0)):
        expected = knowledge_distillation(student, teacher, y, temperature=temperature, alpha=alpha)
        assert torch.equal(loss_at(loss, 1, share)(student, teacher, y), expected)
    assert torch.equal(loss(student, teacher, y), expected)
    assert loss_at(labels_only(loss.spec), 1, 0.0)(student, None, y) > 0
