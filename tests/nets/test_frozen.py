"""Laws of networks that take no gradient, and of writing into parameters."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from medssl.nets.encoder import DynUNetConfig, build_encoder
from medssl.nets.frozen import Frozen, Teacher, assign_, forget_moments


def network() -> nn.Module:
    """Batch norm and dropout: both behave differently in train mode, and one has buffers."""
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))


def test_a_frozen_network_stays_in_eval_inside_a_network_in_training() -> None:
    parent = nn.ModuleDict({"teacher": Frozen(network()), "student": network()}).train()
    assert not any(module.training for module in parent["teacher"].modules())
    assert parent["student"].training
    x = torch.randn(5, 3)
    assert torch.equal(parent["teacher"](x), parent["teacher"](x))


def test_a_frozen_network_gives_no_gradient_by_any_of_its_methods() -> None:
    frozen = Frozen(build_encoder(DynUNetConfig(channels=(8, 8, 8)), channels=1, shape=(16, 16, 16)))
    x = torch.randn(1, 1, 16, 16, 16, requires_grad=True)
    assert not frozen(x)[0].requires_grad
    assert not frozen.pooled(x).requires_grad
    assert frozen.kind == "volume"
    assert not any(p.requires_grad for p in frozen.parameters())
    with pytest.raises(AttributeError, match="absent"):
        _ = frozen.absent


@pytest.mark.parametrize("momentum", [0.9, torch.tensor(0.9)], ids=["number", "tensor"])
def test_a_teacher_is_the_running_mean_of_its_student(momentum: float | torch.Tensor) -> None:
    student = network()
    teacher = Teacher(student)
    start = teacher.module[0].weight.clone()
    with torch.no_grad():
        student[0].weight.add_(1)
        student[1].running_mean.add_(2)
    teacher.update(student, momentum)
    torch.testing.assert_close(teacher.module[0].weight, 0.9 * start + 0.1 * student[0].weight)
    assert torch.equal(teacher.module[1].running_mean, student[1].running_mean)


def test_a_teacher_of_a_bfloat16_student_still_moves() -> None:
    student = nn.Linear(4, 4).bfloat16()
    teacher = Teacher(student)
    with torch.no_grad():
        student.weight.add_(0.01)
    before = teacher.module.weight.clone()
    teacher.update(student, 0.999)
    assert before.dtype == torch.float32
    assert (teacher.module.weight != before).all()


def test_assign_makes_the_optimiser_forget_what_was_written_and_nothing_else() -> None:
    prototypes = nn.Parameter(torch.randn(3, 2))
    optimizer = torch.optim.AdamW([prototypes], lr=0.1, weight_decay=0)
    prototypes.square().sum().backward()
    optimizer.step()
    rows = torch.tensor([1])
    assign_(prototypes, torch.zeros(1, 2), rows=rows, forget=True)
    forget_moments(optimizer)
    moments = optimizer.state[prototypes]["exp_avg"]
    assert (moments[1] == 0).all()
    assert (moments[[0, 2]] != 0).all()
    prototypes.grad = torch.zeros_like(prototypes)
    before = prototypes.detach().clone()
    optimizer.step()
    moved = (prototypes != before).any(1)
    assert moved.tolist() == [True, False, True]


def test_assign_without_forget_leaves_the_moments_alone() -> None:
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([parameter])
    parameter.sum().backward()
    optimizer.step()
    before = optimizer.state[parameter]["exp_avg"].clone()
    assign_(parameter, torch.zeros(2))
    forget_moments(optimizer)
    assert torch.equal(optimizer.state[parameter]["exp_avg"], before)
    assert (parameter == 0).all()
