"""Calls back once a module was imported, so that whoever waits for it need not import it first.

Enters: a module's name. Leaves: one call, after its import. What a program sets up before it imports that module
(``OMP_NUM_THREADS``, ``CUDA_VISIBLE_DEVICES``) is set up in time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

__all__ = ["after_import"]


def after_import(name: str, then: Callable[[], None]) -> Callable[[], None]:
    """Has ``then`` called once ``name`` was imported; at once where it already is.

    Returns:
        What stops waiting.
    """
    if name in sys.modules:
        then()
        return lambda: None
    finder = _Finder(name, then)
    sys.meta_path.insert(0, finder)
    return finder.stop


class _Finder:
    """Finds nothing itself: asks those behind it, and follows the loader of what they found through one import."""

    def __init__(self, name: str, then: Callable[[], None]) -> None:
        self._name, self._then = name, then

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self._name:
            return None
        self.stop()
        spec = find_spec(name)
        if spec is not None and spec.loader is not None:
            self._follow(spec)
        return spec

    def stop(self) -> None:
        if self in sys.meta_path:
            sys.meta_path.remove(self)

    def _follow(self, spec: ModuleSpec) -> None:
        loader = spec.loader
        assert loader is not None
        load = loader.exec_module

        def load_and_tell(module: ModuleType) -> None:
            vars(loader).pop("exec_module", None)  # two may wait for one module
            load(module)
            self._then()

        loader.exec_module = load_and_tell  # type: ignore[method-assign]
