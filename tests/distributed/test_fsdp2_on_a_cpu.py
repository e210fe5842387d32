"""The tests of FSDP2 are left out nowhere but where torch cannot run it."""

import textwrap

import pytest

from tests.distributed.conftest import RUNS_FSDP2
from tests.distributed.launch import torchrun

BARE = """
    import torch
    import torch.distributed as dist
    from torch import nn
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo")
    model = nn.Linear(6, 1)
    fully_shard(model)
    model(torch.ones(4, 6)).sum().backward()
    print("trained", flush=True)
    dist.destroy_process_group()
"""


@pytest.mark.process
@pytest.mark.slow
def test_fsdp2_runs_without_gradwatch_exactly_where_it_is_tested(tmp_path):
    (tmp_path / "train.py").write_text(textwrap.dedent(BARE), encoding="utf-8")
    ended = torchrun(2, ["train.py"], tmp_path, 240)
    assert ended.status is not None, ended.output
    assert ("trained" in ended.output) == RUNS_FSDP2, ended.output
