"""Describe a finding in the terms that the choice of remedies depends on."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradwatch.findings import Clue, Kind
from gradwatch.fork_safety import lazy_property

if TYPE_CHECKING:
    from gradwatch.measure.layers import Layers  # which loads torch

__all__ = ["Case"]

SQUASHING = frozenset({"Sigmoid", "Tanh", "LogSigmoid", "Softsign", "Hardsigmoid", "Hardtanh"})
RECTIFYING = frozenset({"ReLU", "ReLU6"})
SMOOTH = frozenset({"GELU", "SiLU", "Mish", "ELU", "SELU", "CELU", "LeakyReLU", "PReLU", "Softplus", "Hardswish"})
NORMALISING = ("BatchNorm", "LayerNorm", "GroupNorm", "InstanceNorm", "RMSNorm")
PLAIN_RECURRENT = frozenset({"RNN", "RNNCell"})
GATED = frozenset({"LSTM", "LSTMCell", "GRU", "GRUCell"})
RESIDUAL = re.compile(r"Residual|BasicBlock|Bottleneck|(En|De)coderLayer|(GPT|Bert|Llama)\w*(Block|Layer)|ResNet")
CRITIC = re.compile(r"critic|discriminator", re.IGNORECASE)
READING = re.compile(r"Embedding(Bag)?|(Bil|L)inear|Conv\w*|(RNN|LSTM|GRU)(Cell)?|MultiheadAttention")
ATTENTION = re.compile(r"Attention|Transformer|(En|De)coderLayer")
CONVOLUTION = re.compile(r"Conv(?:Transpose)?(\dd)$")


@dataclass(frozen=True)
class Case:
    """A finding and what is known of its model; "sick layers" below are those that the finding covers.

    Attributes:
        kind: of the finding.
        layers: the table of watched tensors.
        columns: of the sick layers; none for the run as a whole.
        clips: gradients are clipped already.
        rate: the learning rate, if it is known.
        lower_rate, higher_rate: learning rates to try in its place, where they are known.
        clues: what the cause says.
        operation: the name of the one that made NaN or Inf, where it has no remedy of its own.
        weight: the name of the one that the cause accuses: it was sick before the step, overwritten, or stretches.
    """

    kind: Kind
    layers: Layers
    columns: Sequence[int] = ()
    clips: bool = False
    rate: float | None = None
    lower_rate: float | None = None
    higher_rate: float | None = None
    clues: frozenset[Clue] = frozenset()
    operation: str = ""
    weight: str = ""

    @lazy_property
    def owners(self) -> frozenset[str]:
        """Types of the modules that hold the sick layers, or all layers where the whole run is sick."""
        return frozenset(self.layers.owners[column] for column in self._columns)

    @lazy_property
    def functions(self) -> frozenset[str]:
        """Types of the activation functions that follow the sick layers; of all in the model, where none is known."""
        known = SQUASHING | RECTIFYING | SMOOTH
        following = (
            self.layers.followed_by[column] for column in self._columns if column < len(self.layers.followed_by)
        )
        return known & frozenset().union(*following) or known & self.layers.module_types

    @property
    def squashes(self) -> bool:
        """A sigmoid or the like follows the sick layers."""
        return bool(self.functions & SQUASHING)

    @property
    def slopes_below_one(self) -> bool:
        """A sigmoid follows the sick layers; no scale of the weights makes up for its slope of a quarter at most."""
        return bool(self.functions & {"Sigmoid", "Hardsigmoid"})

    @property
    def rectifies(self) -> bool:
        """A ReLU follows the sick layers."""
        return bool(self.functions & RECTIFYING)

    @property
    def normalises(self) -> bool:
        """The model has a normalisation."""
        return any(norm in name for name in self.layers.module_types for norm in NORMALISING)

    @property
    def is_residual(self) -> bool:
        """The model has residual blocks of a known type; a sum inside ``forward`` is not seen."""
        return any(RESIDUAL.search(name) for name in self.layers.module_types)

    @property
    def is_recurrent(self) -> bool:
        """A plain RNN is among the sick layers."""
        return bool(self.owners & PLAIN_RECURRENT)

    @property
    def is_gated(self) -> bool:
        """An LSTM or GRU is among the sick layers."""
        return bool(self.owners & GATED)

    @property
    def runs_along_time(self) -> bool:
        """A recurrent layer of any type is among the sick layers."""
        return self.is_recurrent or self.is_gated

    @property
    def is_convolution(self) -> bool:
        """A convolution is among the sick layers."""
        return any(CONVOLUTION.search(owner) for owner in self.owners)

    @property
    def attends(self) -> bool:
        """The model has attention."""
        return any(ATTENTION.search(name) for name in self.layers.module_types)

    @property
    def is_embedding(self) -> bool:
        """All sick layers are embeddings."""
        return bool(self.owners) and all("Embedding" in owner for owner in self.owners)

    @property
    def is_critic(self) -> bool:
        """The sick layers, or the model, are called critic or discriminator."""
        names = [self.layers.names[column] for column in self._columns]
        return any(CRITIC.search(name) for name in [*names, *self.layers.module_types])

    @property
    def can_clip(self) -> bool:
        """Clipping by norm would act: nobody clips, the norm is finite, and the optimizer follows its gradients."""
        return not self.clips and not {"norm overflows", "clipping idle"} & self.clues

    @property
    def is_half(self) -> bool:
        """A sick layer is held in float16."""
        return any(str(self.layers.tensors[column].dtype) == "torch.float16" for column in self._columns)

    @property
    def touches_input(self) -> bool:
        """A sick layer belongs to the module that comes first and reads numbers; token ids have no scale."""
        if not len(self.layers) or self.reads_ids:
            return False
        first = int(self.layers.order[0])
        return first in self._columns or (
            self.runs_along_time and self._module(first) in map(self._module, self._columns)
        )

    @property
    def reads_ids(self) -> bool:
        """The first of the layers that torch provides is an embedding."""
        owners = (self.layers.owners[column] for column in self.layers.order)
        return next(("Embedding" in owner for owner in owners if READING.fullmatch(owner)), False)

    @lazy_property
    def words(self) -> dict[str, str]:
        """Values for the braces of a remedy's ``advice``."""
        dimension = next((found[1] for owner in sorted(self.owners) if (found := CONVOLUTION.search(owner))), "1d")
        return {
            "functions": " and ".join(sorted(self.functions - SMOOTH or self.functions)) or "the activation function",
            "where": self._where,
            "between": f"before {' and '.join(sorted(self.functions & SQUASHING))}"
            if self.squashes
            else "between layers",
            "batch_norm": f"BatchNorm{dimension}",
            "lower": self._other_rate(self.lower_rate),
            "higher": self._other_rate(self.higher_rate),
            "warm_up": "500" if self.attends else "100",
            "broken": self._broken,
            "weight": self.weight or self._where,
            "restored": self._restored,
            "connected": self._connected,
            "guard": self._guard,
            "scaled": self._scaled,
            "opened": self._opened,
            "epsilon": "1e-4 in float16" if self.is_half else "1e-8",
            "penalty": self._penalty,
            "recurrent": self.weight if "recurrence grows" in self.clues else self._where,
        }

    def _other_rate(self, other: float | None) -> str:
        """Return the rate to try, in brackets; "" where none is known."""
        if not self.rate or other is None:
            return ""
        earlier = ", as it was before" if {"rate rose", "rate decayed"} & self.clues else ""
        if other == self.rate:  # it has come back
            return f" (no more than {other:.2g}{earlier})"
        return (
            f" ({other:.2g}{earlier}, where it is {self.rate:.2g})"
            if earlier
            else (f" ({other:.2g} where it is {self.rate:.2g})")
        )

    def _module(self, column: int) -> str:
        return self.layers.names[column].rpartition(".")[0]

    @property
    def _columns(self) -> Sequence[int]:
        return self.columns or range(len(self.layers))

    @property
    def _scaled(self) -> str:
        """Return what is to be scaled: what the cause has seen to be raw, or both."""
        raw = {"raw inputs", "raw targets"} & self.clues
        if raw == {"raw targets"}:
            return (
                "targets scaled to mean 0 and variance 1, by figures of the training data; predictions are scaled back"
            )
        if raw == {"raw inputs"}:
            return "inputs scaled to mean 0 and variance 1, each feature by figures of the training data"
        return "inputs (and targets of a regression) scaled to mean 0 and variance 1"

    @property
    def _opened(self) -> str:
        """Return how a gradient comes to pass, by what stops it."""
        if "flat operation" in self.clues:
            return (
                "compute the loss from what the model returns before the operation that the cause names (use that one "
                "where results are reported), or begin with outputs that lie where it has a slope"
            )
        if "zero inputs" in self.clues:
            return (
                "look at the batches that the model is given: they are 0 wherever a gradient comes from, as an integer "
                "division or a scale that was applied twice makes them; if other rows are not 0, find why their loss "
                "passes no gradient"
            )
        if "norm of one" in self.clues:
            return (
                f"let the module of {self.weight} normalise over several values: groups of more than one channel, the "
                "axis of the features, a batch of more than one; or leave it out"
            )
        return (
            f"find the factor of 0 on the way to {self._where}, or from it to the loss, and make it another number: "
            "the gain of a normalisation, a gate, a mask, zeros in place of values, units that are all dead, a weight "
            "of the loss"
        )

    @property
    def _penalty(self) -> str:
        if "no lower bound" in self.clues:
            return (
                "look for a term of the loss with the wrong sign: what is to stay small is added (loss + α‖W‖²), what "
                "is to grow must have a bound"
            )
        return "weight regularisation: loss + α‖W‖² (optimizer's weight_decay)"

    @property
    def _guard(self) -> str:
        if "ctc_loss" in self.operation:
            return "leave out targets that are longer than the input that they belong to, or set zero_infinity=True"
        what = self.operation or "the operation that the cause names"
        return (
            f"guard what goes into {what} against the values at which it fails, or leave such steps out: "
            'on_nonfinite="skip"'
        )

    @property
    def _connected(self) -> str:
        """Return how an optimizer comes to move the model: it has other weights, or the loss does not reach them."""
        if "not reached" in self.clues:
            return (
                "compute the loss from what the model returns, without detach(), item(), no_grad(), argmax or a new "
                "tensor between the two, and give the optimizer the parameters that the loss depends on"
            )
        return (
            "make the optimizer from model.parameters() once the model is as it will be trained: after new heads, "
            "copies, wrappers and moves; freeze what is to stay as it is by requires_grad_(False)"
        )

    @property
    def _restored(self) -> str:
        """Return how a weight becomes finite again, by who made it NaN or Inf."""
        weight = self.weight or self._where
        if "sick from the start" not in self.clues:
            return (
                f"restore {weight} from the last checkpoint, or initialise it anew, and look for what writes into it "
                "beside the optimizer: an assignment, a projection or average that divides by 0, a file that is "
                "loaded; a bit that flipped does so once"
            )
        return (
            f"initialise {weight}: it held NaN or Inf before any update (torch.empty and torch.Tensor(…) hold whatever "
            "was in memory); if it was loaded, the checkpoint is broken"
        )

    @property
    def _broken(self) -> str:
        """Return what is to be mended in the data: the batch, or what the loss is given beside the outputs."""
        if "bad target" in self.clues:
            return (
                "mend the target or weight that the loss takes where it is computed (a division by 0? the deviation of "
                "a single sample?), or leave out its broken rows"
            )
        if "one batch" in self.clues:
            return (
                "look at the batch of that step: leave out or mend its broken rows, or bound what one row can cost "
                "(huber_loss)"
            )
        return "leave out the broken rows of the batch"

    @property
    def _where(self) -> str:
        if not self.columns:
            return "the weights"
        names = [self.layers.names[column] for column in self.columns if self.layers.is_weight[column]]
        if len(names) == 1:
            return names[0]
        return f"{names[0]} to {names[-1]}" if names else self.layers.names[self.columns[0]]
