"""Keep what a Keras program trains: at its first ``fit``, write it to the file ``EXTERNAL_KEPT`` and leave.

Kept are the layers with their configurations and first weights, the optimizer, the loss and the arrays. The model then
makes a few updates by Keras, without dropout and in the order of the rows; their losses are kept, too, so that a
translation of the model can be held against Keras. Install this before ``keras_torch``, whose ``fit`` calls it.
"""

from __future__ import annotations

import inspect
import os
import pickle
from pathlib import Path
from types import ModuleType
from typing import Any

from external_adapters.imports import after_import

UPDATES = 10


def install() -> None:
    """Wait for keras."""
    after_import("keras", _change)


def _change(keras: ModuleType) -> None:
    signature = inspect.signature(keras.Model.fit)

    def keep_and_leave(self: Any, *args: Any, **keywords: Any) -> None:
        given = signature.bind(self, *args, **keywords)
        given.apply_defaults()
        kept = kept_of(keras, self, given.arguments)
        Path(os.environ["EXTERNAL_KEPT"]).write_bytes(pickle.dumps(kept))
        raise SystemExit(0)

    keras.Model.fit = keep_and_leave


def kept_of(keras: ModuleType, model: Any, given: dict[str, Any]) -> dict[str, Any]:
    """Return what is kept of ``model`` and of the arguments of its ``fit``, and train it for a few updates."""
    import numpy

    x, y = (numpy.asarray(each, dtype="float32") for each in (given["x"], given["y"]))
    x = x[:, None] if x.ndim == 1 else x
    rows = len(x) - int(len(x) * (given["validation_split"] or 0.0))  # those that Keras trains on, the first ones
    x, y = x[:rows], y[:rows]
    if not model.built:
        model.build((None, *x.shape[1:]))
    if not isinstance(model, keras.Sequential):
        return {"not_kept": "its model is no chain of layers"}
    size = given["batch_size"] or 32
    kept = {
        "layers": [_layer(layer) for layer in model.layers],
        "optimizer": (type(model.optimizer).__name__, model.optimizer.get_config()),
        "loss": _loss(model.loss),
        "x": x, "y": y, "batch_size": size, "shuffle": bool(given["shuffle"]),
    }  # fmt: skip
    return kept | {"losses": _losses(keras, model, x, y, size)}


def _layer(layer: Any) -> dict[str, Any]:
    weights = [numpy_of(weight) for weight in layer.weights]
    return {"kind": type(layer).__name__, "config": layer.get_config(), "weights": weights}


def numpy_of(variable: Any) -> Any:
    """Return a copy of a variable's value."""
    return variable.numpy().copy()


def _loss(loss: Any) -> tuple[str, bool]:
    """Return (the name of the loss, whether it takes logits)."""
    if isinstance(loss, str):
        return loss, False
    settings = loss.get_config() if hasattr(loss, "get_config") else {}
    return getattr(loss, "name", None) or loss.__name__, bool(settings.get("from_logits", False))


def _losses(keras: ModuleType, model: Any, x: Any, y: Any, size: int) -> list[float]:
    for layer in model.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    losses = []
    for number in range(UPDATES):
        begin = number * size % len(x)
        model.reset_metrics()
        batch = x[begin : begin + size], y[begin : begin + size]
        losses.append(float(model.train_on_batch(*batch, return_dict=True)["loss"]))
    return losses
