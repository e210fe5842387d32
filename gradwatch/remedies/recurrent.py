"""Along time: what a recurrent network does to gradients over many steps."""

from gradwatch.remedies.remedy import Remedy

REMEDIES = (
    Remedy(
        name="lstm-gru",
        title="LSTM or GRU",
        advice="LSTM or GRU in place of the plain RNN",
        applies="vanishing or exploding in a plain RNN",
        why="cₜ = fₜ∘cₜ₋₁ + iₜ∘c̃ₜ, ∂cₜ/∂cₜ₋₁ = fₜ: a gate that learns to stay near 1, where the RNN "
        "multiplies by Wᵀ·tanh′ each step",
        source="Hochreiter and Schmidhuber 1997; Cho et al. 2014, arXiv:1406.1078",
        code="""\
rnn = nn.LSTM(8, 32, batch_first=True)  # or nn.GRU
with torch.no_grad():
    rnn.bias_ih_l0[32:64] = 1.0  # the forget gate begins open
outputs, (hidden, cell) = rnn(torch.randn(4, 50, 8))
""",
        cost="four times the weights and multiplications (GRU: three)",
    ),
    Remedy(
        name="truncated-bptt",
        title="Truncated backpropagation through time",
        advice="truncated backpropagation through time: detach the state every few dozen steps",
        applies="exploding or vanishing over long sequences, in any recurrent network; no help where the "
        "state itself grows",
        why="∂L/∂W = Σₜ over the last k steps alone: the product has at most k factors, and what lies "
        "further back is not learnt",
        source="Williams and Peng 1990; Werbos 1990",
        code="""\
rnn, state = nn.RNN(8, 32, batch_first=True), None
sequence = torch.randn(4, 100, 8)
for chunk in sequence.split(25, dim=1):
    outputs, state = rnn(chunk, state)
    outputs.square().mean().backward()
    state = state.detach()  # for an LSTM: tuple(s.detach() for s in state)
""",
        cost="less memory; dependencies longer than k are lost",
    ),
)
