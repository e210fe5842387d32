"""The state of every random number generator that training draws from: Python's, numpy's, torch's on each device."""

from __future__ import annotations

import ctypes
import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["RandomState", "accelerators_of", "random_state"]

_MT19937_BYTES = 4 * 624 + 4  # of numpy's struct: the key, and the place in it

_latest_of_numpy: tuple[bytes, Mapping[str, Any]] | None = None
"""The memory of numpy's generator at the last call, and the state that it stood for."""


@dataclass(frozen=True)
class RandomState:
    """States of random number generators, all of one moment.

    Attributes:
        python: as ``random.getstate()`` returns it.
        numpy: as ``np.random.get_state(legacy=False)`` returns it.
        cpu: (N,) uint8, that of torch on the CPU.
        accelerators: {device: (M,) uint8}, on the CPU.
    """

    python: tuple[Any, ...]
    numpy: Mapping[str, Any]
    cpu: Tensor
    accelerators: Mapping[str, Tensor]

    def restore(self) -> None:
        """Set every generator to its state. Devices that this machine lacks are left out."""
        random.setstate(self.python)
        np.random.set_state(dict(self.numpy))
        torch.set_rng_state(self.cpu)
        for name, state in self.accelerators.items():
            device = torch.device(name)
            if _has(device):
                torch.get_device_module(device).set_rng_state(state, *_place_of(device))

    def as_plain(self) -> dict[str, Any]:
        """Return the states as numbers, strings and tensors, which ``torch.load(weights_only=True)`` accepts."""
        version, entries, gauss = self.python
        return {
            "python": {"version": version, "entries": torch.tensor(entries, device="cpu"), "gauss": gauss},
            "numpy": _numpy_as_plain(self.numpy),
            "cpu": self.cpu,
            "accelerators": dict(self.accelerators),
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any]) -> RandomState:
        """Return the states that ``as_plain`` was called on.

        Raises:
            KeyError, TypeError, ValueError: for something else.
        """
        python = plain["python"]
        return cls(
            python=(python["version"], tuple(python["entries"].tolist()), python["gauss"]),
            numpy=_numpy_from_plain(plain["numpy"]),
            cpu=plain["cpu"],
            accelerators=dict(plain["accelerators"]),
        )


def random_state(accelerators: Iterable[torch.device] = ()) -> RandomState:
    """Return the present state of every generator. It takes some 20 µs, 100 µs where numpy has drawn a number,
    and never waits for a device.

    Args:
        accelerators: those whose generators count, see ``accelerators_of``.
    """
    return RandomState(
        python=random.getstate(),
        numpy=_numpy_state(),
        cpu=torch.get_rng_state(),
        accelerators={
            str(device): torch.get_device_module(device).get_rng_state(*_place_of(device)) for device in accelerators
        },
    )


def _numpy_state() -> Mapping[str, Any]:
    """Return ``np.random.get_state(legacy=False)``: in 100 µs, or in 2 µs where nothing was drawn since the last call.

    A second normal number is drawn without a change in the generator's memory: numpy makes two at once and keeps one.
    So the state is read anew while one waits.
    """
    global _latest_of_numpy
    generator = np.random.get_bit_generator()  # type: ignore[attr-defined] # public, and left out of numpy's own stubs
    if not isinstance(generator, np.random.MT19937):  # somebody has set another, whose memory has another form
        return np.random.get_state(legacy=False)
    memory = ctypes.string_at(generator.ctypes.state_address, _MT19937_BYTES)
    if _latest_of_numpy is None or _latest_of_numpy[0] != memory or _latest_of_numpy[1]["has_gauss"]:
        _latest_of_numpy = (memory, np.random.get_state(legacy=False))
    return _latest_of_numpy[1]


def accelerators_of(tensors: Iterable[Tensor]) -> list[torch.device]:
    """Return the devices of ``tensors`` that have a generator of their own beside the CPU's."""
    devices = dict.fromkeys(tensor.device for tensor in tensors)
    return [device for device in devices if device.type not in ("cpu", "meta")]


def _place_of(device: torch.device) -> tuple[torch.device, ...]:
    """Return the device as an argument, where there may be several of its type: MPS has one, and takes none."""
    return () if device.type == "mps" else (device,)


def _has(device: torch.device) -> bool:
    module = torch.get_device_module(device)
    return bool(module.is_available()) and (device.index or 0) < module.device_count()


def _numpy_as_plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return the state of numpy's generator, with its array as a tensor."""
    return {name: _array_as_plain(value) for name, value in state.items()}


def _array_as_plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _array_as_plain(entry) for name, entry in value.items()}
    if isinstance(value, np.ndarray):
        return {"dtype": str(value.dtype), "bytes": torch.from_numpy(np.frombuffer(value.tobytes(), np.uint8).copy())}
    return value.item() if isinstance(value, np.generic) else value


def _numpy_from_plain(plain: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _array_from_plain(value) for name, value in plain.items()}


def _array_from_plain(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    if set(value) == {"dtype", "bytes"}:
        return np.frombuffer(value["bytes"].numpy().tobytes(), np.dtype(value["dtype"])).copy()
    return {name: _array_from_plain(entry) for name, entry in value.items()}
