"""Learns although some of its parameters are frozen, thawed, unused, or not the optimizer's."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.detection.healthy.everyday import LowRank, adam, network, on_digits
from benchmarks.detection.healthy.structure import sample
from benchmarks.detection.program import Training, healthy, plain


def pretrained(*widths: int, steps: int = 100) -> nn.Sequential:
    """A perceptron that has learned the digits already."""
    model = network(*widths)
    training = on_digits(model, adam(model, 1e-2), steps)
    for number in range(steps):
        training.step(number, lambda loss: None)
    model.zero_grad()
    return model


@healthy(falls_to=0.4)
def head_never_used(seed: int) -> Training:
    """A head for a task that never comes: registered, in the optimizer, its gradient None for ever."""
    model = nn.ModuleDict({"body": network(64, 64, 32), "head": nn.Linear(32, 10), "spare": nn.Linear(32, 5)})

    def loss_of(step: int) -> Tensor:
        x, y = sample()
        return F.cross_entropy(model["head"](F.relu(model["body"](x))), y)

    return plain(model, adam(model), loss_of, 200)


@healthy(falls_to=0.4)
def adapters_on_a_pretrained_base(seed: int) -> Training:
    """LoRA on a network that knows the digits, for the same digits in another order; B = 0 gives A no gradient."""
    base, order = pretrained(64, 64, 32, 10), torch.randperm(10)
    model = nn.Sequential(*[LowRank(layer, 8) if isinstance(layer, nn.Linear) else layer for layer in base])
    return on_digits(model, adam(model, 1e-2), 200, loss=lambda output, y: F.cross_entropy(output, order[y]))


@healthy(falls_to=0.5)
def head_on_a_pretrained_base(seed: int) -> Training:
    """Only a new head is trained; the frozen base stays in the optimizer, without gradients."""
    base = pretrained(64, 64, 32, 10)[:3].requires_grad_(False)
    model = nn.Sequential(base, nn.ReLU(), nn.Linear(32, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    return on_digits(model, optimizer, 200, loss=lambda output, y: F.cross_entropy(output, (y >= 5).long()))


@healthy(falls_to=0.4)
def frozen_midway(seed: int) -> Training:
    """The first two layers are frozen half-way: from then on they have no gradient and do not move."""
    model = network(64, 64, 48, 10)
    optimizer = adam(model)

    def freeze(step: int) -> None:
        if step == 100:
            model[:4].requires_grad_(False)
            model[:4].zero_grad()

    return on_digits(model, optimizer, 240, before_update=freeze)


@healthy(falls_to=0.4)
def thawed_by_a_new_group(seed: int) -> Training:
    """The optimizer knows the head alone at first; the pretrained body joins later, in a group of its own."""
    body, order = pretrained(64, 64, 32, 10)[:3].requires_grad_(False), torch.randperm(10)
    model = nn.Sequential(body, nn.ReLU(), nn.Linear(32, 10))
    optimizer = torch.optim.SGD(model[2].parameters(), lr=0.1, momentum=0.9)

    def thaw(step: int) -> None:
        if step == 80:
            body.requires_grad_(True)
            optimizer.add_param_group({"params": list(body.parameters()), "lr": 0.01})

    return on_digits(model, optimizer, 200, loss=lambda o, y: F.cross_entropy(o, order[y]), before_update=thaw)


@healthy(falls_to=0.4)
def teacher_is_an_average(seed: int) -> Training:
    """Mean teacher: a copy without gradients follows the student's weights, part of the same model."""
    student = network(64, 64, 10)
    model = nn.ModuleDict({"student": student, "teacher": copy.deepcopy(student).requires_grad_(False)})

    def loss_of(step: int) -> Tensor:
        x, y = sample()
        output = student(x + 0.1 * torch.randn_like(x))
        return F.cross_entropy(output, y) + 0.01 * F.mse_loss(output, model["teacher"](x))

    def follow(step: int) -> None:
        with torch.no_grad():
            for mine, its in zip(model["teacher"].parameters(), student.parameters()):
                mine.lerp_(its, 0.02)

    return plain(model, adam(model), loss_of, 250, before_update=follow)


@healthy(falls_to=0.3)
def distilled(seed: int) -> Training:
    """A frozen teacher's softened answers; its parameters are part of the model and have no gradient."""
    teacher, student = pretrained(64, 64, 10).requires_grad_(False), network(64, 16, 10)
    model = nn.ModuleDict({"teacher": teacher, "student": student})

    def loss_of(step: int) -> Tensor:
        x, _ = sample()
        soft, wanted = (student(x) / 3).log_softmax(-1), (teacher(x) / 3).log_softmax(-1)
        return 9 * F.kl_div(soft, wanted, log_target=True, reduction="batchmean")

    return plain(model, adam(model, 1e-2), loss_of, 250)
