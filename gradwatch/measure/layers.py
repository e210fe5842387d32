"""Make the table of watched tensors of a model: for each its name, the type of its module, and its depth."""

from __future__ import annotations

import difflib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from gradwatch import _torch
from gradwatch.fork_safety import lazy_property

__all__ = [
    "Layers",
    "Selection",
    "has_children",
    "leaf_modules",
    "of_model",
    "of_tensors",
    "parameters_by_name",
    "submodules",
]

D = TypeVar("D", bound=np.generic)

Selection = str | Sequence[str] | Callable[[str, Tensor], bool]
"""Globs over names, or ``callable(name, parameter)``."""


@dataclass
class Layers:
    """The table of P watched tensors, in order of registration.

    Attributes:
        names: (P,) unique names that any file can hold; a tied tensor has its first.
        tensors: (P,) the tensors themselves.
        owners: (P,) type name of the module that holds each, ``""`` for a bare tensor.
        depth: (P,) int, position of each from input to output: order of registration, until a backward pass was seen.
            ``sort`` replaces the array and never writes into it, so a report may keep the one that it was given.
        after: (P, P) bool, whether the second tensor lies after the first on a path from input to output, so that the
            gradient of the first passes through the operation of the second; None until a graph was seen.
        is_placed: (P,) bool, whether a graph has led to the tensor, so that ``after`` knows all about it.
        is_weight: (P,) bool, tensors of two or more dimensions that are not empty: those whose gradients can be
            compared along depth.
        size: (P,) int, number of entries (0 while a lazy module awaits its first forward).
        ordinary_norm: (P,) the norm that a weight of each shape has where it keeps the size of a signal:
            √max(rows, columns). Its entries then have a standard deviation of 1/√min(rows, columns). Usual
            initialisations lie below that, by up to √3, or by the square root of rows ÷ columns. It is 1 for tensors
            that are no weights.
        module_types: names of all module types in the model, for advice.
        followed_by: (P,) type names of the modules without parameters that were registered after the module of each
            tensor and before the next module with parameters: as a rule, the activation function after a layer.
        modules: (P,) the module that holds each tensor, None for a bare one; empty for a table without a model.
    """

    names: tuple[str, ...]
    tensors: list[Tensor]
    owners: tuple[str, ...]
    module_types: frozenset[str] = frozenset()
    followed_by: tuple[frozenset[str], ...] = ()
    modules: tuple[nn.Module | None, ...] = ()
    depth: NDArray[np.int64] = field(init=False)
    after: NDArray[np.bool_] | None = field(init=False, default=None)
    is_placed: NDArray[np.bool_] | None = field(init=False, default=None)

    def __post_init__(self) -> None:
        given, self.names = self.names, _encodable(self.names)
        self._column_of_name = {name: column for column, name in enumerate(given)}
        self.depth = _read_only(np.arange(len(self.names)))
        self._known: tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.float64]] | None = None
        self._order: NDArray[np.int64] | None = None
        self._column = {id(tensor): column for column, tensor in enumerate(self.tensors)}

    def __len__(self) -> int:
        return len(self.names)

    def column_of_name(self, name: str) -> int | None:
        """Return the column of the tensor that the user has given this name; None for another name."""
        return self._column_of_name.get(name)

    @property
    def is_weight(self) -> NDArray[np.bool_]:
        return self._dimensions()[0]

    @property
    def size(self) -> NDArray[np.int64]:
        return self._dimensions()[1]

    @property
    def order(self) -> NDArray[np.int64]:
        """(P,) int, the columns from input to output."""
        if self._order is None:
            self._order = np.argsort(self.depth)
        return self._order

    def sort(self, columns: Sequence[int]) -> None:
        """Put ``columns`` into this order; together they keep the places that they hold among all."""
        depth = self.depth.copy()
        depth[columns] = np.sort(depth[columns])
        self.depth = _read_only(depth)
        self._order = None

    def connect(self, after: NDArray[np.bool_], is_placed: NDArray[np.bool_]) -> None:
        """Take the paths of the model, as far as graphs have shown them."""
        self.after, self.is_placed = _read_only(after), _read_only(is_placed)

    @property
    def ordinary_norm(self) -> NDArray[np.float64]:
        return self._dimensions()[2]

    def _dimensions(self) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.float64]]:
        """Return (is_weight, size, ordinary_norm). They are kept once no lazy module waits for its shapes any more."""
        if self._known is not None:
            return self._known
        found = [_dimensions_of(tensor) for tensor in self.tensors]
        dimensions = (
            _read_only(np.array([is_weight for is_weight, _, _ in found], dtype=bool)),
            _read_only(np.array([size for _, size, _ in found], dtype=np.int64)),
            _read_only(np.array([norm for _, _, norm in found], dtype=np.float64)),
        )
        if not any(map(is_lazy, self.tensors)):
            self._known = dimensions
        return dimensions

    @lazy_property
    def resolution(self) -> NDArray[np.float64]:
        """(P,) half of the spacing of each tensor's number format at 1: a smaller share of an entry is rounded away.

        It is 0 for whole numbers (Keras keeps its seeds as such parameters), which never have a gradient.
        """
        return _read_only(np.array([_resolution_of(tensor.dtype) for tensor in self.tensors], dtype=np.float64))

    def format_of(self, column: int) -> str:
        """Return the name of the number format of a column: ``"bfloat16"``."""
        return str(self.tensors[column].dtype).removeprefix("torch.")

    def column(self, tensor: Tensor) -> int | None:
        """Return the column of ``tensor``, None where it is not watched."""
        return self._column.get(id(tensor))

    def release(self) -> None:
        """Hold the model no longer: each tensor is replaced by one of its shape and number format without entries."""
        self.tensors[:] = map(_without_entries, self.tensors)  # in place: others hold this list
        self.modules = ()
        self._column.clear()


