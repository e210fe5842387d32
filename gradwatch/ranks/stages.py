"""Find out whether a model is a stage of a pipeline: one of several models on several ranks, trained as one."""

from __future__ import annotations

import sys
from collections.abc import Iterable

from torch import nn

from gradwatch.living_objects import living

__all__ = ["stages_of_pipeline"]


def stages_of_pipeline(models: Iterable[nn.Module]) -> int:
    """Return on how many ranks the stages of the pipeline lie that one of ``models`` is a stage of; 0 without one.

    ``torch.distributed.pipelining`` knows the module of each stage. It is searched for among the living objects, and
    only where that was imported.
    """
    pipelining = sys.modules.get("torch.distributed.pipelining.stage")
    if pipelining is None:
        return 0
    inside = {id(part) for model in models for part in model.modules()}
    stages = living(pipelining.PipelineStage)
    return next((int(stage.group_size) for stage in stages if id(stage.submod) in inside), 0)
