"""Recurrent layers as Keras has them."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class OneOutput(nn.Module):
    """A recurrent layer of torch that returns its outputs alone: of all steps, or of the last one."""

    def __init__(self, recurrence: nn.RNNBase, whole: bool) -> None:
        super().__init__()
        self.recurrence, self.whole = recurrence, whole

    def forward(self, x: Tensor) -> Tensor:
        outputs, _ = self.recurrence(x)
        return outputs if self.whole else outputs[:, -1]


@torch.no_grad()
def put_gru(gru: nn.GRU, kernel: Tensor, recurrent: Tensor, bias: Tensor) -> None:
    """Write the weights of a GRU of Keras, whose gates are update, reset, new; torch's are reset, update, new."""
    for ours, theirs in (
        (gru.weight_ih_l0, kernel.T),
        (gru.weight_hh_l0, recurrent.T),
        (gru.bias_ih_l0, bias[0]),
        (gru.bias_hh_l0, bias[1]),
    ):
        update, reset, new = theirs.chunk(3)
        ours.copy_(torch.cat([reset, update, new]))


class KerasLSTM(nn.Module):
    """An LSTM with one bias, any activation functions, and steps that may be masked.

    Args:
        inputs, units: how many.
        activation: of the cell and of its output.
        recurrent_activation: of the gates.
        masked: a step whose entries are all this value changes nothing; None masks none.
        whole: return the outputs of all steps, not of the last one.
    """

    def __init__(
        self,
        inputs: int,
        units: int,
        activation: nn.Module,
        recurrent_activation: nn.Module,
        *,
        masked: float | None,
        whole: bool,
    ) -> None:
        super().__init__()
        self.input, self.recurrent = nn.Linear(inputs, 4 * units), nn.Linear(units, 4 * units, bias=False)
        self.activation, self.recurrent_activation = activation, recurrent_activation
        self.masked, self.whole = masked, whole

    @property
    def keras_weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """The kernel, the recurrent kernel and the bias, in Keras's shapes."""
        return self.input.weight.T, self.recurrent.weight.T, self.input.bias

    def forward(self, x: Tensor) -> Tensor:
        output = cell = x.new_zeros(len(x), self.recurrent.in_features)
        outputs = []
        for step in x.unbind(1):
            counts = torch.ones(len(x), 1, dtype=torch.bool)
            if self.masked is not None:
                counts = (step != self.masked).any(-1, keepdim=True)
                step = step * counts
            gates = self.input(step) + self.recurrent(output)
            enter, forget, new, leave = gates.chunk(4, dim=-1)
            kept = self.recurrent_activation(forget) * cell
            new_cell = kept + self.recurrent_activation(enter) * self.activation(new)
            new_output = self.recurrent_activation(leave) * self.activation(new_cell)
            cell, output = torch.where(counts, new_cell, cell), torch.where(counts, new_output, output)
            outputs.append(output)
        return torch.stack(outputs, 1) if self.whole else output
