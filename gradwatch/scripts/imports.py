"""Call back once a module was imported, without importing it first.

So whatever a program sets up before it imports that module (``OMP_NUM_THREADS``, ``CUDA_VISIBLE_DEVICES``) is set up in
time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

__all__ = ["after_import"]


def after_import(name: str, then: Callable[[], None]) -> Callable[[], None]:
    """Have ``then`` called once the module ``name`` was imported; at once if it is imported already.

    Returns:
        A function that stops the waiting.
    """
    if name in sys.modules:
        then()
        return lambda: None
    finder = _Finder(name, then)
    sys.meta_path.insert(0, finder)
    return finder.stop


class _Finder:
    """A finder that finds nothing itself: it asks the others, and follows the loader that they found for one import."""

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
            vars(loader).pop("exec_module", None)  # several finders may wait for one module
            load(module)
            self._then()

        loader.exec_module = load_and_tell  # type: ignore[method-assign]
