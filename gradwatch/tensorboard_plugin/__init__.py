"""The GradWatch tab of TensorBoard.

Enters: event files, through TensorBoard's own readers. Leaves: what the front end in ``static/`` draws. Knows nothing
of torch, nor of the watcher. This file is all that TensorBoard imports when it starts: whatever else fails, TensorBoard
starts without the tab and says why.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from tensorboard.plugins.base_plugin import TBLoader

if TYPE_CHECKING:
    import argparse

__all__ = ["Loader"]

OLDEST = (2, 21)  # the oldest TensorBoard that starts without pkg_resources, and that the tab was tried on

_logger = logging.getLogger("gradwatch")


class Loader(TBLoader):  # type: ignore[misc] # TensorBoard ships no types
    """What the entry point group ``tensorboard_plugins`` names."""

    def fix_flags(self, flags: argparse.Namespace) -> None:
        """Keeps every step unless the user asked for fewer: by default a random hundred stay, and spikes vanish."""
        flags.samples_per_plugin = {"gradwatch": 0, **(flags.samples_per_plugin or {})}

    def load(self, context: Any) -> Any:
        """The plugin; None, and one warning, where it cannot work."""
        try:
            return _load(context)
        except Exception as error:
            _logger.warning("gradwatch: TensorBoard starts without the GradWatch tab: %r", error)
            return None


def _load(context: Any) -> Any:
    from tensorboard.version import VERSION

    if tuple(int(part) for part in VERSION.split(".")[:2]) < OLDEST:
        raise RuntimeError(f"expected TensorBoard 2.21 or newer, found {VERSION}. Run: pip install -U tensorboard")
    from gradwatch.tensorboard_plugin.plugin import GradWatchPlugin

    return GradWatchPlugin(context)
