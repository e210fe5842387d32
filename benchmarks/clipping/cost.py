"""Time a step under each policy of ``gradwatch.clip`` beside one with ``torch.nn.utils.clip_grad_norm_``."""

from __future__ import annotations

import dataclasses
import functools
import logging

from benchmarks.overhead import MODELS, Make, clips, measure, ratio, watches
from gradwatch import clip


def auto_before() -> clip.Policy:
    """Return ``auto`` as it was, and still is where it knows no optimizer: by a history of the total norm alone."""
    policy = clip.auto()
    return dataclasses.replace(
        policy, clip_=lambda gradients, magnitudes, parameters, _: policy.clip_(gradients, magnitudes, parameters, None)
    )


POLICIES: dict[str, clip.Policy | float | str] = {
    "1.0": 1.0,
    '"auto"': "auto",
    '"auto" before': auto_before(),
    "by_layer_norm(1.0)": clip.by_layer_norm(1.0),
    "by_value(0.1)": clip.by_value(0.1),
    "percentile(10)": clip.percentile(10),
    "adaptive(0.01)": clip.adaptive(0.01),
    "skip_spikes(6)": clip.skip_spikes(6),
    "by_update(0.1)": clip.by_update(0.1),
}
CHOSEN = ("MLP of 100 layers", "GPT-2-like, 5M")
BASE = "clip_grad_norm_"


def table(rounds: int) -> str:
    """Return a row for each policy, watching included: median of step ÷ step, its interval, ratio of the means."""
    logging.getLogger("gradwatch").setLevel(logging.CRITICAL)
    ways: dict[str, tuple[Make, str]] = {BASE: (clips, BASE)}
    ways |= {name: (functools.partial(watches, clip=policy), BASE) for name, policy in POLICIES.items()}
    columns = []
    for model in CHOSEN:
        times = measure(MODELS[model][0], ways, rounds)
        columns.append([ratio(times[name], times[BASE]) for name in POLICIES])
    lines = [f"| `clip=`, {rounds} rounds; ÷ `clip_grad_norm_` | {' | '.join(CHOSEN)} |", "|---|---|---|"]
    lines += [f"| `{name}` | {' | '.join(cells)} |" for name, *cells in zip(POLICIES, *columns, strict=True)]
    return "\n".join(lines)
