"""Find batch normalisations that train in eval mode with the statistics that they began with.

What it looks at: a module that keeps running statistics, is not in training mode, and has a running mean of exactly 0
and a running variance of exactly 1. It then divides by 1 and normalises
nothing. A model that is fine-tuned with its normalisations frozen has statistics of real data, so that no mean is
exactly 0. It joins the cause of a finding only.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from gradwatch.explain.clues import Fact, module_in_words
from gradwatch.measure.layers import Layers

__all__ = ["idle_norms"]


def idle_norms(layers: Layers) -> Iterator[Fact]:
    """Yield the first normalisation that was left idle. Waits for the device."""
    for name, owner, module in zip(layers.names, layers.owners, layers.modules, strict=False):
        if module is not None and not module.training and _has_fresh_statistics(module):
            subject = module_in_words(name.rpartition(".")[0], begins=True)
            yield Fact(
                f"{subject} ({owner}) trains in eval mode with the statistics that it began with, mean 0 and variance "
                "1: it normalises nothing.",
                "norm left idle",
                name,
            )
            return


def _has_fresh_statistics(module: nn.Module) -> bool:
    mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    if not isinstance(mean, Tensor) or not isinstance(variance, Tensor) or mean.is_meta or not mean.numel():
        return False
    return bool((mean == 0).all()) and bool((variance == 1).all())
