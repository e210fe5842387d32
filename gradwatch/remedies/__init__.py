"""A finding and its layers → what to try, best first.

Enters: a kind and the table of layers. Leaves: sentences. Knows nothing of figures: what was measured is the finding's.
"""

from __future__ import annotations

from collections.abc import Iterable

from gradwatch.layers import Layers

__all__ = ["advise"]

SQUASHING = {"Sigmoid", "Tanh", "LogSigmoid", "Softsign"}
NORMALISING = ("BatchNorm", "LayerNorm", "GroupNorm", "InstanceNorm", "RMSNorm")
RECURRENT = {"RNN", "RNNCell"}
GATED = {"LSTM", "LSTMCell", "GRU", "GRUCell"}


def advise(kind: str, layers: Layers, clips: bool) -> tuple[str, ...]:
    """Remedies for a finding, those that fit the model's modules first.

    Args:
        kind: the finding's kind.
        layers: the table; its ``module_types`` decide what fits.
        clips: whether gradients are already clipped.
    """
    return tuple(dict.fromkeys(_CANDIDATES[kind](layers.module_types, clips)))


def _vanishing(types: frozenset[str], clips: bool) -> Iterable[str]:
    if squashing := sorted(types & SQUASHING):
        yield f"ReLU, GELU or SiLU in place of {' and '.join(squashing)}"
    if types & RECURRENT:
        yield "LSTM or GRU in place of the plain RNN"
        yield "truncated backpropagation through time"
    if not _normalises(types):
        yield "batch or layer normalisation between the layers"
    yield "residual connections around the sick layers"
    yield "He (ReLU) or Xavier (tanh, sigmoid) initialisation"
    yield "fewer layers"


def _exploding(types: frozenset[str], clips: bool) -> Iterable[str]:
    if not clips:
        yield 'clip gradients: clip="auto" or clip=1.0'
    yield "a lower learning rate, or warm-up"
    if types & RECURRENT:
        yield "LSTM or GRU in place of the plain RNN"
    if types & (RECURRENT | GATED):
        yield "truncated backpropagation through time"
    yield "inputs and targets scaled to about unit variance"
    yield "He (ReLU) or Xavier (tanh, sigmoid) initialisation"
    if not _normalises(types):
        yield "batch or layer normalisation between the layers"
    yield "weight regularisation (optimizer's weight_decay)"
    yield "residual connections, or fewer layers"


def _nonfinite(types: frozenset[str], clips: bool) -> Iterable[str]:
    yield "check this step's batch for NaN and Inf"
    yield "guard log, sqrt and division in the loss (an epsilon inside, clamp before)"
    yield "a lower learning rate, or warm-up"
    if not clips:
        yield 'clip gradients: clip="auto" or clip=1.0'
    yield 'on_nonfinite="skip" to leave such steps out'


def _stalled(types: frozenset[str], clips: bool) -> Iterable[str]:
    yield "a higher learning rate (and check that its schedule does not begin at 0)"
    yield "check that the optimizer was given this model's parameters"
    if types & SQUASHING:
        yield "smaller initial weights or scaled inputs, so that the activations do not saturate"
    yield "check that the loss depends on the output (no detach, no argmax)"


def _unstable(types: frozenset[str], clips: bool) -> Iterable[str]:
    yield "a lower learning rate, or warm-up"
    if not clips:
        yield 'clip gradients: clip="auto" or clip=1.0'
    yield "less momentum, or larger batches"
    if not _normalises(types):
        yield "batch or layer normalisation between the layers"


def _dead(types: frozenset[str], clips: bool) -> Iterable[str]:
    yield "leaky ReLU, ELU or GELU in place of ReLU"
    yield "a lower learning rate, or warm-up"
    yield "biases that begin at 0, and He initialisation"
    yield "inputs scaled to about unit variance"
    if not _normalises(types):
        yield "batch or layer normalisation between the layers"


def _saturated(types: frozenset[str], clips: bool) -> Iterable[str]:
    if not _normalises(types):
        yield "batch or layer normalisation before the activation function"
    yield "smaller initial weights (Xavier), biases that begin at 0"
    yield "inputs scaled to about unit variance"
    if squashing := sorted(types & SQUASHING):
        yield f"ReLU, GELU or SiLU in place of {' and '.join(squashing)}"
    yield "a lower learning rate, or warm-up"


def _normalises(types: frozenset[str]) -> bool:
    return any(name.startswith(NORMALISING) or name.endswith(NORMALISING) for name in types)


_CANDIDATES = {
    "vanishing": _vanishing,
    "exploding": _exploding,
    "nonfinite": _nonfinite,
    "dead": _dead,
    "saturated": _saturated,
    "stalled": _stalled,
    "unstable": _unstable,
}
