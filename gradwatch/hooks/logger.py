"""The logger ``gradwatch``, which never throws: its handlers, filters and streams are the user's, and may be broken."""

from __future__ import annotations

import contextlib
import logging
from typing import TYPE_CHECKING, Any

__all__ = ["logger"]


if TYPE_CHECKING:
    _Adapter = logging.LoggerAdapter[logging.Logger]
else:
    _Adapter = logging.LoggerAdapter  # takes no argument before Python 3.11


class _QuietLogger(_Adapter):
    """The logger of that name, whose lines are lost where they cannot be written.

    It is called from within ``optimizer.step()``: a closed stderr would throw there.
    """

    def log(self, level: int, msg: object, *args: Any, **kwargs: Any) -> None:
        with contextlib.suppress(Exception):
            super().log(level, msg, *args, **kwargs)


logger = _QuietLogger(logging.getLogger("gradwatch"), {})
