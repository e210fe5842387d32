"""Clip gradients or updates, or leave updates out, by policies that read what watching has measured."""

from __future__ import annotations

from gradwatch.clip.against_weights import adaptive, by_update
from gradwatch.clip.by_limit import by_layer_norm, by_norm, by_value
from gradwatch.clip.by_optimizer import auto
from gradwatch.clip.choice import policy_of
from gradwatch.clip.history import percentile
from gradwatch.clip.plainly import clip_plainly_
from gradwatch.clip.policy import IsSpike, Policy
from gradwatch.clip.spikes import skip_spikes

__all__ = [
    "IsSpike",
    "Policy",
    "adaptive",
    "auto",
    "by_layer_norm",
    "by_norm",
    "by_update",
    "by_value",
    "clip_plainly_",
    "percentile",
    "policy_of",
    "skip_spikes",
]
