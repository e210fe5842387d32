"""Copy weights, buffers and optimizers to the CPU, and put them back bit for bit.

Everything is put back in place, into the very tensors that the run uses: hooks, compiled code and CUDA graphs hold on
to those. Of sharded weights each rank keeps and restores the part that it holds. ``Optimizer.load_state_dict`` is not
used: it casts what the optimizer keeps to the dtype of the weights.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gradwatch import _torch
from gradwatch.ranks.shards import local_part

__all__ = ["OptimizerState", "TrainingState", "bytes_in", "bytes_of_training", "training_state"]

_PARAMETERS = "params"  # the key under which a group of an optimizer lists them


@dataclass(frozen=True)
class OptimizerState:
    """The options of one optimizer, and everything that it keeps between updates.

    Attributes:
        kind: its class.
        groups: the options of each group, without its parameters.
        entries: {position of a parameter over all groups: what is kept for it}; those without anything are absent.
    """

    kind: str
    groups: Sequence[Mapping[str, Any]]
    entries: Mapping[int, Mapping[Any, Any]]


@dataclass(frozen=True)
class TrainingState:
    """Weights, buffers and optimizers at one moment, on the CPU.

    Attributes:
        weights, buffers: {full name: entries that this rank holds}.
        optimizers: in the order given.
    """

    weights: Mapping[str, Tensor]
    buffers: Mapping[str, Tensor]
    optimizers: Sequence[OptimizerState]

    @torch.no_grad()
    def restore_(self, models: Mapping[str, nn.Module], optimizers: Sequence[Optimizer] = ()) -> None:
        """Put everything back, in place.

        Args:
            models: {name: module}, as given to ``training_state``.
            optimizers: the same, in the same order; fewer are allowed where the rest is not to be restored.

        Raises:
            ValueError: before anything has changed, where names, shapes or numbers of parameters differ.
        """
        weights = dict(_weights_of(models))
        self._refuse_others(weights, optimizers)
        for name, saved in self.weights.items():
            _copy_(local_part(weights[name]), saved)
        for name, (module, key, buffer) in _buffers_of(models).items():
            if name in self.buffers:
                _torch.own_buffers(module)[key] = _put_back(buffer, self.buffers[name], _Homes())
        for optimizer, saved_state in zip(optimizers, self.optimizers, strict=False):
            _restore_optimizer_(optimizer, saved_state)

    def as_plain(self) -> dict[str, Any]:
        """Return the state as numbers, strings and tensors, which ``torch.load(weights_only=True)`` accepts."""
        return {
            "weights": dict(self.weights),
            "buffers": dict(self.buffers),
            "optimizers": [
                {"kind": each.kind, "groups": list(each.groups), "entries": dict(each.entries)}
                for each in self.optimizers
            ],
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> TrainingState:
        """Return the state that ``as_plain`` was called on.

        Raises:
            KeyError, TypeError: for something else.
        """
        optimizers = [OptimizerState(each["kind"], each["groups"], each["entries"]) for each in plain["optimizers"]]
        return cls(dict(plain["weights"]), dict(plain["buffers"]), optimizers)

    def _refuse_others(self, weights: Mapping[str, Tensor], optimizers: Sequence[Optimizer]) -> None:
        missing, unexpected = sorted(self.weights.keys() - weights), sorted(weights.keys() - self.weights)
        if missing or unexpected:
            raise ValueError(
                f"the model has other parameters than the saved state: missing {missing[:3]}, "
                f"not in the state {unexpected[:3]}. Build it as the run did."
            )
        for name, saved in self.weights.items():
            found = tuple(local_part(weights[name]).shape)
            if found != tuple(saved.shape):
                raise ValueError(f"{name}: the saved state has shape {tuple(saved.shape)}, the model has {found}.")
        if len(optimizers) > len(self.optimizers):
            raise ValueError(
                f"the saved state is of {len(self.optimizers)} optimizers, but {len(optimizers)} were given."
            )
        for optimizer, state in zip(optimizers, self.optimizers, strict=False):
            _refuse_other_optimizer(optimizer, state)


@torch.no_grad()
def training_state(models: Mapping[str, nn.Module], optimizers: Sequence[Optimizer] = ()) -> TrainingState:
    """Copy weights, buffers and optimizers to the CPU. Waits for the device.

    Args:
        models: {name: module}; names of parameters begin with the name, unless that is empty.
        optimizers: those whose state counts.
    """
    return TrainingState(
        weights={name: _copied(weight) for name, weight in _weights_of(models)},
        buffers={name: _copied(buffer) for name, (_, _, buffer) in _buffers_of(models).items() if buffer is not None},
        optimizers=[_state_of(optimizer) for optimizer in optimizers],
    )


def bytes_of_training(models: Mapping[str, nn.Module], optimizers: Sequence[Optimizer] = ()) -> int:
    """Return how many bytes ``training_state`` copies."""
    buffers = [buffer for _, _, buffer in _buffers_of(models).values()]
    return bytes_in([[weight for _, weight in _weights_of(models)], buffers, [each.state for each in optimizers]])


def bytes_in(tree: Any) -> int:
    """Return the bytes of all tensors in nested dicts, lists and tuples: of sharded ones those that are here."""
    if isinstance(tree, Tensor):
        part = local_part(tree.detach())
        return part.numel() * part.element_size()
    if isinstance(tree, Mapping):
        return sum(map(bytes_in, tree.values()))
    return sum(map(bytes_in, tree)) if isinstance(tree, list | tuple) else 0


def _weights_of(models: Mapping[str, nn.Module]) -> Iterator[tuple[str, Tensor]]:
    for root, model in models.items():
        for name, weight in model.named_parameters():
            yield f"{root}.{name}".lstrip("."), weight


def _buffers_of(models: Mapping[str, nn.Module]) -> dict[str, tuple[nn.Module, str, Tensor | None]]:
    """Return {full name: (module that holds the buffer, its name there, the buffer)}; None is a buffer that is unset.

    Shared buffers have each of their names, so that all their holders get one that was exchanged.
    """
    found = {}
    for root, model in models.items():
        for path, module in model.named_modules(remove_duplicate=False):
            for key, buffer in _torch.own_buffers(module).items():
                found[f"{root}.{path}.{key}".lstrip(".").replace("..", ".")] = module, key, buffer
    return found


def _copied(value: Any) -> Any:
    """Return a copy of a tensor on the CPU, of a container with copies of what it holds, or of anything else."""
    if isinstance(value, Tensor):
        part = local_part(value.detach())
        return part.to("cpu", copy=True)
    if isinstance(value, dict):
        return {name: _copied(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(entry) for entry in value)  # of a named tuple: none of torch's optimizers has one
    return copy.deepcopy(value)


def _state_of(optimizer: Optimizer) -> OptimizerState:
    groups = [
        {name: _copied(value) for name, value in group.items() if name != _PARAMETERS}
        for group in optimizer.param_groups
    ]
    places = enumerate(_parameters_of(optimizer))
    entries = {place: _copied(dict(optimizer.state[each])) for place, each in places if each in optimizer.state}
    return OptimizerState(type(optimizer).__name__, groups, entries)


def _parameters_of(optimizer: Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group[_PARAMETERS]]


def _refuse_other_optimizer(optimizer: Optimizer, state: OptimizerState) -> None:
    """
    Raises:
        ValueError: where the state cannot be that of ``optimizer``.
    """
    found = type(optimizer).__name__, len(optimizer.param_groups)
    expected = state.kind, len(state.groups)
    if found != expected:
        raise ValueError(
            f"the saved state is of {expected[0]} with {expected[1]} groups, the optimizer is {found[0]} with "
            f"{found[1]}."
        )


def _restore_optimizer_(optimizer: Optimizer, saved: OptimizerState) -> None:
    for group, options in zip(optimizer.param_groups, saved.groups, strict=True):
        for name, value in options.items():
            group[name] = _put_back(group.get(name), value, _Homes())
    owners = [(each, group) for group in optimizer.param_groups for each in group[_PARAMETERS]]
    for place, (parameter, group) in enumerate(owners):
        if place not in saved.entries:
            optimizer.state.pop(parameter, None)
            continue
        now = optimizer.state.get(parameter, {})
        optimizer.state[parameter] = _put_back(now, dict(saved.entries[place]), _homes_of(parameter, group))


class _Homes(NamedTuple):
    """The devices on which an optimizer makes what it keeps.

    Attributes:
        tensors: of tensors like the parameter.
        scalars: of those without dimensions, which count steps.
    """

    tensors: torch.device = torch.device("cpu")
    scalars: torch.device = torch.device("cpu")


def _homes_of(parameter: Tensor, group: Mapping[str, Any]) -> _Homes:
    counts_there = group.get("fused") or group.get("capturable")
    return _Homes(parameter.device, parameter.device if counts_there else torch.device("cpu"))


def _put_back(now: Any, saved: Any, homes: _Homes) -> Any:
    """Return ``saved`` where ``now`` was: the very tensor ``now``, changed in place, wherever that is possible.

    Args:
        now: what is there.
        saved: what was there.
        homes: where a tensor is made that is not there.
    """
    if isinstance(saved, Tensor):
        return _put_tensor_back(now, saved, homes)
    if isinstance(saved, dict):
        known = now if isinstance(now, dict) else {}
        return {name: _put_back(known.get(name), value, homes) for name, value in saved.items()}
    if isinstance(saved, list | tuple):
        parts = list(now) if isinstance(now, list | tuple) and len(now) == len(saved) else [None] * len(saved)
        return type(saved)(_put_back(part, value, homes) for part, value in zip(parts, saved, strict=True))
    return copy.deepcopy(saved)


def _put_tensor_back(now: Any, saved: Tensor, homes: _Homes) -> Tensor:
    if isinstance(now, Tensor) and _can_hold(local_part(now), saved):
        _copy_(local_part(now), saved)
        return now
    home = now.device if isinstance(now, Tensor) else homes.tensors if saved.dim() else homes.scalars
    return saved.to(home, copy=True)


def _can_hold(tensor: Tensor, saved: Tensor) -> bool:
    """Return whether ``saved`` can be written into ``tensor``: it has as many entries in memory as it shows."""
    overlaps = tensor.layout is torch.strided and 0 in tensor.stride() and tensor.numel() > 1
    return tensor.shape == saved.shape and tensor.dtype == saved.dtype and not overlaps


def _copy_(tensor: Tensor, saved: Tensor) -> None:
    tensor.detach().copy_(saved)
