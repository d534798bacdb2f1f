import torch

from service.contract.catalogue import OBJECTIVES as CATALOGUE
from service.contract.specs import KdObjective
from workers.distillation.losses import knowledge_distillation
from workers.distillation.objectives import OBJECTIVES, labels_only, objective


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
