"""Along time: what a recurrent network does to gradients over many steps."""

from gradwatch.remedies.pasted import BEFORE
from gradwatch.remedies.remedy import Remedy

REMEDIES = (
    Remedy(
        name="lstm-gru",
        title="LSTM or GRU",
        advice="LSTM or GRU in place of the plain RNN",
        applies="vanishing or exploding in a plain RNN",
        kinds=("vanishing", "exploding", "nonfinite", "saturated", "stalled"),
        why="cₜ = fₜ∘cₜ₋₁ + iₜ∘c̃ₜ, ∂cₜ/∂cₜ₋₁ = fₜ: a gate that learns to stay near 1, where the RNN "
        "multiplies by Wᵀ·tanh′ each step",
        source="Hochreiter and Schmidhuber 1997; Cho et al. 2014, arXiv:1406.1078",
        code=BEFORE
        + """\
for name, part in list(model.named_modules()):
    if isinstance(part, nn.RNN):  # its arguments and outputs are the same; an nn.LSTM's state is a pair
        sizes = part.input_size, part.hidden_size, part.num_layers
        gru = nn.GRU(*sizes, part.bias, part.batch_first, part.dropout, part.bidirectional)
        model.set_submodule(name, gru.to(part.weight_hh_l0))
    elif isinstance(part, nn.RNNCell):
        model.set_submodule(name, nn.GRUCell(part.input_size, part.hidden_size, part.bias).to(part.weight_hh))
""",
        cost="four times the weights and multiplications (GRU: three)",
    ),
    Remedy(
        name="truncated-bptt",
        title="Truncated backpropagation through time",
        advice="truncated backpropagation through time: detach the state every few dozen steps",
        applies="exploding or vanishing over long sequences, in any recurrent network; no help where the "
        "state itself grows",
        kinds=("vanishing", "exploding", "nonfinite"),
        why="∂L/∂W = Σₜ over the last k steps alone: the product has at most k factors, and what lies "
        "further back is not learnt",
        source="Williams and Peng 1990; Werbos 1990",
        code="""\
class Truncated(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, state=None):
        outputs, time = [], 1 if self.layer.batch_first and x.ndim == 3 else 0
        for piece in x.split(10, time):  # steps
            if isinstance(state, tuple):  # of an nn.LSTM
                state = tuple(part.detach() for part in state)
            elif state is not None:
                state = state.detach()
            output, state = self.layer(piece, state)
            outputs.append(output)
        return torch.cat(outputs, time), state


for name, part in list(model.named_modules()):
    if isinstance(part, (nn.RNN, nn.LSTM, nn.GRU)) and not part.bidirectional:
        model.set_submodule(name, Truncated(part))
""",
        cost="less memory; dependencies longer than k are lost",
    ),
)