def _dimensions_of(tensor: Tensor) -> tuple[bool, int, float]:
    """Return whether a tensor is a weight, its number of entries, and the ordinary norm of such a weight."""
    if is_lazy(tensor):
        return False, 0, 1.0
    if tensor.ndim < 2 or tensor.numel() == 0:
        return False, tensor.numel(), 1.0
    rows, *columns = tensor.shape
    return True, tensor.numel(), math.sqrt(max(rows, math.prod(columns)))


def _without_entries(tensor: Tensor) -> Tensor:
    shape = (0,) if is_lazy(tensor) else tensor.shape
    return torch.empty(shape, dtype=tensor.dtype, device="meta", requires_grad=tensor.requires_grad)


def _resolution_of(dtype: torch.dtype) -> float:
    return torch.finfo(dtype).eps / 2 if dtype.is_floating_point or dtype.is_complex else 0.0


def of_model(
    model: nn.Module | Mapping[str, nn.Module],
    include: Selection | None = None,
    exclude: Selection | None = None,
) -> Layers:
    """Return the table of a model, or of ``{name: model}``. With several models every name begins with its model's.

    Wrappers (``DistributedDataParallel``, FSDP1, Fabric, ``torch.compile``) leave no trace in the names.

    Raises:
        TypeError: where ``model`` is no module and no mapping to modules.
        ValueError: where no parameter is left to watch; with near misses for ``include``.
    """
    models = {"": model} if isinstance(model, nn.Module) else model
    if not isinstance(models, Mapping) or not all(isinstance(each, nn.Module) for each in models.values()):
        raise TypeError(f"model: expected an nn.Module or {{name: nn.Module}}, found {_kind_of(model)}.")
    rows = _rows_of(models)
    if not any(row.tensor.requires_grad for row in rows):
        raise ValueError(
            "model: expected at least one parameter that requires a gradient, found none. "
            "Call watch() after unfreezing the layers to train."
        )
    kinds = {type(module).__name__ for prefix, root in models.items() for _, module in submodules(root, prefix)}
    return _table_of(_selected(rows, include, exclude), frozenset(kinds))


def of_tensors(
    tensors: Mapping[str, Tensor], include: Selection | None = None, exclude: Selection | None = None
) -> Layers:
    """Return the table of bare tensors ``{name: tensor}``.

    Raises:
        TypeError: where a value is no tensor.
        ValueError: where nothing is left to watch.
    """
    if not isinstance(tensors, Mapping) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise TypeError(f"tensors: expected {{name: torch.Tensor}}, found {_kind_of(tensors)}.")
    if not tensors:
        raise ValueError("tensors: expected {name: torch.Tensor}, found an empty mapping. Nothing would be watched.")
    rows = [_Row(name, tensor, "", set()) for name, tensor in tensors.items()]
    return _table_of(_selected(rows, include, exclude), frozenset())


