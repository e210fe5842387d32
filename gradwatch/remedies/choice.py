"""Choose the remedies that fit a case, best first.

The order within a kind follows what the runs of ``examples/remedies/`` showed (docs/remedies.md): remedies that act on
the cause come before those that act on everything, and those that were measured not to help are left out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from gradwatch.findings import Clue, Kind
from gradwatch.remedies.case import SMOOTH, Case

__all__ = ["fitting"]


def fitting(case: Case) -> tuple[str, ...]:
    """Return the names of the remedies, best first, each once."""
    for clue, kinds, remedy in _ALONE:
        if clue in case.clues and case.kind in kinds:
            return (remedy,)
    return tuple(dict.fromkeys(_CHOICES[case.kind](case)))


# complexity: the causes are independent of each other, and read best in the order in which they are tried
def _vanishing(case: Case) -> Iterator[str]:
    if "one branch" in case.clues:  # a gate, a gain or a mask shut it; its siblings learn
        yield from ("nonzero-gain", "lower-learning-rate")
        return
    if _SHUT & case.clues:
        may_be_dead = case.rectifies and "zero inputs" not in case.clues
        yield from ("nonzero-gain", "leaky-relu") if may_be_dead else ("nonzero-gain",)
        return
    yield from _begun_or_made_wrong(case)
    if case.is_half:
        yield "loss-scaling"
    if "no gradient" in case.clues:
        yield from _no_gradient(case)
    if "dead units" in case.clues:
        yield from _dead(case)
    if {"faded later", "weights grown"} & case.clues:  # the run began well, so training did it
        yield "lower-learning-rate"
    if _BEGUN_WRONG & case.clues and not case.is_gated:
        yield from _initialisations(case)
    yield from _vanishing_along(case)
    yield from _normalisations(case)
    yield from _shorter_ways(case)


def _vanishing_along(case: Case) -> Iterator[str]:
    """Yield what helps against a gradient that fades along time, or along depth from the start."""
    if case.is_recurrent:
        yield from ("orthogonal", "lstm-gru", "truncated-bptt")
    elif case.is_gated:  # gates are made to pass gradients on; they do not where they are saturated
        if case.touches_input:
            yield "scaled-inputs"
        yield "lower-learning-rate"
    elif not case.slopes_below_one:  # twenty sigmoids fade under any initialisation
        if case.functions <= SMOOTH and case.functions:  # no factor keeps the variance through a GELU
            yield from _normalisations(case)
        yield from _initialisations(case)


def _shorter_ways(case: Case) -> Iterator[str]:
    """Yield what lets the gradient pass layers: other functions, skips, fewer layers."""
    if case.squashes:
        yield "relu"
    if not (case.is_residual or case.is_embedding or case.runs_along_time):
        yield "residual"
    if case.squashes and not case.normalises:
        yield from ("selu", "elu")
    if not case.runs_along_time:
        yield "fewer-layers"


def _no_gradient(case: Case) -> Iterator[str]:
    """Yield what helps where no gradient is left: an update went too far, or the inputs are too large."""
    yield "lower-learning-rate"
    if not case.clips:
        yield "clip-norm"
    if not case.reads_ids:
        yield "scaled-inputs"
    if case.rectifies:
        yield "leaky-relu"


_SHUT = frozenset({"factor of 0", "zero inputs", "flat operation", "norm of one"})


def _begun_or_made_wrong(case: Case) -> Iterator[str]:
    """Yield what undoes a reason that needs no rule: the rate rose, weights began large, numbers are raw."""
    yield from _idle_norms(case)
    if "rate rose" in case.clues:
        yield "lower-learning-rate"
    if {"weights large", "bias far out"} & case.clues and not (case.is_gated and case.kind == "vanishing"):
        yield from _initialisations(case)
    yield from _raw(case)


def _idle_norms(case: Case) -> Iterator[str]:
    if "norm left idle" in case.clues:
        yield "train-mode"


def _raw(case: Case) -> Iterator[str]:
    """Yield what helps against raw numbers; token ids have no scale."""
    if "raw targets" in case.clues or ("raw inputs" in case.clues and not case.reads_ids):
        yield "scaled-inputs"


# complexity: the cases are independent of each other, and read best in the order in which their remedies are tried
def _exploding(case: Case) -> Iterator[str]:
    yield from _idle_clipping(case)
    if case.is_critic:
        yield from ("gradient-penalty", "spectral-norm")
    if "overwritten" in case.clues:
        yield "initialise"
    if "recurrence grows" in case.clues:
        yield "orthogonal"
    if "one batch" in case.clues:
        yield from ("clip-norm", "clean-data") if case.can_clip else ("clean-data",)
    yield from _begun_or_made_wrong(case)
    if "rate rose" in case.clues:
        yield "warm-up"
    yield from _exploding_by_shape(case)
    if "norm overflows" in case.clues and not case.reads_ids:  # clipping scales nothing where the norm is Inf
        yield "scaled-inputs"
    if case.can_clip:
        yield from ("clip-value", "clip-norm") if case.is_embedding else ("clip-norm",)
    yield "lower-learning-rate"
    if case.is_recurrent:
        yield "lstm-gru"
    if case.runs_along_time:
        yield "truncated-bptt"
    if case.touches_input:
        yield "scaled-inputs"
    if case.can_clip and not case.is_embedding:
        yield "clip-adaptive"  # nobody may know a threshold
    if case.is_residual:
        yield "depth-scaled"
    yield "warm-up"
    yield from _normalisations(case)
    yield "smaller-batches"


def _exploding_by_shape(case: Case) -> Iterator[str]:
    """Yield what helps against an explosion at birth, or a growth without end, whose reason is seen."""
    if "branches add up" in case.clues:
        yield "depth-scaled"
        yield from _normalisations(case)
    if "grows along depth" in case.clues:  # factors above 1 in each layer
        yield from _initialisations(case)
        yield from _normalisations(case)
        if not case.runs_along_time:
            yield "depth-scaled"
    if "update too large" in case.clues:  # the first update of Adam is as long, whatever clips its gradient
        yield "lower-learning-rate"
        if case.touches_input:
            yield "scaled-inputs"
    if "targets grow" in case.clues:
        yield "target-network"
    if "grows without bound" in case.clues:
        yield from ("weight-regularisation", "lower-learning-rate")


_BEGUN_WRONG = frozenset({"weights small", "weights large", "weights alike", "bias far out"})
_SAFE_FORMS = {  # where the loss holds several, those come first that are rarely there for another reason
    "arc": ("safe-angle",),
    "decomposition": ("jitter",),
    "power": ("safe-power",),
    "logarithm": ("safe-log",),
    "root": ("safe-sqrt",),
    "division": ("safe-division", "safe-sqrt"),  # a divisor is often a norm or deviation: its epsilon belongs inside
    "softmax": ("masked-softmax",),
    "exponential": ("safe-log",),  # its text says what takes the place of exp and log
}
_LOCAL = frozenset({"arc", "decomposition", "power", "logarithm", "root", "division"})
_CAUSES_OF_NONFINITE = {*_SAFE_FORMS, "bad batch", "one batch", "bad target", "overflow", "diverged",
                        "overflow of float16", "scaler gave up", "another operation"}  # fmt: skip


def _nonfinite(case: Case) -> Iterator[str]:
    if {"sick from the start", "overwritten"} & case.clues:
        yield "initialise"
    elif "sick update" in case.clues:
        yield from _sick_update(case)
    else:
        yield from _nonfinite_of_a_step(case)


# complexity: the causes are independent of each other, and read best in the order in which they are tried
def _nonfinite_of_a_step(case: Case) -> Iterator[str]:
    """Yield what helps where the step itself, forward or backward, made NaN or Inf."""
    updates_matter = "before any update" not in case.clues
    if case.weight and "recurrence grows" not in case.clues:  # it was sick before the step
        yield "initialise"
    if {"bad batch", "bad target"} & case.clues or ("one batch" in case.clues and "diverged" not in case.clues):
        yield "clean-data"
    yield from _beyond_float16(case, updates_matter)
    if case.clues & _LOCAL:  # such an operation fails by itself, whatever the run did before
        yield from _safe_forms(case)
    if "diverged" in case.clues:
        yield from _exploding(case)
    if "exponential" in case.clues:  # of numbers that are as large as what the model reads
        yield from _raw(case)
    yield from _safe_forms(case)
    if {"overflow", "exponential"} & case.clues:
        yield from _exploding(case) if updates_matter else _overflowing_at_once(case)
    if "another operation" in case.clues:
        yield "skip-step"
    if not case.clues & _CAUSES_OF_NONFINITE:
        yield from _nonfinite_without_a_cause(case, updates_matter)


def _beyond_float16(case: Case, updates_matter: bool) -> Iterator[str]:
    """Yield what helps where float16 is left; a scale of the loss acts on gradients alone, and may be there already."""
    overflows = {"overflow of float16", "scaler gave up"} & case.clues
    if not overflows and not case.is_half:
        return
    yield "bfloat16"
    if not overflows:
        yield "loss-scaling"
    if overflows and case.touches_input:
        yield "scaled-inputs"
    if updates_matter:
        yield "lower-learning-rate"


def _sick_update(case: Case) -> Iterator[str]:
    """Yield what helps where an optimizer made NaN or Inf of finite gradients."""
    if "rate is not finite" in case.clues:
        yield "finite-rate"
        return
    if "diverged" in case.clues:
        yield from _exploding(case)
    if "epsilon is 0" in case.clues:
        yield "optimizer-epsilon"
    if "zero gradient" in case.clues:
        yield "safe-update"
    if case.is_half:
        yield from ("optimizer-epsilon", "float32-weights", "bfloat16")
    yield from ("safe-update", "skip-step")


def _safe_forms(case: Case) -> Iterator[str]:
    """Yield the safe forms of the operations that made NaN or Inf."""
    for clue, names in _SAFE_FORMS.items():
        if clue in case.clues:
            yield from names


def _nonfinite_without_a_cause(case: Case, updates_matter: bool) -> Iterator[str]:
    if case.attends:
        yield "masked-softmax"
    if "made backward" in case.clues:  # of a finite forward pass, so that neither data nor weights held it
        yield from ("safe-sqrt", "safe-division", "safe-log")
    else:
        yield from ("clean-data", "safe-log", "safe-sqrt", "safe-division")
    if updates_matter:
        yield "lower-learning-rate"
        if not case.clips:
            yield "clip-norm"


def _overflowing_at_once(case: Case) -> Iterator[str]:
    """Yield what helps where the first forward pass overflows: other weights to begin with, or other inputs."""
    if _BEGUN_WRONG & case.clues:
        yield from _initialisations(case)
    if case.touches_input:
        yield "scaled-inputs"
    yield from _initialisations(case)
    yield from _normalisations(case)


# complexity: the causes are independent of each other, and read best in the order in which they are tried
def _dead(case: Case) -> Iterator[str]:
    yield from _idle_clipping(case)
    if "flat operation" in case.clues and case.rectifies:  # the loss is given nothing but zeros
        yield "leaky-relu"
    yield from _idle_norms(case)
    if "rate rose" in case.clues:
        yield "lower-learning-rate"
    if {"bias far out", "weights large", "weights alike"} & case.clues:
        yield "he"
    yield from _raw(case)
    if "large outputs" in case.clues and "weights grown" not in case.clues and case.touches_input:
        yield "scaled-inputs"
    yield "lower-learning-rate"
    if not case.clips:
        yield "clip-norm"
    if case.touches_input:
        yield "scaled-inputs"
    if case.rectifies:
        yield from ("leaky-relu", "elu", "gelu")
        if case.is_convolution:
            yield "prelu"
    yield from _normalisations(case)
    yield "he"


# complexity: the causes are independent of each other, and read best in the order in which they are tried
def _saturated(case: Case) -> Iterator[str]:
    yield from _idle_norms(case)
    begun_large = bool({"weights large", "bias far out", "weights alike"} & case.clues)
    if begun_large:
        yield "xavier"
    yield from _raw(case)
    if {"weights grown", "rate rose"} & case.clues:
        yield "lower-learning-rate"
    if "large outputs" in case.clues and case.touches_input:
        yield "scaled-inputs"
    yield from _normalisations(case)
    if case.touches_input:
        yield "scaled-inputs"
    elif "large outputs" in case.clues and not begun_large:
        yield "scaled-layer-inputs"
    if "weights small" not in case.clues:  # larger ones would make it flatter
        yield "xavier"
    yield "lower-learning-rate"
    if case.squashes:
        yield from ("relu", "gelu")


_UPDATES_BACK: dict[Clue, str] = {
    "not owned": "own-parameters",
    "rate zero": "longer-schedule",
    "rate decayed": "longer-schedule",
    "clipped away": "looser-clip",
    "rounded away": "float32-weights",
}


def _stalled(case: Case) -> Iterator[str]:
    if case.is_half:
        yield "loss-scaling"
    for clue, name in _UPDATES_BACK.items():
        if clue in case.clues:
            yield name
    if "not owned" in case.clues:
        return  # nothing else reaches weights that nobody updates
    yield "higher-learning-rate"
    if "weights alike" in case.clues:
        yield from _initialisations(case)
    if case.squashes and not case.reads_ids:
        yield "scaled-inputs"
    if case.is_recurrent:
        yield "lstm-gru"
    yield from _normalisations(case)


def _idle_clipping(case: Case) -> Iterator[str]:
    """Yield what makes up for clipping that has no effect."""
    if "clipped out of place" in case.clues:
        yield "clip-before-step"
    if "clipping idle" in case.clues:
        yield "lower-learning-rate"


def _unstable(case: Case) -> Iterator[str]:
    yield from _idle_clipping(case)
    yield from _idle_norms(case)
    if "rate rose" in case.clues:
        yield "lower-learning-rate"
    if "targets grow" in case.clues:
        yield "target-network"
    yield from _raw(case)
    if case.is_critic:
        yield from ("gradient-penalty", "spectral-norm")
    yield "lower-learning-rate"
    if not case.clips and "clipping idle" not in case.clues:
        yield "clip-norm"
    yield "warm-up"
    if case.touches_input:
        yield "scaled-inputs"
    yield from _normalisations(case)


def _initialisations(case: Case) -> Iterator[str]:
    """Yield the initialisations that suit the activation function after the sick layers."""
    if case.runs_along_time:
        yield "orthogonal"
    elif not case.is_embedding:
        yield "xavier" if case.attends or (case.squashes and not case.rectifies) else "he"
    if case.is_residual:
        yield "depth-scaled"


def _normalisations(case: Case) -> Iterator[str]:
    if case.normalises or case.is_embedding:
        return
    if case.attends:
        yield from ("layer-norm", "rms-norm")
    elif case.runs_along_time:
        yield "layer-norm"
    else:
        yield "batch-norm"
        if not case.is_convolution and not case.slopes_below_one:
            yield "layer-norm"


_ALONE: tuple[tuple[Clue, tuple[Kind, ...], str], ...] = (
    ("never cleared", ("exploding", "nonfinite", "dead", "saturated", "unstable"), "zero-grad"),
    ("cleared early", ("stalled",), "zero-grad-after-step"),
    ("clipped while scaled", ("stalled",), "unscale-first"),
    ("shut by others", ("vanishing",), "non-saturating-loss"),
    ("softmax of one", ("vanishing", "saturated", "stalled"), "softmax-over-classes"),
    ("targets out of reach", ("vanishing", "dead", "saturated", "stalled"), "linear-output"),
)
"""Where the loop itself is wrong, the output cannot change or cannot reach its targets, or another network shuts the
way, nothing else helps."""

_CHOICES: dict[str, Callable[[Case], Iterator[str]]] = {
    "vanishing": _vanishing,
    "exploding": _exploding,
    "nonfinite": _nonfinite,
    "dead": _dead,
    "saturated": _saturated,
    "stalled": _stalled,
    "unstable": _unstable,
}
