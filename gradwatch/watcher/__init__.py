"""Join the other rooms: attach to a model, keep the order and the cadence of its steps.

Enters: a model and its optimizers. Leaves: findings, a history, files. Does no arithmetic.
"""

from gradwatch.watcher.attach import watch, watch_tensors
from gradwatch.watcher.watcher import Watcher, watcher_of

__all__ = ["Watcher", "watch", "watch_tensors", "watcher_of"]
