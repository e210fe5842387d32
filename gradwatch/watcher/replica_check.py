"""Find replicas of a model that drift apart, which look healthy each by itself.

``DistributedDataParallel`` averages the gradients of the parameters that it was made with. A parameter that was
replaced or added afterwards gets the gradients of its own rank alone; one that each rank has drawn for itself begins
elsewhere. Every replica then trains, its loss falls, and nothing is wrong with any figure.

What is measured: at a few updates a signed sum of the entries of each parameter (the even ones minus the odd ones) and
its norm. Two replicas differ where one of the two differs by more than ``TOLERANCE`` of the norm, at two comparisons in
a row. Healthy replicas make the same updates of the same averaged gradients, bit for bit on equal devices. Left out are
parameters that DDP was told to ignore, sharded ones, those that hold NaN or Inf (another finding says so), and loops
that mean their replicas to differ for a while: updates after ``no_sync()``, and local SGD.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from gradwatch import _torch
from gradwatch.findings import Advice, Finding
from gradwatch.hooks.logger import logger
from gradwatch.living_objects import living
from gradwatch.measure.host_copy import HostCopy
from gradwatch.measure.layers import Layers
from gradwatch.ranks.group import Group, current_group
from gradwatch.ranks.replicas import ReplicaBoard, members_of, stretches
from gradwatch.ranks.shards import is_distributed

__all__ = ["ReplicaCheck"]

TOLERANCE = 1e-4
"""Of the norm. Rounding on unequal devices stays far below; one update of a gradient of its own goes beyond it."""

FIRST_CHECKS = (0, 1, 2, 4, 5, 8, 9, 16, 17, 32, 33, 64, 65)
EVERY = 100
"""Updates between two pairs of comparisons later on: each reads all weights once, a small part of one update."""

PATIENCE = 3
"""Updates for which the figures of the first rank are looked for: on a GPU it leaves them one update later."""

ADVICE = Advice(
    "same-replicas",
    "make DistributedDataParallel after the last change to the model's parameters, and let no rank draw or change "
    "weights by itself (torch.manual_seed before the model is made; nothing under `if rank == …`)",
)


class _Replicated(NamedTuple):
    """The parameters of this rank's replicas."""

    names: list[str]
    tensors: list[Tensor]


class _Sent(NamedTuple):
    """Figures on their way to the host."""

    update: int
    step: int
    names: list[str]
    copy: HostCopy

    def figures(self) -> NDArray[np.float32]:
        """Return (G, 2), a row for each stretch of parameters."""
        return _by_stretch(self.copy.read()[0].reshape(-1, 2))


