"""Keras 3 on torch for programs written for Keras 2 and for ``tensorflow.keras``.

Three things are put in place: old names of modules and arguments; a module ``tensorflow`` that holds keras and the few
functions that the programs call; and updates that pass through ``torch.optim.Optimizer.step``, as a monitor of
torch.optim sees updates. Keras computes the update itself, before and after.
"""

from __future__ import annotations

import importlib
import os
import sys
from types import ModuleType
from typing import Any

from external_adapters.imports import after_import


def install() -> None:
    """Select the backend and wait for keras; offer a module ``tensorflow``."""
    os.environ["KERAS_BACKEND"] = "torch"
    after_import("keras", _change)
    sys.meta_path.insert(0, _OldNames())
    sys.modules["tensorboard.compat.notf"] = ModuleType("notf")  # TensorBoard's own way to say: without tensorflow


class _OldNames:
    """A finder of modules under their old names: ``tensorflow…``, ``keras.layers.core``, ``keras.utils.np_utils`` …"""

    def __init__(self) -> None:
        self._prepares = False

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        from importlib.machinery import ModuleSpec

        if self._prepares:  # keras itself asks whether there is a tensorflow: there is none
            return None
        if name.partition(".")[0] in ("tensorflow", "keras") and "keras" not in sys.modules:
            self._prepare()

        old = (
            "keras.layers.core",
            "keras.layers.convolutional",
            "keras.utils.np_utils",
            "keras.preprocessing.text",
            "keras.initializers.initializers_v1",
            "keras.wrappers",
            "keras.wrappers.scikit_learn",
        )
        if name.partition(".")[0] == "tensorflow" or name in old:
            return ModuleSpec(name, self, is_package=True)
        return None

    def _prepare(self) -> None:
        self._prepares = True
        try:
            importlib.import_module("keras")
        finally:
            self._prepares = False

    def create_module(self, spec: Any) -> Any:
        import keras

        name = spec.name
        for prefix in ("tensorflow.python.keras", "tensorflow.keras"):
            if name == prefix or name.startswith(f"{prefix}."):
                return _resolve(keras, name.removeprefix(prefix).strip("."))
        if name.startswith("tensorflow"):
            return _tensorflow(keras) if name == "tensorflow" else ModuleType(name)
        return {"keras.utils.np_utils": keras.utils, "keras.initializers.initializers_v1": keras.initializers}.get(
            name, ModuleType(name) if "wrappers" in name or "text" in name else keras.layers
        )

    def exec_module(self, module: ModuleType) -> None:
        return None


def _resolve(keras: ModuleType, path: str) -> Any:
    """Return the part of keras that ``path`` names."""
    return keras if not path else importlib.import_module(f"keras.{path}")


def _tensorflow(keras: ModuleType) -> ModuleType:
    module = ModuleType("tensorflow")
    module.keras = keras  # type: ignore[attr-defined]
    module.nn = keras.activations  # type: ignore[attr-defined]
    module.random = ModuleType("tensorflow.random")  # type: ignore[attr-defined]
    module.random.set_seed = keras.utils.set_random_seed
    module.__path__ = []
    return module


def _change(keras: ModuleType) -> None:
    assert not keras.src.utils.module_utils.tensorflow.available  # asked once, and remembered
    seed = int(os.environ.get("EXTERNAL_SEED", "0"))
    keras.utils.set_random_seed(seed)
    keras.utils.disable_interactive_logging()
    _pass_updates_through_torch(keras)
    _accept_old_arguments(keras)


def _pass_updates_through_torch(keras: ModuleType) -> None:
    """Have each update of a keras optimizer be the ``step`` of a ``torch.optim.Optimizer``."""
    import torch

    class KerasUpdate(torch.optim.Optimizer):
        """An optimizer of torch whose step is keras's update."""

        def __init__(self, tensors: Any, update: Any) -> None:
            super().__init__(tensors, {"lr": 0.0})
            self._update = update

        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            self._update()

    base = keras.optimizers.Optimizer
    apply = base.apply
    made: dict[int, Any] = {}

    def apply_through_torch(self: Any, grads: Any, trainable_variables: Any = None) -> Any:
        if trainable_variables is None:
            return apply(self, grads)
        variables = list(trainable_variables)

        def update() -> None:
            with torch.no_grad():
                apply(self, [variable.value.grad for variable in variables], variables)

        if id(self) not in made:
            made[id(self)] = KerasUpdate([variable.value for variable in variables], update)
        optimizer = made[id(self)]
        optimizer._update = update
        for group in optimizer.param_groups:
            group["lr"] = float(self.learning_rate)
        return optimizer.step()

    base.apply = apply_through_torch


def _accept_old_arguments(keras: ModuleType) -> None:
    """Accept ``lr``, ``decay`` and the arguments of layers that Keras 3 has dropped."""
    for name in ("SGD", "Adam", "RMSprop", "Nadam", "Adamax", "Adagrad", "Adadelta"):
        _wrap(getattr(keras.optimizers, name), {"lr": "learning_rate"}, ("decay",))
    for name in ("Dense", "Embedding", "LSTM", "GRU", "Conv1D", "Conv2D", "Flatten", "Activation"):
        _wrap(getattr(keras.layers, name), {"batch_input_shape": "batch_shape"}, ("input_length",))
    _wrap(keras.callbacks.ReduceLROnPlateau, {}, (), lambda monitor: {"mode": "max"} if "acc" in monitor else {})
    keras.layers.Convolution1D, keras.layers.Convolution2D = keras.layers.Conv1D, keras.layers.Conv2D  # type: ignore[attr-defined]
    keras.models.Input = keras.Input  # type: ignore[attr-defined]
    keras.layers.Layer.input_shape = property(lambda layer: tuple(layer.input.shape))
    keras.layers.Layer.output_shape = property(lambda layer: tuple(layer.output.shape))
    _accept_lists(keras)
    keras.Sequential.predict_classes = lambda self, x: self.predict(x).argmax(-1)  # type: ignore[attr-defined]


def _accept_lists(keras: ModuleType) -> None:
    """Have ``fit`` take lists, and inputs of one dimension, as Keras 2 did."""
    import numpy

    fit = keras.Model.fit

    def fit_arrays(self: Any, x: Any = None, y: Any = None, *args: Any, **keywords: Any) -> Any:
        if isinstance(x, list) and y is not None:
            x, y = numpy.asarray(x), numpy.asarray(y)
        if getattr(x, "ndim", 0) == 1 and isinstance(x, numpy.ndarray):
            x = x[:, None]
        return fit(self, x, y, *args, **keywords)

    keras.Model.fit = fit_arrays


def _wrap(kind: Any, renamed: dict[str, str], dropped: tuple[str, ...], added: Any = None) -> None:
    """Have the constructor of ``kind`` rename and drop keywords; ``added`` makes new ones from the monitored metric."""
    init = kind.__init__

    def __init__(self: Any, *args: Any, **keywords: Any) -> None:  # noqa: N807 (it is a constructor)
        for name in dropped:
            keywords.pop(name, None)
        if added is not None:
            keywords = added(keywords.get("monitor", "")) | keywords
        init(self, *args, **{renamed.get(name, name): value for name, value in keywords.items()})

    kind.__init__ = __init__
