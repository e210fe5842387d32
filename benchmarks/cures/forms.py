"""Turn sick programs of ``benchmarks.detection`` into the four arguments of ``gradwatch.prescribe``, or say why not.

There are two forms. If a program has a data and a loss function, batches are drawn beforehand. If its forward pass is
one function, the model draws its batch and returns its loss, as models of some libraries do; a batch is then nothing
but its number.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.cures.form import Form, Formed, Named
from benchmarks.detection import faulty  # noqa: F401  its programs register themselves
from benchmarks.detection.bare import start
from benchmarks.detection.program import PROGRAMS, Program, Training

BATCHES = 100

EXCLUDED = {
    "log_of_a_difference": "its loss counts its own calls, so that no two trials would meet the same one",
    "root_of_zero": "its loss counts its own calls, so that no two trials would meet the same one",
    "half_precision_overflows": "its loss counts its own calls, so that no two trials would meet the same one",
    "char_gpt_warmed_up_too_far": "its forward pass sets the learning rate",
    "group_lasso_on_a_pruned_row": "its forward pass overwrites weights",
    "ascends": "it descends on a loss that has no lower end: there is nothing to cure",
    "critic_without_a_constraint": "its loss has no lower end: no held-out loss tells better from worse",
    "forget_gate_shut": "it masks gradients by hooks of its own",
}


class Inside(nn.Module):
    """A model whose forward pass draws its batch and returns its loss."""

    def __init__(self, training: Training) -> None:
        super().__init__()
        self.model, self._loss_of = training.model, training.loss_of

    def forward(self, number: int) -> Tensor:
        return self._loss_of(number)


def form_of(program: Named, seed: int) -> Form | str:
    """Return the program's form with data drawn under ``seed``, or the reason why it has none."""
    if isinstance(program, Formed):
        return program.form(seed)
    assert isinstance(program, Program)
    return _own_form(program, seed)


@functools.lru_cache(maxsize=8)
def _own_form(program: Program, seed: int) -> Form | str:
    if program.name in EXCLUDED:
        return EXCLUDED[program.name]
    training = start(program, seed)
    if training.loss_of is None:
        return "a loop of its own: several models, or rewards in place of a loss"
    if not training.is_plain:
        return "the loop itself is at fault: a schedule, its own clipping, weights overwritten, gradients never zeroed"
    optimizer = training.optimizers[0]
    if len(optimizer.param_groups) > 1:
        return "several parameter groups, which parameters alone do not tell"
    make_optimizer = _same_kind(optimizer)
    count = max(BATCHES, training.steps)
    if training.supervised is None:
        return Form(
            lambda: Inside(program.make(seed)), make_optimizer, [(number, 0) for number in range(count)],
            lambda loss, _: loss,
        )  # fmt: skip
    batches = [training.supervised.draw(number) for number in range(count)]
    return Form(lambda: program.make(seed).model, make_optimizer, batches, training.supervised.loss)


def programs() -> list[Program]:
    """Return the sick programs in the order of their names' hashes, so that the first ones are a random sample."""
    sick = (program for program in PROGRAMS.values() if program.kind is not None and program.half != "others")
    return sorted(sick, key=lambda program: hashlib.sha256(f"cures {program.name}".encode()).digest())


def _same_kind(optimizer: Optimizer) -> Callable[[Iterable[nn.Parameter]], Optimizer]:
    """Return a function that makes an optimizer of the same type and settings for other parameters."""
    known = inspect.signature(type(optimizer)).parameters
    settings = {name: value for name, value in optimizer.defaults.items() if name in known}
    return lambda parameters: type(optimizer)(parameters, **settings)


def silence() -> None:
    """Use one thread, since two processes run at a time."""
    torch.set_num_threads(1)
