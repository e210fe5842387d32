"""Turn the layers of a Keras program into modules of torch: the same functions, drawn from the same distributions.

Where a chain begins with convolutions its data are channels first, as torch has them. Each layer is made of its
configuration, and its weights are drawn in Keras's shapes, since the spread of a Glorot-uniform weight depends on them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.external.keras_recurrence import KerasLSTM, OneOutput, put_gru

Put = Callable[..., None]
"""Writes weights, as Keras has them, into the modules."""


class NoTranslationError(ValueError):
    """Nothing here does what a layer, a loss or an optimizer of Keras does."""


@dataclass(frozen=True)
class Translated:
    """The modules that do what one layer does.

    Attributes:
        modules: in their order.
        initializers: of each weight of the layer, in Keras's order.
        put: takes the weights in that order.
    """

    modules: Sequence[nn.Module]
    initializers: Sequence[Any] = ()
    put: Put = lambda: None


def model_of(layers: Sequence[dict[str, Any]], *, as_kept: bool = False, dropout: bool = True) -> nn.Sequential:
    """Return the model of these layers, its weights drawn anew.

    Args:
        layers: what ``keep_keras`` has kept of them.
        as_kept: take the weights that were kept instead.
        dropout: False leaves it out.

    Raises:
        NoTranslationError: names the layer for which there is none.
    """
    modules: list[nn.Module] = []
    is_masked: float | None = None
    for layer in layers:
        kind, config, kept = layer["kind"], layer["config"], [torch.as_tensor(each) for each in layer["weights"]]
        if kind == "Masking":
            is_masked = config["mask_value"]
            continue
        made = _translated(kind, config, [tuple(each.shape) for each in kept], is_masked, modules)
        is_masked = is_masked if config.get("return_sequences") else None
        made.put(*(kept if as_kept else map(_drawn, made.initializers, kept)))
        modules += [module for module in made.modules if dropout or not isinstance(module, nn.Dropout)]
    return nn.Sequential(*modules)


def is_channels_first(layers: Sequence[dict[str, Any]]) -> bool:
    """Return True if the translated model takes its inputs channels first."""
    first = next((layer["kind"] for layer in layers if layer["kind"] not in ("Dropout", "InputLayer")), "")
    return first.startswith("Conv")


def _translated(
    kind: str,
    config: dict[str, Any],
    shapes: Sequence[tuple[int, ...]],
    masked: float | None,
    before: Sequence[nn.Module],
) -> Translated:
    if kind in ("LSTM", "GRU"):
        return Translated(*_recurrence(kind, config, shapes, masked))
    if masked is not None:
        raise NoTranslationError(f"{kind} after Masking")
    makers: dict[str, Callable[[dict[str, Any], Sequence[tuple[int, ...]]], Translated]] = {
        "Dense": _dense,
        "Conv1D": _convolution,
        "Conv2D": _convolution,
        "MaxPooling1D": _pooling,
        "MaxPooling2D": _pooling,
        "BatchNormalization": _batch_norm,
        "Activation": lambda config, _: Translated(_activation(config["activation"])),
        "Dropout": lambda config, _: Translated([nn.Dropout(config["rate"])]),
        "LeakyReLU": lambda config, _: Translated([nn.LeakyReLU(config["negative_slope"])]),
        "Flatten": lambda config, _: Translated([_flatten(before)]),
    }
    if kind not in makers:
        raise NoTranslationError(f"a layer of kind {kind}")
    if kind == "Dense" and before and _has_channels_first(before):
        raise NoTranslationError("Dense between convolutions")
    return makers[kind](config, shapes)


def _dense(config: dict[str, Any], shapes: Sequence[tuple[int, ...]]) -> Translated:
    layer = nn.Linear(*shapes[0], bias=config["use_bias"])

    def put(kernel: Tensor, *bias: Tensor) -> None:
        _copy(layer.weight, kernel.T)
        _copy_bias(layer, bias)

    return Translated([layer, *_activation(config["activation"])], _kernel_and_bias(config), put)


def _convolution(config: dict[str, Any], shapes: Sequence[tuple[int, ...]]) -> Translated:
    *kernel_size, inputs, outputs = shapes[0]
    if config["groups"] != 1 or config["data_format"] != "channels_last" or config["padding"] == "causal":
        raise NoTranslationError("a convolution in groups, channels first or causal")
    padding = config["padding"] if config["padding"] == "valid" or set(config["strides"]) == {1} else None
    if padding is None:
        raise NoTranslationError("a convolution with strides and padding")
    kind = nn.Conv1d if len(kernel_size) == 1 else nn.Conv2d
    layer = kind(
        inputs, outputs, tuple(kernel_size), tuple(config["strides"]), padding,
        dilation=tuple(config["dilation_rate"]), bias=config["use_bias"],
    )  # fmt: skip

    def put(kernel: Tensor, *bias: Tensor) -> None:
        _copy(layer.weight, kernel.movedim((-1, -2), (0, 1)))
        _copy_bias(layer, bias)

    return Translated([layer, *_activation(config["activation"])], _kernel_and_bias(config), put)


def _pooling(config: dict[str, Any], shapes: Sequence[tuple[int, ...]]) -> Translated:
    size, strides = tuple(config["pool_size"]), tuple(config["strides"])
    is_padded = config["padding"] == "same"
    if is_padded and size != strides:
        raise NoTranslationError("overlapping pools with padding")
    kind = nn.MaxPool1d if len(size) == 1 else nn.MaxPool2d
    return Translated([kind(size, strides, ceil_mode=is_padded)])


def _batch_norm(config: dict[str, Any], shapes: Sequence[tuple[int, ...]]) -> Translated:
    """Translate a batch normalisation; Keras keeps the biased variance for evaluation, torch the unbiased one."""
    layer = _AnyBatchNorm(shapes[0][0], eps=config["epsilon"], momentum=1 - config["momentum"])

    def put(*weights: Tensor) -> None:
        _copy_all((layer.weight, layer.bias, layer.running_mean, layer.running_var), weights)

    names = ("gamma_initializer", "beta_initializer", "moving_mean_initializer", "moving_variance_initializer")
    return Translated([layer], [config[name] for name in names], put)


class _AnyBatchNorm(nn.BatchNorm1d):
    """A batch normalisation of inputs of any number of axes, their second one being the channels."""

    def _check_input_dim(self, input: Tensor) -> None:
        return None


def _recurrence(
    kind: str, config: dict[str, Any], shapes: Sequence[tuple[int, ...]], masked: float | None
) -> tuple[list[nn.Module], list[Any], Put]:
    initializers = [config[f"{name}_initializer"] for name in ("kernel", "recurrent", "bias")]
    whole = config["return_sequences"]
    if config["go_backwards"] or config["stateful"] or not config["use_bias"]:
        raise NoTranslationError(f"{kind} that goes backwards, is stateful or has no bias")
    if kind == "LSTM":
        initializers[2] = {"class_name": "UnitForgetBias"} if config["unit_forget_bias"] else initializers[2]
        activations = [_activation(config[name])[0] for name in ("activation", "recurrent_activation")]
        layer = KerasLSTM(shapes[0][0], shapes[1][0], *activations, masked=masked, whole=whole)
        return [layer], initializers, lambda *weights: _copy_all(layer.keras_weights, weights)
    if (config["activation"], config["recurrent_activation"], config["reset_after"]) != ("tanh", "sigmoid", True):
        raise NoTranslationError("a GRU of its own kind")
    if masked is not None:
        raise NoTranslationError("a GRU after Masking")
    gru = nn.GRU(shapes[0][0], shapes[1][0], batch_first=True)
    return [OneOutput(gru, whole)], initializers, lambda *weights: put_gru(gru, *weights)


def _flatten(before: Sequence[nn.Module]) -> nn.Module:
    return FlattenChannelsLast() if _has_channels_first(before) else nn.Flatten()


def _has_channels_first(before: Sequence[nn.Module]) -> bool:
    is_first = False
    for module in before:
        is_first = (is_first or isinstance(module, (nn.Conv1d, nn.Conv2d))) and not isinstance(
            module, FlattenChannelsLast
        )
    return is_first


class FlattenChannelsLast(nn.Module):
    """Flatten inputs whose channels are first as Keras does, which has them last."""

    def forward(self, x: Tensor) -> Tensor:
        return x.movedim(1, -1).flatten(1)


_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "softmax": lambda: nn.Softmax(-1),
    "hard_sigmoid": nn.Hardsigmoid,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
}


def _activation(name: Any) -> list[nn.Module]:
    if name in ("linear", None):
        return []
    if name not in _ACTIVATIONS:
        raise NoTranslationError(f"the activation function {name}")
    return [_ACTIVATIONS[name]()]


def _kernel_and_bias(config: dict[str, Any]) -> list[Any]:
    return [config["kernel_initializer"], *([config["bias_initializer"]] if config["use_bias"] else [])]


def _drawn(initializer: Any, like: Tensor) -> Tensor:
    """Return a weight of the shape of ``like``, drawn as the initializer of Keras draws it."""
    kind, config = initializer["class_name"], initializer.get("config", {})
    weight = torch.empty(like.shape)
    if kind == "GlorotUniform":
        limit = math.sqrt(6 / sum(_fans(like.shape)))
        return weight.uniform_(-limit, limit)
    if kind in ("OrthogonalInitializer", "Orthogonal"):
        return config["gain"] * nn.init.orthogonal_(weight)
    if kind == "UnitForgetBias":
        units = len(like) // 4
        return torch.cat([torch.zeros(units), torch.ones(units), torch.zeros(2 * units)])
    draws: dict[str, Callable[[], Tensor]] = {
        "Zeros": weight.zero_,
        "Ones": lambda: weight.fill_(1.0),
        "RandomUniform": lambda: weight.uniform_(config["minval"], config["maxval"]),
        "RandomNormal": lambda: weight.normal_(config["mean"], config["stddev"]),
    }
    if kind not in draws:
        raise NoTranslationError(f"the initializer {kind}")
    return draws[kind]()


def _fans(shape: Sequence[int]) -> tuple[int, int]:
    """Return (inputs, outputs) of a weight, as Keras counts them."""
    if len(shape) == 1:
        return shape[0], shape[0]
    *kernel, inputs, outputs = shape
    return math.prod(kernel) * inputs, math.prod(kernel) * outputs


def _copy_bias(layer: nn.Module, bias: Sequence[Tensor]) -> None:
    for each in bias:
        _copy(layer.bias, each)  # type: ignore[arg-type]


@torch.no_grad()
def _copy(ours: Tensor | None, theirs: Tensor) -> None:
    assert ours is not None
    ours.copy_(theirs)


def _copy_all(ours: Iterable[Tensor | None], theirs: Iterable[Tensor]) -> None:
    for one, other in zip(ours, theirs, strict=True):
        _copy(one, other)
