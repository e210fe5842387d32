"""A model that is a stage of a pipeline is known as such, whatever else lives in the process."""

import weakref

import torch.distributed.pipelining.stage  # noqa: F401  # objects are searched only where it was imported
from torch import nn

from gradwatch.ranks.stages import stages_of_pipeline


def test_a_proxy_of_what_is_gone_is_not_asked():
    gone = nn.Linear(1, 1)
    proxies = [weakref.proxy(gone)]  # asked for its class it raises ReferenceError
    del gone
    assert stages_of_pipeline([nn.Linear(1, 1)]) == 0
    assert len(proxies) == 1
