import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from torch._dynamo.testing import CompileCounter

from gradwatch.measure import layers
from gradwatch.measure.backward import BackwardPass


class Backwards(nn.Module):
    """Registered from output to input; ``unused`` never runs."""

    def __init__(self):
        super().__init__()
        self.last, self.unused, self.middle, self.first = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x):
        return self.last(self.middle(self.first(x)).relu())


def by_depth(table):
    names = sorted(table.names, key=lambda name: table.depth[table.names.index(name)])
    return [name.removesuffix(".weight") for name in names if name.endswith("weight")]


def settled(model, forward=None):
    table = layers.of_model(model)
    depths = BackwardPass(table)
    (model if forward is None else forward)(torch.ones(2, 4)).sum().backward()
    depths.settle(range(len(table)))
    return table


def test_depth_follows_use_and_what_got_no_gradient_keeps_its_place():
    assert by_depth(settled(Backwards())) == ["first", "unused", "middle", "last"]


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_weights_of_a_recurrent_module_lie_as_they_were_registered(kind):
    model = nn.ModuleDict({"head": nn.Linear(4, 1), "body": kind(3, 4, num_layers=2, batch_first=True)})
    table = layers.of_model(model)
    passes = BackwardPass(table)
    model["head"](model["body"](torch.randn(2, 5, 3))[0]).sum().backward()
    passes.settle(range(len(table)))
    passes.remove()
    order = [table.names[column] for column in np.argsort(table.depth)]
    assert order[:8] == [f"body.{name}" for name, _ in model["body"].named_parameters()]
    assert {*order[8:]} == {"head.weight", "head.bias"}


def test_each_optimizers_columns_are_settled_by_themselves():
    table = layers.of_model({"a": Backwards(), "b": Backwards()})
    depths = BackwardPass(table)
    roots = [column for column, name in enumerate(table.names) if name.startswith("a.")]
    assert table.tensors
    model = table.tensors[roots[0]]
    (model.sum()).backward()
    depths.settle(roots)
    assert [table.tensors[c]._post_accumulate_grad_hooks for c in roots] == [{}] * len(roots)
    depths.remove()
    depths.remove()
    assert not any(tensor._post_accumulate_grad_hooks for tensor in table.tensors)


def test_a_compiled_graph_leaves_the_order_of_registration():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    model, counter = Backwards(), CompileCounter()
    table = settled(model, torch.compile(model, backend=counter, fullgraph=True))
    torch.compile(model, backend=counter)(torch.ones(2, 4)).sum().backward()
    assert by_depth(table) == ["last", "unused", "middle", "first"]
    assert counter.frame_count == 1
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


def test_a_model_that_is_followed_copies_pickles_and_exports():
    model = Backwards()
    depths = BackwardPass(layers.of_model(model))
    copy.deepcopy(model)(torch.ones(2, 4)).sum().backward()
    pickle.loads(pickle.dumps(model))
    assert torch.export.export(model, (torch.ones(2, 4),)).module()(torch.ones(2, 4)).shape == (2, 4)
    depths.remove()
