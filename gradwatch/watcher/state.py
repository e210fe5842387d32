"""The state of a watcher in a checkpoint: typed, with a version, refused clearly where it cannot be read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from gradwatch.findings import Finding
from gradwatch.watcher import checkpoint

__all__ = ["VERSION", "TrackState", "WatcherState", "unreadable", "what_differs"]

VERSION = 3
"""The version of a watcher's state. It grows when older states can no longer be read."""

_RESUME = "Resume without it: the watcher then begins anew, and the training goes on all the same."


@dataclass(frozen=True)
class TrackState:
    """The memory of one optimizer in a checkpoint.

    Attributes:
        updates: how many it has attempted.
        diagnosis: what the detectors and the background remember, and open findings, as they give it; empty where that
            begins anew.
        clip: what its clipping policy remembers, empty where that is nothing.
    """

    updates: int
    diagnosis: dict[str, Any]
    clip: dict[str, Tensor | int]


@dataclass(frozen=True)
class WatcherState:
    """The memory of a watcher in a checkpoint: a resumed run goes on from it.

    Attributes:
        layers: names of the watched layers.
        step: attempted updates of all optimizers.
        skipped_steps: how many of them made no update.
        measured_steps: how many of them were measured and judged.
        ended: findings that are over.
        tracks: of each optimizer, in order of first sight.
    """

    layers: tuple[str, ...]
    step: int
    skipped_steps: int
    measured_steps: int
    ended: tuple[Finding, ...]
    tracks: tuple[TrackState, ...]

    def without_layers(self, layers: tuple[str, ...]) -> WatcherState:
        """Return the state for other ``layers``, without what was learned of those that it has."""
        tracks = tuple(replace(track, diagnosis={}) for track in self.tracks)
        return replace(self, layers=layers, tracks=tracks)

    def as_plain(self) -> dict[str, Any]:
        """Return numbers, strings and tensors, which ``torch.load(weights_only=True)`` accepts."""
        tracks = [{"updates": track.updates, "diagnosis": track.diagnosis, "clip": track.clip} for track in self.tracks]
        plain: dict[str, Any] = checkpoint.pack(
            {
                "version": VERSION,
                "layers": list(self.layers),
                "step": self.step,
                "skipped_steps": self.skipped_steps,
                "measured_steps": self.measured_steps,
                "ended": [finding.as_dict() for finding in self.ended],
                "optimizers": tracks,
            }
        )
        return plain

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> WatcherState:
        """Return the state that ``as_plain`` made ``plain`` of.

        Raises:
            ValueError: where it made no such thing: what was expected, what was found, and what to do.
        """
        if not isinstance(plain, Mapping) or "version" not in plain:
            found = f"the keys {sorted(map(str, plain))}" if isinstance(plain, Mapping) else type(plain).__name__
            raise ValueError(f"load_state_dict: expected what state_dict() returned, found {found}. {_RESUME}")
        if plain["version"] != VERSION:
            raise ValueError(
                f"load_state_dict: expected a state of version {VERSION}, found version {plain['version']!r}, which "
                f"another gradwatch has saved. {_RESUME}"
            )
        try:
            values = checkpoint.unpack(dict(plain))
            return cls(
                layers=_names(values["layers"]),
                step=int(values["step"]),
                skipped_steps=int(values["skipped_steps"]),
                measured_steps=int(values["measured_steps"]),
                ended=tuple(Finding.from_dict(saved) for saved in values["ended"]),
                tracks=tuple(TrackState(t["updates"], t["diagnosis"], t["clip"]) for t in values["optimizers"]),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise unreadable(error) from error


def unreadable(error: Exception) -> ValueError:
    """Return what to raise where reading a state has raised ``error``."""
    return ValueError(
        f"load_state_dict: expected a whole state of version {VERSION}, found one that cannot be read "
        f"({type(error).__name__}: {error}). {_RESUME}"
    )


def _names(found: Iterable[object]) -> tuple[str, ...]:
    names = [name for name in found if isinstance(name, str)]
    if len(names) < len([*found]):
        raise TypeError("layers: expected names")
    return tuple(names)


def what_differs(before: Sequence[str], now: Sequence[str]) -> str:
    """Return a line on the layers that a checkpoint's state has and those that are watched now."""
    parts = {"new": set(now) - set(before), "gone": set(before) - set(now)}
    counts = [f"{len(names)} {word} ({', '.join(sorted(names)[:3])})" for word, names in parts.items() if names]
    return (
        f"other layers are watched than in the checkpoint: {', '.join(counts) or 'their order differs'}. "
        "Steps are counted on, and what is learned of layers begins anew."
    )