def parameters_by_name(models: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return {name in the table: the tensor that a model holds by that name now}, of all parameters."""
    return {row.name: row.tensor for row in _rows_of(models)}


def submodules(root: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield ``root`` and every module below it once, with its name. A wrapper is replaced by what it wraps."""
    seen: set[int] = set()

    def walk(path: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        wrapped = _unwrapped(module)
        if wrapped is not module:
            yield from walk(path, wrapped)
        elif id(module) not in seen:
            seen.add(id(module))
            yield path, module
            for name, child in _torch.own_modules(module).items():
                if child is not None:
                    yield from walk(_join(path, name), child)

    yield from walk(prefix, root)


def has_children(module: nn.Module) -> bool:
    """Return whether ``module`` holds others; a child may refuse to be asked for its truth (TensorDict)."""
    return next(module.children(), None) is not None


def leaf_modules(root: nn.Module, prefix: str = "") -> list[tuple[str, bool]]:
    """Return (name, whether it is one of ``torch.nn``) of the modules without children, in order of registration."""
    leaves = (pair for pair in submodules(root, prefix) if not has_children(pair[1]))
    return [(name, type(module).__module__.startswith("torch.nn.")) for name, module in leaves]


def _unwrapped(module: nn.Module) -> nn.Module:
    if isinstance(module, nn.parallel.DistributedDataParallel | nn.DataParallel):
        return module.module
    inner = _torch.compiled_part_of(module)
    inner = _torch.wrapped_part_of(module) if inner is None else inner
    return module if inner is None else inner


def _encodable(names: Sequence[str]) -> tuple[str, ...]:
    """Return ``names`` as every file and terminal takes them: lone surrogates are escaped, and no two become alike."""
    made = [name.encode("utf-8", "backslashreplace").decode() for name in names]
    taken = {name for name, given in zip(made, names, strict=True) if name == given}
    for column, given in enumerate(names):
        if made[column] != given:
            while made[column] in taken:
                made[column] += "'"
            taken.add(made[column])
    return tuple(made)


def _read_only(array: NDArray[D]) -> NDArray[D]:
    array.flags.writeable = False
    return array


class _Row(NamedTuple):
    """One tensor of the table, see ``Layers``; ``followed_by`` grows until the next module with parameters."""

    name: str
    tensor: Tensor
    owner: str
    followed_by: set[str]
    module: nn.Module | None = None


def _rows_of(models: Mapping[str, nn.Module]) -> list[_Row]:
    """Return a row for each parameter of ``models``, in order of registration."""
    found: dict[int, _Row] = {}
    for prefix, root in models.items():
        following: set[str] = set()
        for path, module in submodules(root, prefix):
            kind = type(module).__name__
            owned = {name: each for name, each in _torch.own_parameters(module).items() if each is not None}
            if owned and "Norm" not in kind:  # a function after a normalisation follows the layer before it, too
                following = set()
            elif not owned and not _torch.own_modules(module):
                following.add(kind)
            for name, parameter in owned.items():
                found.setdefault(id(parameter), _Row(_join(path, name), parameter, kind, following, module))
    return list(found.values())


def _selected(rows: list[_Row], include: Selection | None, exclude: Selection | None) -> list[_Row]:
    kept = rows
    if include is not None:
        kept = [row for row in kept if _matches(include, row)]
        if not kept:
            names = [row.name for row in rows]
            raise ValueError(f"include={include!r} matches none of the {len(names)} parameters.{_near(include, names)}")
    if exclude is not None:
        kept = [row for row in kept if not _matches(exclude, row)]
        if not kept:
            raise ValueError(f"nothing to watch: exclude={exclude!r} leaves none of the {len(rows)} tensors found.")
    return kept


def _table_of(rows: list[_Row], kinds: frozenset[str]) -> Layers:
    for row in rows:
        if row.tensor.device.type == "meta" and not is_lazy(row.tensor):
            raise ValueError(
                f"model: {row.name!r} is on the meta device and has no values. Materialise it before watch()."
            )
    return Layers(
        names=tuple(row.name for row in rows),
        tensors=[row.tensor for row in rows],
        owners=tuple(row.owner for row in rows),
        module_types=kinds,
        followed_by=tuple(frozenset(row.followed_by) for row in rows),
        modules=tuple(row.module for row in rows),
    )


def _matches(selection: Selection, row: _Row) -> bool:
    if callable(selection):
        return bool(selection(row.name, row.tensor))
    return any(fnmatchcase(row.name, glob) for glob in _globs(selection))


def _near(selection: Selection, names: list[str]) -> str:
    """Return a sentence with the names that are nearest to a selection of globs."""
    if callable(selection):
        return ""
    near: list[str] = []
    for glob in _globs(selection):
        near += difflib.get_close_matches(glob, names, n=3, cutoff=0.4)
    return f" Did you mean {', '.join(map(repr, near or names[:3]))}?"


def _globs(selection: str | Sequence[str]) -> Sequence[str]:
    return [selection] if isinstance(selection, str) else selection


def _kind_of(thing: object) -> str:
    """Return what ``thing`` is, for an error: its type, and the types of a mapping's values."""
    if not isinstance(thing, Mapping):
        return f"{type(thing).__name__}"
    kinds = sorted({type(value).__name__ for value in thing.values()})
    return f"a {type(thing).__name__} with values of type {', '.join(kinds)}"


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name
