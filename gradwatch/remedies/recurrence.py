"""Change recurrent layers: gated cells in place of plain ones, and backpropagation cut off in time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gradwatch.remedies.forward_pass import replace_
from gradwatch.remedies.remedy import NotApplicableError

__all__ = ["Truncated", "replace_rnns_", "truncate_backprop_"]


def replace_rnns_(model: nn.Module) -> None:
    """Put an ``nn.GRU`` in the place of each ``nn.RNN``, and an ``nn.GRUCell`` in that of each ``nn.RNNCell``.

    Arguments and outputs stay the same (an ``nn.LSTM``'s state would be a pair). Cho et al. 2014, arXiv:1406.1078.

    Args:
        model: is changed in place, before its optimizer is made: the weights are new.

    Raises:
        NotApplicableError: if there is no plain recurrent layer.

    Examples:
        >>> model = torch.nn.ModuleDict({"cell": torch.nn.RNN(4, 8)})
        >>> replace_rnns_(model)
        >>> model["cell"]
        GRU(4, 8)
    """
    plain = _parts(model, (nn.RNN, nn.RNNCell))
    if not plain:
        raise NotApplicableError("no nn.RNN or nn.RNNCell was found")
    for name, cell in plain:
        weight = next(cell.parameters())
        replace_(model, name, _gru_like(cell).to(weight.device, weight.dtype))


def truncate_backprop_(model: nn.Module, steps: int = 10) -> None:
    """Let no gradient pass back through more than ``steps`` time steps of a recurrent layer of one direction.

    The layer reads its sequence in pieces, and its state is detached between them (Williams and Peng 1990).

    Args:
        model: is changed in place.
        steps: length of a piece.

    Raises:
        NotApplicableError: if there is no such layer.

    Examples:
        >>> model = torch.nn.ModuleDict({"cell": torch.nn.LSTM(4, 8)})
        >>> truncate_backprop_(model)
        >>> x = torch.randn(25, 1, 4, requires_grad=True)
        >>> model["cell"](x)[0][-1].sum().backward()
        >>> int(x.grad.abs().sum((1, 2)).count_nonzero())  # the last piece of 10, 10 and 5 steps
        5
    """
    recurrent = [(name, layer) for name, layer in _parts(model, (nn.RNN, nn.LSTM, nn.GRU)) if not layer.bidirectional]
    if not recurrent:
        raise NotApplicableError("no nn.RNN, nn.LSTM or nn.GRU was found that reads in one direction")
    for name, layer in recurrent:
        replace_(model, name, Truncated(layer, steps))


class Truncated(nn.Module):
    """A recurrent layer that reads a sequence in pieces of ``steps``, its state detached between them."""

    def __init__(self, layer: nn.Module, steps: int) -> None:
        super().__init__()
        self.layer, self.steps = layer, steps

    def forward(self, x: Tensor, state: Any = None) -> tuple[Tensor, Any]:
        time = 1 if self.layer.batch_first and x.ndim == 3 else 0
        outputs = []
        for piece in x.split(self.steps, time):
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
