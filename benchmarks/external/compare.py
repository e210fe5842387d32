"""Hold the form of a program against the program: the same weights and batches must give the same losses.

A program of Keras has made a few updates by Keras, without dropout. A program that trains bare tensors has told its
losses. Both are made again by the form's model, optimizer and loss. A module of torch is the program's own: it needs no
comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.external import forms, keras_layers, tensors
from benchmarks.external.keras_training import targets_of


def losses_of_keras(found: dict[str, Any]) -> list[float]:
    """Return the losses of the translated model on the batches that Keras was given."""
    form = forms.of_keras(found, 0)
    model = keras_layers.model_of(found["layers"], as_kept=True, dropout=False)
    x, y = forms.arrays_of(found)
    y = targets_of(y, model.eval()(x[:1]), found["loss"][0])
    size = found["batch_size"]
    starts = [number * size % len(x) for number in range(len(found["losses"]))]
    return _train(form, model, [(x[begin : begin + size], y[begin : begin + size]) for begin in starts])


def losses_of_tensors(name: str, found: dict[str, Any]) -> list[float]:
    """Return the losses of the written model on the batches of the program."""
    form = forms.of_tensors(tensors.WRITTEN[name], found)
    model = form.make_model()
    with torch.no_grad():
        for ours, theirs in zip(model.parameters(), found["weights"], strict=True):
            ours.copy_(theirs)
    return _train(form, model, found["batches"])


def _train(form: forms.Form, model: nn.Module, batches: Sequence[tuple[Tensor, Tensor]]) -> list[float]:
    model.train()
    optimizer = form.make_optimizer(model.parameters())
    losses = []
    for x, y in batches:
        loss = form.loss_fn(model(x), y)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


def difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the largest relative difference of two series of losses, NaN and Inf being equal to themselves."""
    pairs = [pair for pair in zip(ours, theirs) if not torch.tensor(pair[0]).equal(torch.tensor(pair[1]))]
    apart = [abs(one - other) / max(abs(one), abs(other)) for one, other in pairs if one == one or other == other]
    return max(apart, default=0.0)
