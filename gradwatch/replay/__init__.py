"""A sick step once more, on the side: which module made its NaN or Inf, and by which operation."""

from gradwatch.replay.replay import Replay

__all__ = ["Replay"]
