"""The state of a watcher in a checkpoint: typed, with a version, refused clearly where it cannot be read."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from gradwatch.detect.state import shown
from gradwatch.event_files.decode import LARGEST_STEP, UnreadableError, finding_in, unjudged_in
from gradwatch.findings import Finding, StateError, UnjudgedSteps, shortened_name
from gradwatch.watcher import checkpoint

__all__ = ["VERSION", "TrackState", "WatcherState", "finding_of", "of_another_model", "unreadable", "what_differs"]

VERSION = 5
"""The version of a watcher's state. It grows when older states can no longer be read."""

_LONGEST_NAME = 60
_LONGEST_REASON = 300  # characters of what another reader says
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
        unjudged: how many of those single rules have not judged.
        ended: findings that are over.
        tracks: of each optimizer, in order of first sight.
    """

    layers: tuple[str, ...]
    step: int
    skipped_steps: int
    measured_steps: int
    unjudged: tuple[UnjudgedSteps, ...]
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
                "unjudged": [asdict(each) for each in self.unjudged],
                "ended": [finding.as_dict() for finding in self.ended],
                "optimizers": tracks,
            }
        )
        return plain

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> WatcherState:
        """Return the state that ``as_plain`` made ``plain`` of.

        Raises:
            StateError: where it made no such thing: what was expected, what was found, and what to do.
        """
        if not isinstance(plain, Mapping) or "version" not in plain:
            is_mapping = isinstance(plain, Mapping)
            found = f"the keys {shown(sorted(map(str, plain)))}" if is_mapping else type(plain).__name__
            raise StateError(f"load_state_dict: expected what state_dict() returned, found {found}. {_RESUME}")
        if not _is_this_version(plain["version"]):
            raise StateError(
                f"load_state_dict: expected a state of version {VERSION}, found version "
                f"{shown(plain['version'])}, which "
                f"another gradwatch has saved. {_RESUME}"
            )
        try:
            values = checkpoint.unpack(dict(plain))
            return cls(
                layers=_names(values["layers"]),
                step=_count(values["step"]),
                skipped_steps=_count(values["skipped_steps"]),
                measured_steps=_count(values["measured_steps"]),
                unjudged=unjudged_in(values["unjudged"], "unjudged"),
                ended=tuple(map(finding_of, values["ended"])),
                tracks=tuple(TrackState(_count(t["updates"]), t["diagnosis"], t["clip"]) for t in values["optimizers"]),
            )
        except StateError:
            raise
        except Exception as error:  # whatever may be in a damaged file
            raise unreadable(error) from error


def unreadable(error: Exception) -> StateError:
    """Return what to raise where reading a state has raised ``error``."""
    why = textwrap.shorten(f"{type(error).__name__}: {error}", _LONGEST_REASON, placeholder="…")
    return StateError(
        f"load_state_dict: expected a whole state of version {VERSION}, found one that cannot be read ({why}). "
        f"{_RESUME}"
    )


def of_another_model(before: Sequence[str], now: Sequence[str]) -> StateError:
    """Return what to raise where a state is of other layers than those that are watched now."""
    differ = shown(sorted(set(before) ^ set(now))[:3]) if set(before) != set(now) else "their order"
    return StateError(f"load_state_dict: this state is of another model; what differs: {differ}. {_RESUME}")


def finding_of(saved: object) -> Finding:
    """Return the finding that ``Finding.as_dict`` made ``saved`` of.

    Raises:
        StateError: where it made no such thing.
    """
    if not isinstance(saved, Mapping):
        raise unreadable(TypeError("expected a finding"))
    try:
        return finding_in({"ended": False, **saved}, "a finding").finding
    except UnreadableError as error:
        raise unreadable(error) from error


def _is_this_version(found: object) -> bool:
    return type(found) is int and found == VERSION


def _count(found: object) -> int:
    if type(found) is not int or not 0 <= found <= LARGEST_STEP:
        raise TypeError(f"expected a count, found {shown(found)}")
    return found


def _names(found: Iterable[object]) -> tuple[str, ...]:
    names = [name for name in found if isinstance(name, str)]
    if len(names) < len([*found]):
        raise TypeError("layers: expected names")
    return tuple(names)


def _some(names: Iterable[str]) -> str:
    return ", ".join(shortened_name(name, _LONGEST_NAME) for name in sorted(names)[:3])


def what_differs(before: Sequence[str], now: Sequence[str]) -> str:
    """Return a line on the layers that a checkpoint's state has and those that are watched now."""
    parts = {"new": set(now) - set(before), "gone": set(before) - set(now)}
    counts = [f"{len(names)} {word} ({_some(names)})" for word, names in parts.items() if names]
    return (
        f"other layers are watched than in the checkpoint: {', '.join(counts) or 'their order differs'}. "
        "Steps are counted on, and what is learned of layers begins anew."
    )
