"""The GradWatch tab of TensorBoard.

It reads event files, or what TensorBoard has read of them where they are on another machine. It gives the front end in
``static/`` what that draws, and needs no torch. This file is all that TensorBoard imports when it starts: whatever else
fails, TensorBoard starts without the tab and says why.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from tensorboard.plugins.base_plugin import TBLoader

if TYPE_CHECKING:
    import argparse

__all__ = ["Loader", "is_local"]

OLDEST = (2, 16)  # the oldest TensorBoard that the tab is tested on: docs/compatibility.md

_logger = logging.getLogger("gradwatch")


class Loader(TBLoader):  # type: ignore[misc] # TensorBoard ships no types
    """The loader that the entry point group ``tensorboard_plugins`` names."""

    def fix_flags(self, flags: argparse.Namespace) -> None:
        """Have TensorBoard keep one tensor where the tab reads the files itself; else all, unless fewer were asked for.

        By default a random hundred would stay, and spikes vanish.
        """
        kept = 1 if is_local(flags.logdir) else 0  # 0 stands for all
        flags.samples_per_plugin = {"gradwatch": kept, **(flags.samples_per_plugin or {})}

    def load(self, context: Any) -> Any:
        """Return the plugin; None, and one warning, if it cannot work."""
        try:
            return _load(context)
        except Exception as error:
            _logger.warning("gradwatch: TensorBoard starts without the GradWatch tab: %r", error)
            return None


def is_local(logdir: str | None) -> bool:
    """Return whether TensorBoard was given a directory of this machine, and not an address or several directories."""
    return bool(logdir) and "://" not in str(logdir)


def _load(context: Any) -> Any:
    from tensorboard.version import VERSION

    if tuple(int(part) for part in VERSION.split(".")[:2]) < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise RuntimeError(f"expected TensorBoard {oldest} or newer, found {VERSION}. Run: pip install -U tensorboard")
    from gradwatch.tensorboard_plugin.plugin import GradWatchPlugin

    return GradWatchPlugin(context)
