"""gradwatch: watches a PyTorch training run for gradients that vanish, explode or turn NaN.

Everything public stands here and loads on first use, so that ``import gradwatch`` costs no import of torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradwatch import clip as clip
    from gradwatch.findings import KINDS, Advice, Finding, NonFiniteError, RecoveryError, Thresholds
    from gradwatch.measure.report import StepReport
    from gradwatch.prescription import Prescription, Trial, prescribe
    from gradwatch.recover.black_box import BlackBox
    from gradwatch.recover.rewind import Rewind
    from gradwatch.recover.rewindable_loader import RewindableLoader
    from gradwatch.sinks import Row, Sink
    from gradwatch.sinks.csv import Csv
    from gradwatch.sinks.jsonl import JsonLines
    from gradwatch.sinks.memory import Memory
    from gradwatch.sinks.mlflow import Mlflow
    from gradwatch.sinks.tensorboard import TensorBoard
    from gradwatch.sinks.wandb import Wandb
    from gradwatch.sinks.webhook import Webhook
    from gradwatch.watcher import Watcher, watch, watch_tensors

__all__ = [
    "KINDS",
    "Advice",
    "BlackBox",
    "Csv",
    "Finding",
    "JsonLines",
    "Memory",
    "Mlflow",
    "NonFiniteError",
    "Prescription",
    "RecoveryError",
    "Rewind",
    "RewindableLoader",
    "Row",
    "Sink",
    "StepReport",
    "TensorBoard",
    "Thresholds",
    "Trial",
    "Wandb",
    "Watcher",
    "Webhook",
    "clip",
    "prescribe",
    "watch",
    "watch_tensors",
]
__version__ = "0.1.0"

_HOME = {
    "KINDS": "gradwatch.findings",
    "Advice": "gradwatch.findings",
    "BlackBox": "gradwatch.recover.black_box",
    "Csv": "gradwatch.sinks.csv",
    "Finding": "gradwatch.findings",
    "JsonLines": "gradwatch.sinks.jsonl",
    "Memory": "gradwatch.sinks.memory",
    "Mlflow": "gradwatch.sinks.mlflow",
    "NonFiniteError": "gradwatch.findings",
    "Prescription": "gradwatch.prescription",
    "RecoveryError": "gradwatch.findings",
    "Rewind": "gradwatch.recover.rewind",
    "RewindableLoader": "gradwatch.recover.rewindable_loader",
    "Row": "gradwatch.sinks",
    "Sink": "gradwatch.sinks",
    "StepReport": "gradwatch.measure.report",
    "TensorBoard": "gradwatch.sinks.tensorboard",
    "Thresholds": "gradwatch.findings",
    "Trial": "gradwatch.prescription",
    "Wandb": "gradwatch.sinks.wandb",
    "Watcher": "gradwatch.watcher",
    "Webhook": "gradwatch.sinks.webhook",
    "prescribe": "gradwatch.prescription",
    "watch": "gradwatch.watcher",
    "watch_tensors": "gradwatch.watcher",
}


def __getattr__(name: str) -> object:
    if name == "clip":
        return importlib.import_module("gradwatch.clip")
    if name == "GradWatch":
        raise AttributeError(
            "gradwatch.GradWatch: each framework has its own; import it from gradwatch.lightning, "
            "gradwatch.huggingface or gradwatch.ignite. A plain loop calls gradwatch.watch."
        )
    if name not in _HOME:
        raise AttributeError(f"module 'gradwatch' has no attribute {name!r}; it has {', '.join(__all__)}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
