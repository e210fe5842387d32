"""Gated cells in the place of plain ones, and backpropagation cut off in time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gradwatch.prescription.setup import NotApplicableError, Setup
from gradwatch.prescription.surgery.calls import replace

__all__ = ["Truncated", "gated", "truncated"]

PIECE = 10  # time steps that a gradient is passed back through


def gated(setup: Setup) -> None:
    """A GRU in the place of each plain RNN: same arguments, same outputs."""
    plain = _parts(setup.model, (nn.RNN, nn.RNNCell))
    if not plain:
        raise NotApplicableError("no nn.RNN or nn.RNNCell was found")
    for name, cell in plain:
        weight = next(cell.parameters())
        replace(setup.model, name, _gru_like(cell).to(weight.device, weight.dtype))


def truncated(setup: Setup) -> None:
    """No gradient passes back beyond ``PIECE`` time steps."""
    recurrent = _parts(setup.model, (nn.RNN, nn.LSTM, nn.GRU))
    recurrent = [(name, layer) for name, layer in recurrent if not layer.bidirectional]
    if not recurrent:
        raise NotApplicableError("no nn.RNN, nn.LSTM or nn.GRU was found that reads in one direction")
    for name, layer in recurrent:
        replace(setup.model, name, Truncated(layer))


class Truncated(nn.Module):
    """A recurrent layer that reads a sequence in pieces, its state detached between them."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        time = 1 if self.layer.batch_first and x.ndim == 3 else 0
        outputs = []
        for piece in x.split(PIECE, time):
            output, state = self.layer(piece, _detached(state))
            outputs.append(output)
        return torch.cat(outputs, time), state


def _detached(state: Any) -> Any:
    if isinstance(state, tuple):
        return tuple(part.detach() for part in state)
    return None if state is None else state.detach()


def _gru_like(cell: Any) -> nn.Module:
    if isinstance(cell, nn.RNNCell):
        return nn.GRUCell(cell.input_size, cell.hidden_size, cell.bias)
    return nn.GRU(
        cell.input_size, cell.hidden_size, cell.num_layers, bias=cell.bias, batch_first=cell.batch_first,
        dropout=cell.dropout, bidirectional=cell.bidirectional,
    )  # fmt: skip


def _parts(model: nn.Module, types: tuple[type[nn.Module], ...]) -> list[tuple[str, Any]]:
    return [(name, module) for name, module in model.named_modules() if name and isinstance(module, types)]