class ReplicaCheck:
    """The comparisons of one watched model's replicas.

    Args:
        layers: the table.
        models: as watched.
        about: a name of the watcher, the same on every rank.
    """

    def __init__(self, layers: Layers, models: Mapping[str, nn.Module], about: str) -> None:
        self._layers, self._models, self._about = layers, models, about
        self._found: list[weakref.ref[DistributedDataParallel]] | None = None
        self._board: ReplicaBoard | None = None
        self._sent: deque[_Sent] = deque()
        self._suspect_since: int | None = None  # the step of the first of several differences in a row

    def release(self) -> None:
        """Hold the model no longer."""
        self._models = {}
        self._sent.clear()

    def is_due(self, update: int) -> bool:
        """Return whether ``look`` has anything to do."""
        return bool(self._sent) or _is_compared(update)

    def look(self, update: int, step: int) -> Finding | None:
        """Compare the replicas where that is due; return what is wrong. It waits for nobody.

        Args:
            update: of the first optimizer, which is about to be made.
            step: the attempted update.
        """
        found = self._judge_those_that_arrived(update)
        if _is_compared(update):
            self._send(update, step)
        return found

    def _judge_those_that_arrived(self, update: int) -> Finding | None:
        """Compare, in their order, what is on the host; what others have not left within a few updates is let go."""
        found = None
        while self._sent and self._sent[0].copy.is_ready:
            if (theirs := self._exchange(self._sent[0])) is None and update <= self._sent[0].update + PATIENCE:
                break
            sent = self._sent.popleft()
            found = found if theirs is None else self._judge(sent, theirs) or found
        return found

    def _send(self, update: int, step: int) -> None:
        """Start a comparison: what others need is left at once, and theirs are looked for before the next update."""
        board = self._board_of_equals()
        held = _Replicated([], []) if board is None else self._parameters(self.wrappers())
        if board is None or not held.tensors:
            return
        figures = _figures(held.tensors)
        self._sent.append(_Sent(update, step, held.names, HostCopy([figures.reshape(-1)], figures.device)))
        if board.is_reference:  # on the CPU it leaves its figures at once
            self._judge_those_that_arrived(update)

    def _board_of_equals(self) -> ReplicaBoard | None:
        """Return the board of the ranks whose replicas should be equal now; None where there is none."""
        group = current_group(None if self._board is None else self._board.group)
        if group is None:
            return None
        wrappers = self.wrappers()
        if not wrappers or not all(map(_should_be_equal, wrappers)):
            self._suspect_since = None
            return None
        if self._board is None or self._board.group is not group:
            self._sent.clear()
            self._board = _board_for(group, wrappers, self._about)
        return self._board

    def wrappers(self) -> list[DistributedDataParallel]:
        """Return every DDP around the watched parameters. It may have been made outside of what is watched."""
        if self._found is None:
            self._found = [weakref.ref(wrapper) for wrapper in self._find_wrappers()]
        return [wrapper for known in self._found if (wrapper := known()) is not None]

    def _find_wrappers(self) -> list[DistributedDataParallel]:
        """Search the living objects, once in a run, before its first update: it takes some milliseconds."""
        return [wrapper for wrapper in living(DistributedDataParallel) if self._is_around(wrapper)]

    def _is_around(self, wrapper: DistributedDataParallel) -> bool:
        inside = {id(module) for module in wrapper.modules()}
        holds_watched = any(self._layers.column(parameter) is not None for parameter in wrapper.parameters())
        return holds_watched or any(id(model) in inside for model in self._models.values())

    def _parameters(self, wrappers: Iterable[DistributedDataParallel]) -> _Replicated:
        found = _Replicated([], [])
        for wrapper in wrappers:
            ignored = wrapper.parameters_to_ignore
            for name, parameter in wrapper.module.named_parameters():
                if name in ignored or is_distributed(parameter) or not parameter.numel():
                    continue
                column = self._layers.column(parameter)
                found.names.append(name if column is None else self._layers.names[column])
                found.tensors.append(parameter.detach())
        return found

    def _exchange(self, sent: _Sent) -> NDArray[np.float32] | None:
        """Return the figures of the first rank, which leaves them here; None where they are not there."""
        assert self._board is not None
        try:
            if not self._board.is_reference:
                return self._board.find(sent.update)
            mine = sent.figures()
            self._board.leave(sent.update, mine)
            return mine
        except Exception as error:
            logger.debug("gradwatch: replicas were not compared at step %d (%s).", sent.step, error)
            return None

    def _judge(self, sent: _Sent, theirs: NDArray[np.float32]) -> Finding | None:
        """Compare figures with those of the first rank; two differences in a row are a finding."""
        mine = sent.figures()
        if mine.shape != theirs.shape:
            return None  # the first rank trains something else
        shares = _differences(mine, theirs)
        if not (shares > TOLERANCE).any():
            self._suspect_since = None
            return None
        if self._suspect_since is None:
            self._suspect_since = sent.step
            return None
        return self._finding(sent, self._suspect_since, shares)

    def _finding(self, sent: _Sent, since: int, shares: NDArray[np.floating]) -> Finding:
        assert self._board is not None
        rows, stretched = np.flatnonzero(shares > TOLERANCE).tolist(), stretches(len(sent.names))
        names = tuple(sent.names[column] for row in rows for column in stretched[row].tolist())
        value, ranks = float(shares[rows[0]]), (self._board.reference, self._board.group.rank)
        return Finding(
            kind="unstable",
            severity="error",
            layer=names[0],
            layers=names,
            step=since,
            raised_step=sent.step,
            last_step=sent.step,
            value=value,
            threshold=TOLERANCE,
            measured=f"{names[0]} differs between the replicas of rank {ranks[0]} and rank {ranks[1]} at step "
            f"{sent.step}, by {value:.2g} of its norm (normal: up to {TOLERANCE:g}).",
            cause=f"The replicas have drifted apart: {len(names)} of {len(sent.names)} parameters differ, since step "
            f"{since} at the latest. DistributedDataParallel averages the gradients of those parameters alone that it "
            "was made with: one that was replaced, added, drawn or changed by each rank goes a way of its own.",
            remedies=(ADVICE,),
            ranks=ranks,
            figure="its replicas differ between ranks",
        )


def _is_compared(update: int) -> bool:
    return update % EVERY < 2 or update in FIRST_CHECKS


def _should_be_equal(wrapper: DistributedDataParallel) -> bool:
    """Return whether the gradients of the coming update were averaged, so that replicas are meant to be equal."""
    return bool(wrapper.require_forward_param_sync) and not _torch.averages_weights_later(wrapper)


def _board_for(group: Group, wrappers: Sequence[DistributedDataParallel], about: str) -> ReplicaBoard | None:
    """Return the board of the ranks that share these replicas; None where no other rank does."""
    members = {members_of(each.process_group) for each in wrappers}
    ranks = members.pop() if len(members) == 1 else ()
    return ReplicaBoard(group, ranks, about) if len(ranks) > 1 else None


@torch.no_grad()
def _figures(tensors: Sequence[Tensor]) -> Tensor:
    """Return (P, 2) for each tensor: the sum of its even entries minus that of its odd ones, and its norm."""
    rows = []
    for tensor in tensors:
        flat = torch.view_as_real(tensor).reshape(-1) if tensor.is_complex() else tensor.reshape(-1)
        wide = torch.float64 if flat.dtype is torch.float64 else torch.float32
        signed = flat[::2].sum(dtype=wide) - flat[1::2].sum(dtype=wide)
        rows.append(torch.stack([signed, torch.linalg.vector_norm(flat, dtype=wide)]))
    home = rows[0].device
    return torch.stack([row.to(home, torch.float32, non_blocking=True) for row in rows])


def _by_stretch(figures: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return (G, 2) of (P, 2): sums added up, norms as the root of their squares."""
    rows = [figures[columns] for columns in stretches(len(figures))]
    together = [(row[:, 0].sum(), np.sqrt(np.square(row[:, 1]).sum())) for row in rows]
    return np.array(together, dtype=np.float32)


def _differences(mine: NDArray[np.floating], theirs: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return (G,) how far the figures lie apart, as shares of the norm; 0 where one is not finite."""
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        apart = np.abs(mine.astype(float) - theirs).max(axis=1)
        shares = apart / np.maximum(mine[:, 1], theirs[:, 1])
    return np.where(np.isfinite(shares), shares, 0.0)
