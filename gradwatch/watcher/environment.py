"""Say what a run is made with: versions, devices, the commit and the script. A report made elsewhere shows it.

Arguments of the command line, variables of the environment, and names of users, hosts and folders are left out: a run
is handed on, and any of them may be a secret.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

import gradwatch
from gradwatch.event_files.run import Environment
from gradwatch.jupyter import is_kernel
from gradwatch.ranks.group import current_group
from gradwatch.watcher.git_commit import git_commit

__all__ = ["environment_of"]

_FRAMEWORKS = ("lightning", "pytorch_lightning", "transformers", "accelerate", "ignite", "deepspeed")


def environment_of(tensors: Sequence[Tensor]) -> Environment:
    """Return what this process trains ``tensors``, its parameters, with."""
    return Environment(_versions(), _devices(tensors), git_commit(_place_of_script()), _script())


def _versions() -> dict[str, str]:
    loaded = {name: sys.modules[name] for name in _FRAMEWORKS if name in sys.modules}
    frameworks = {name: str(version) for name, module in loaded.items() if (version := vars(module).get("__version__"))}
    return {
        "gradwatch": gradwatch.__version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        **frameworks,
    }


def _devices(tensors: Sequence[Tensor]) -> str:
    """Return the devices that hold ``tensors``, and how many ranks there are, if there are several."""
    names = [_name_of(device) for device in dict.fromkeys(tensor.device for tensor in tensors)]
    counts = {name: names.count(name) for name in names}
    devices = " and ".join(name if count == 1 else f"{count} × {name}" for name, count in counts.items())
    group = current_group()
    return devices if group is None else f"{group.size} ranks, this one on {devices}"


def _name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type.upper()


def _script() -> str:
    """Return the name of the script or module that runs, without its folder; "" at a prompt and for ``-c``."""
    if is_kernel():
        return "a notebook"
    main = sys.modules.get("__main__")
    if (spec := getattr(main, "__spec__", None)) is not None:
        return str(spec.name).removesuffix(".__main__")  # python -m
    return os.path.basename(getattr(main, "__file__", None) or "")


def _place_of_script() -> Path:
    """Return where the script is; in a notebook or at a prompt, where it is being worked."""
    script = getattr(sys.modules.get("__main__"), "__file__", None)
    return Path(script).resolve().parent if script else Path.cwd()
