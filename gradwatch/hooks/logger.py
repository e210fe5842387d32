"""The logger ``gradwatch``: it never throws, and of several ranks one speaks.

Its handlers, filters and streams are the user's, and may be broken.
"""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

from gradwatch.ranks.process import is_first_rank

__all__ = ["logger"]


if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter  # takes no argument before Python 3.11


class _QuietLogger(_Adapter):
    """The logger of that name, whose lines are lost where they cannot be written.

    It is called from within ``optimizer.step()``: a closed stderr would throw there. Ranks other than the first would
    say the same once more: their lines are debug lines.
    """

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        try:
            speaks = is_first_rank()
        except Exception:  # said twice is better than not said
            speaks = True
        with contextlib.suppress(Exception):
            super().log(level if speaks else logging.DEBUG, msg, *args, **kwargs)


logger = _QuietLogger(logging.getLogger("gradwatch"), {})
