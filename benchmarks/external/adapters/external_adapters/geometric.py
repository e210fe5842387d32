"""Stand-ins for what early releases of torch_geometric and skorch import: of it, the programs call one function."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from external_adapters.imports import after_import


def install() -> None:
    """Offer ``torch_scatter`` and its sisters, and the old name of a function of scikit-learn."""
    after_import("sklearn.utils", lambda utils: setattr(utils, "safe_indexing", utils._safe_indexing))
    for name in ("torch_scatter", "torch_sparse", "torch_cluster", "torch_spline_conv", "torch_geometric", "plyfile"):
        module = ModuleType(name)
        module.__getattr__ = _absent  # type: ignore[method-assign]
        module.__path__ = []
        sys.modules[name] = module
    sys.modules["torch_scatter"].scatter_add = scatter_add  # type: ignore[attr-defined]


def _absent(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})


def scatter_add(source: Any, index: Any, dim: int = 0, dim_size: int | None = None) -> Any:
    """Return the sums of ``source`` by ``index`` along ``dim``."""
    size = int(index.max()) + 1 if dim_size is None else dim_size
    shape = [*source.shape]
    shape[dim] = size
    return source.new_zeros(shape).index_add(dim, index, source)
