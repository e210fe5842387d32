"""What a random training program is made of, how it is drawn, and how it is shrunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from benchmarks.endurance.figure import draws_of
from benchmarks.endurance.programs.networks import NETWORKS
from benchmarks.endurance.programs.own_state import OWN_STATE

__all__ = ["Program", "drawn", "shrunk"]

OPTIMIZERS = ("sgd", "momentum", "adam", "adamw foreach", "adamw fused", "amsgrad", "rmsprop", "adagrad", "adadelta",
              "nadam", "radam", "rprop", "asgd", "adamax", "lbfgs", "two", "groups", "own")  # fmt: skip

PARTS: dict[str, tuple[tuple[str, ...], tuple[float, ...]]] = {
    "network": (tuple(NETWORKS), (1.0,)),
    "own": (tuple(OWN_STATE), (0.6, 0.3, 0.1)),
    "around": (("checkpoint", "reentrant checkpoint", "sequential", "wrapper", "scripted", "functional"), (0.4,)),
    "optimizer": (OPTIMIZERS, (1.0,)),
    "schedule": (("step", "one cycle", "cosine", "plateau", "warm-up"), (0.4,)),
    "zero": (("after", "keep", "never", "by the module"), (0.6,)),
    "loop": (
        ("accumulate", "autocast", "scaler", "retain", "penalty", "several", "closure", "hand", "thread", "anomaly",
         "clip by hand", "checks itself", "checks itself.", "checks itself.."),
        (0.8, 0.5, 0.2),
    ),
    "aside": (
        ("evaluate", "inference", "copy", "average", "reload", "save", "freeze", "new group", "clamp", "collect",
         "forward twice", "draws"),
        (0.6, 0.3, 0.1),
    ),
    "hook": (
        ("before forward", "after forward", "backward", "before backward", "gradient", "accumulated", "before step",
         "after step", "every forward", "changes gradients", "changes outputs"),
        (0.5, 0.3, 0.1),
    ),
    "sick": (
        ("nan input", "inf input", "nan target", "log of zero", "root of zero", "explode", "nan weight", "inf loss",
         "zero input", "overflow"),
        (0.7, 0.1),
    ),
    "setting": (
        ("log_dir", "trace", "black box", "include", "exclude", "every step", "seldom", "histograms", "layer scalars",
         "short history", "sinks", "on_finding", "no optimizer", "loss not found", "observe", "by name", "scaler known",
         "skip", "clip", "clip.", "rewind", "late", "twice", "state", "reads"),
        (0.9, 0.7, 0.5, 0.3),
    ),
}  # fmt: skip
"""Kind of part → the parts, and how probable it is to draw a first, a second, a third."""

COMPILED = 0.02  # of all programs: to compile takes seconds


@dataclass(frozen=True)
class Program:
    """A random training program.

    Attributes:
        seed: of what it draws itself.
        parts: what it is made of, ``kind:name``.
    """

    seed: int
    parts: frozenset[str]

    def __contains__(self, part: str) -> bool:
        return part in self.parts

    def __str__(self) -> str:
        return f"{self.seed}|{'|'.join(sorted(self.parts))}"

    @classmethod
    def of(cls, text: str) -> Program:
        """Return the program that was printed as ``text``."""
        seed, *parts = text.split("|")
        return cls(int(seed), frozenset(parts))

    def names(self, kind: str) -> list[str]:
        """Return the names of its parts of a kind."""
        return sorted(part.partition(":")[2] for part in self.parts if part.startswith(f"{kind}:"))

    def name(self, kind: str, otherwise: str) -> str:
        """Return the name of its part of a kind."""
        return next(iter(self.names(kind)), otherwise)

    @property
    def is_compared_with_torchs_clipping(self) -> bool:
        """Return whether it is run bare with ``torch.nn.utils.clip_grad_norm_``."""
        return not {"setting:clip", "setting:clip."}.isdisjoint(self.parts)


def drawn(seed: int, number: int) -> Program:
    """Return the program of this number."""
    draws = draws_of(seed, number)
    parts: set[str] = set()
    for kind, (names, chances) in PARTS.items():
        count = 0
        while count < len(chances) and draws.random() < chances[count]:
            count += 1
        parts.update(f"{kind}:{name}" for name in draws.sample(names, count))
    if draws.random() < COMPILED:
        parts.add(draws.choice(["compile:eager", "compile:aot_eager"]))
    return Program(draws.randrange(2**31), frozenset(parts) - _at_odds(parts))


def _at_odds(parts: set[str]) -> set[str]:
    """Return those parts that make two programs different by what was asked for, or neither of them run."""
    left_out: set[str] = set()
    acts = parts & {"setting:clip", "setting:clip.", "setting:rewind", "setting:skip"}
    if acts and any(part.startswith("sick:") for part in parts):  # then it acts on the training, as it was asked to
        left_out |= acts
    if (acts and "optimizer:two" in parts) or "loop:closure" in parts or "optimizer:lbfgs" in parts:
        left_out |= acts
    if len(acts) > 1:
        left_out |= acts - {min(acts)}
    if acts & {"setting:clip", "setting:clip."}:  # torch clips what watching was told to leave out, too
        left_out |= parts & {"setting:include", "setting:exclude", "hook:before step", "loop:clip by hand"}
        left_out |= parts & {"network:half", "network:sparse", "setting:late", "setting:twice"}
    if "around:scripted" in parts:
        left_out.add("loop:autocast")  # its graphs are optimised while they run: two bare runs differ
    if "network:weight norm" in parts:  # torch scripts no parametrization
        left_out |= parts & {"around:scripted"}
    if "optimizer:two" in parts:  # one of them may own nothing of what is watched, which is refused
        left_out |= parts & {"setting:include", "setting:exclude"}
    return left_out


def shrunk(program: Program, fails: Callable[[Program], bool]) -> Program:
    """Return a smallest part of ``program`` that still fails: no part of it can be left out."""
    for smaller in _smaller(program):
        if fails(smaller):
            return shrunk(smaller, fails)
    return program


def _smaller(program: Program) -> Iterator[Program]:
    for part in sorted(program.parts):
        yield replace(program, parts=program.parts - {part})
