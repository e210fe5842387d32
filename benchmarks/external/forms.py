"""Turn sick programs that others wrote into the four arguments of ``gradwatch.prescribe``, or say why not.

Nothing of their code is here. A program runs unchanged until what it trains is known (``kept.py``): its model, its
optimizer, its loss and its data. A model of Keras is translated layer by layer, a model of torch is copied with weights
drawn anew, and tensors without a model get one (``tensors.py``).
"""

from __future__ import annotations

import copy
import functools
import hashlib
import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks.cures.form import Form
from benchmarks.external import keras_layers, results, tensors
from benchmarks.external.execute import Places
from benchmarks.external.judge import reason_not_counted
from benchmarks.external.kept import kept
from benchmarks.external.keras_layers import NoTranslationError
from benchmarks.external.keras_training import loss_of, optimizer_of, targets_of
from benchmarks.external.program import External
from benchmarks.external.programs import PROGRAMS

MOST, FEWEST, REPEATED = 320, 5, 100
"""Batches: what ``prescribe`` takes of a loader; an epoch of fewer is repeated, until there are so many."""

EXCLUDED = {
    **dict.fromkeys(
        (f"GRIST/{number}" for number in (4, 13, 23, 27, 46, 53, 57)),
        "it computes a loss and trains nothing: the update that fails was the adapter's own",
    ),
    "reproduced/075": "its forward pass cuts the parameter off by item(): there is no model whose training is at fault",
}


@dataclass(frozen=True)
class SickProgram:
    """A sick program of others, as the benchmark of cures takes it."""

    name: str
    kind: str
    is_measured: bool
    places: Places

    def form(self, seed: int) -> Form | str:
        """Return its form under ``seed``, or why it has none."""
        return form_of(self.name, seed, self.places)


def programs(places: Places) -> list[SickProgram]:
    """Return the sick programs that count, in the order of their names' hashes."""
    bare = results.bare_runs()
    sick = [each for each in PROGRAMS if each.truth.kinds and not reason_not_counted(each, bare.get(each.name))]
    sick.sort(key=lambda program: hashlib.sha256(f"cures {program.name}".encode()).digest())
    return [SickProgram(each.name, sorted(each.truth.kinds)[0], True, places) for each in sick]


@functools.lru_cache(maxsize=4)
def form_of(name: str, seed: int, places: Places) -> Form | str:
    """Return a program's form with its data in the order of ``seed``, or the reason why it has none."""
    if name in EXCLUDED:
        return EXCLUDED[name]
    program = next(each for each in PROGRAMS if each.name == name)
    found = kept(program, places)
    if found is None or "not_kept" in found:
        return "it did not come to what it trains" if found is None else found["not_kept"]
    try:
        form = _form(program, found, seed)
    except NoTranslationError as error:
        return f"nothing here does what it uses: {error}"
    return CONSTANT if is_constant(form) else form


CONSTANT = "its loss is the same whatever its model says: no change of the training can bring it down"


def _form(program: External, found: dict[str, Any], seed: int) -> Form:
    if "layers" in found:
        return of_keras(found, seed)
    if program.name in tensors.WRITTEN:
        return of_tensors(tensors.WRITTEN[program.name], found)
    return of_torch(found)


def of_keras(found: dict[str, Any], seed: int) -> Form:
    """Return the form of a program of Keras."""
    model = keras_layers.model_of(found["layers"])
    name, takes_logits = found["loss"]
    x, y = arrays_of(found)
    y = targets_of(y, model.eval()(x[:1]), name)
    return Form(
        lambda: keras_layers.model_of(found["layers"]), optimizer_of(*found["optimizer"]),
        batches_of(x, y, found["batch_size"], seed if found["shuffle"] else None), loss_of(name, takes_logits),
    )  # fmt: skip


def arrays_of(found: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Return the inputs, channels first where the model takes them so, and the targets."""
    x, y = (torch.as_tensor(found[name]) for name in "xy")
    return (x.movedim(-1, 1).contiguous() if keras_layers.is_channels_first(found["layers"]) else x), y


def batches_of(x: Tensor, y: Tensor, size: int, seed: int | None) -> list[tuple[Tensor, Tensor]]:
    """Return one epoch in batches; several if one has so few batches that none of five could be held out."""
    draw = torch.Generator().manual_seed(seed or 0)
    batches: list[tuple[Tensor, Tensor]] = []
    while len(batches) < (REPEATED if len(x) <= size * (FEWEST - 1) else 1):
        order = torch.arange(len(x)) if seed is None else torch.randperm(len(x), generator=draw)
        batches += [(x[rows], y[rows]) for rows in order.split(size)[:MOST]]
    return batches


def of_tensors(written: tensors.Written, found: dict[str, Any]) -> Form:
    """Return the form of a program that trains bare tensors.

    A search changes its input until it fails, and leaves: from there on the program is fed that input.
    """
    fed = found["batches"][:MOST]
    batches = fed + [fed[-1]] * (MOST - len(fed))
    return Form(
        lambda: tensors.model_of(written, found["weights"]), same_optimizer(*found["optimizer"]), batches, written.loss,
    )  # fmt: skip


def of_torch(found: dict[str, Any]) -> Form:
    """Return the form of a program that has a module and a loss of torch."""
    if "model" not in found:
        raise NoTranslationError("a module whose weights are the optimizer's was not seen")
    reshaped, loss = found["reshaped"], found["loss"]

    def make_model() -> nn.Module:
        model = copy.deepcopy(found["model"])
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        return model

    def loss_fn(outputs: Tensor, targets: Tensor) -> Tensor:
        return loss(outputs if reshaped is None else outputs.reshape(-1, *reshaped[1:]), targets)

    return Form(make_model, same_optimizer(*found["optimizer"]), found["batches"][:MOST], loss_fn)


def same_optimizer(kind: str, groups: list[dict[str, Any]]) -> Callable[[Iterable[nn.Parameter]], Optimizer]:
    """Return a function that makes an optimizer of torch of one group of settings."""
    if len(groups) > 1:
        raise NoTranslationError("several parameter groups")
    make = getattr(torch.optim, kind)
    settings = {name: value for name, value in groups[0].items() if name in inspect.signature(make).parameters}
    return lambda weights: make(weights, **settings)


def is_constant(form: Form) -> bool:
    """Return True if the loss of the first batch is one number, whatever positive outputs it is given."""
    x, y = form.batches[0]
    with torch.no_grad():
        outputs = form.make_model().eval()(x)
        draws = [torch.rand(outputs.shape, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
        losses = [float(form.loss_fn(each.clamp(0.01, 0.99), y)) for each in draws]
    return max(losses) - min(losses) <= 1e-6 * abs(max(losses))
