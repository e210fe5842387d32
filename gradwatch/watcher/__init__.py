"""Join the other rooms: attach to a model, keep the order and the cadence of its steps.

It does no arithmetic. ``WatchedLoop`` is what integrations call, ``Watcher`` what users see of it.
"""

from gradwatch.watcher.attach import loop_of_model, loop_of_tensors, watch, watch_tensors
from gradwatch.watcher.open_loops import loop_of
from gradwatch.watcher.watched_loop import WatchedLoop
from gradwatch.watcher.watcher import Watcher

__all__ = ["WatchedLoop", "Watcher", "loop_of", "loop_of_model", "loop_of_tensors", "watch", "watch_tensors"]
