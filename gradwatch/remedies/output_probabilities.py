"""Turn the outputs of a model into probabilities where its loss takes the logarithm of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gradwatch.remedies.remedy import NotApplicableError
from gradwatch.remedies.safe_modes import LossFunction, LossWithin, SafeMode

__all__ = ["OutputProbabilities"]

_LOGARITHMS = (torch.log, Tensor.log, torch.log2, Tensor.log2, torch.xlogy, Tensor.xlogy, torch.special.xlogy)
_TWO_CLASSES = F.binary_cross_entropy
_MAKES_PROBABILITIES = (
    torch.softmax, Tensor.softmax, F.softmax, torch.log_softmax, Tensor.log_softmax, F.log_softmax,
    torch.sigmoid, Tensor.sigmoid, F.sigmoid, F.logsigmoid, torch.exp, Tensor.exp, torch.logsumexp, Tensor.logsumexp,
)  # fmt: skip

Activation = Literal["softmax", "sigmoid"]


class OutputProbabilities(SafeMode):
    """A softmax or sigmoid between a model and a loss that takes the logarithm of what the model returns.

    It is a sigmoid for one output, and where the loss takes two logarithms, of p and of 1 − p; else a softmax over the
    last axis.

    Examples:
        >>> def loss_fn(p, y):
        ...     return -(y * p.log()).sum(1).mean()
        >>> loss_fn = OutputProbabilities().around_(nn.Identity(), loss_fn)
        >>> loss = loss_fn(torch.tensor([[-1.0, -1.0]]), torch.tensor([[0.0, 1.0]]))  # log 2
        >>> round(float(loss), 4)
        0.6931
    """

    answers: ClassVar = {}

    def __init__(self) -> None:
        super().__init__()
        self._logarithms = 0
        self._has_two_classes = self._makes_probabilities = False

    def around_(self, model: nn.Module, loss_fn: LossFunction) -> LossFunction:
        """Return ``loss_fn`` of probabilities; ``model`` stays as it is.

        Raises:
            NotApplicableError: by what is returned, at its first call, where the loss takes no logarithm, or the
                outputs are probabilities, or no tensor (N,) or (N, C), or the loss makes probabilities of them itself.
        """
        return _LossOfProbabilities(self, loss_fn)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(isinstance(each, Tensor) and each.requires_grad for each in args):  # not of targets
            self._logarithms += function in _LOGARITHMS
            self._has_two_classes |= function is _TWO_CLASSES
            self._makes_probabilities |= function in _MAKES_PROBABILITIES
        return function(*args, **(kwargs or {}))

    def activation_for(self, outputs: Any, taken: Callable[[Tensor], Any]) -> Activation:
        """Return what is to come between these first outputs and ``taken``, the loss of them.

        Raises:
            NotApplicableError: where nothing is.
        """
        if not _is_table(outputs):
            raise NotApplicableError("expected outputs of shape (N,) or (N, C)")
        if bool(((outputs >= 0) & (outputs <= 1)).all()):
            raise NotApplicableError("the outputs are between 0 and 1 already")
        with self, torch.enable_grad():
            taken(outputs.detach().sigmoid().requires_grad_())
        if self._makes_probabilities:
            raise NotApplicableError("the loss makes probabilities of the outputs itself")
        self.called = self._logarithms > 0 or self._has_two_classes
        if not self.called:
            raise NotApplicableError("the loss takes no logarithm of the outputs")
        each_alone = self._has_two_classes or self._logarithms > 1
        return "sigmoid" if each_alone or outputs.ndim == 1 or outputs.shape[1] == 1 else "softmax"


def _is_table(outputs: Any) -> bool:
    return isinstance(outputs, Tensor) and outputs.is_floating_point() and 1 <= outputs.ndim <= 2


class _LossOfProbabilities(LossWithin):
    """A loss of what its mode makes of the outputs, as the first ones show."""

    mode: OutputProbabilities
    activation: Activation | None = None

    def forward(self, outputs: Any, targets: Any) -> Tensor:
        if self.activation is None:
            self.activation = self.mode.activation_for(outputs, lambda shares: self.loss_fn(shares, targets))
        return self.loss_fn(outputs.sigmoid() if self.activation == "sigmoid" else outputs.softmax(-1), targets)
