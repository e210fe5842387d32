"""Gymnasium under the name of its predecessor ``gym``, whose last releases have the same interface."""

from __future__ import annotations

import sys

from external_adapters.imports import after_import


def install() -> None:
    """Put gymnasium in the place of ``gym``."""
    after_import("numpy", lambda numpy: setattr(numpy, "bool8", numpy.bool_))
    import gymnasium

    sys.modules["gym"] = gymnasium
    sys.modules["gym.spaces"] = gymnasium.spaces
    sys.modules["gym.wrappers"] = gymnasium.wrappers
