"""Tell whether this process runs the cells of a notebook."""

from __future__ import annotations

import sys

__all__ = ["is_kernel"]


def is_kernel() -> bool:
    """Return True in Jupyter's kernel, and False where ipykernel is only imported: Jupyter's clients do that, too."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")  # the shell of a terminal has none
