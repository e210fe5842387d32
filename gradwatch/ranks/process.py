"""Tell what a launcher says of this process: does it write for all ranks, and was it started again?

Rank 0 alone writes files and lines: several ranks would leave several runs, and say everything several times. Nothing
here loads torch.
"""

from __future__ import annotations

import hashlib
import os
import sys

__all__ = ["elastic_run", "is_first_rank", "is_restarted"]

_LETTERS = 12  # 48 bits: no two runs of one directory have the same by chance


def is_first_rank() -> bool:
    """Return True in the process that writes: the only one, or rank 0 of its process group.

    Before a group is made, and after it was destroyed, the rank is the one that ``torchrun`` has given.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        return bool(distributed.get_rank() == 0)
    return os.environ.get("RANK", "0") == "0"


def elastic_run() -> str:
    """Return letters that tell runs of ``torchrun`` apart, for the name of a file; "" without one.

    They come from the name of the run, which somebody may have chosen that is not to be read in every file.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID", "")
    return hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:_LETTERS] if name else ""


def is_restarted() -> bool:
    """Return True if ``torchrun`` has started this process again after a rank had died."""
    return os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") not in ("", "0")
