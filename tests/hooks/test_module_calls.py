"""Listening to the calls of a compiled module changes neither what is compiled nor what is not."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn

import gradwatch


def trained(*, watched, hook, backend="eager", fullgraph=False):
    """Train a compiled network with a hook of the user's; return what it leaves, and the graphs that were compiled."""
    torch.manual_seed(0)
    torch.compiler.reset()
    graphs = []

    def compiled(graph, inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op.startswith("call")])
        return graph.forward

    model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 4))
    calls = []
    hook(model, calls)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    call = torch.compile(model, backend=compiled if backend == "eager" else backend, fullgraph=fullgraph)
    watcher = gradwatch.watch(model, optimizer) if watched else None
    for _ in range(4):
        x = torch.randn(3, 4, requires_grad=True)
        output = call(x)
        (slope,) = torch.autograd.grad(output.sum(), x, create_graph=True)
        optimizer.zero_grad()
        (slope.square().sum() + output.square().sum()).backward()
        optimizer.step()
    if watcher is not None:
        watcher.close()
        assert len(watcher.history.steps) == 4
    return [parameter.tolist() for parameter in model.parameters()], calls, graphs


HOOKS = {
    "backward": lambda model, calls: model.register_full_backward_hook(lambda *_: calls.append("backward")),
    "forward": lambda model, calls: model.register_forward_hook(lambda *_: calls.append("forward")),
    "none": lambda model, calls: None,
}


@pytest.mark.parametrize("hook", HOOKS.values(), ids=HOOKS)
def test_the_same_graphs_are_compiled_as_bare(hook):
    bare = trained(watched=False, hook=hook)
    assert trained(watched=True, hook=hook) == bare


def test_a_second_derivative_that_a_compiled_network_has_bare_it_has_watched():
    backward = HOOKS["backward"]
    bare = trained(watched=False, hook=backward, backend="aot_eager")
    assert trained(watched=True, hook=backward, backend="aot_eager") == bare


def test_a_network_that_must_be_one_graph_is_one():
    bare = trained(watched=False, hook=HOOKS["none"], fullgraph=True)
    assert trained(watched=True, hook=HOOKS["none"], fullgraph=True) == bare
    assert len(bare[2]) == 1


@pytest.mark.parametrize("kind", [nn.RNN, nn.LSTM, nn.GRU])
def test_a_module_that_says_itself_what_is_pickled_leaves_us_out(kind):
    model, x = nn.Sequential(kind(4, 4)), torch.ones(2, 3, 4)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with gradwatch.watch(model, optimizer) as watcher, gradwatch.watch(model[0], None):
        model(x)[0].sum().backward()
        optimizer.step()
        file = io.BytesIO()
        torch.save(model, file)
        copies = [copy.deepcopy(model), copy.deepcopy(model[0]), pickle.loads(pickle.dumps(model[0]))]
        for each in copies:
            assert torch.equal(each(x)[0], model(x)[0])
            assert each(x)[0].requires_grad
    assert b"gradwatch" not in file.getvalue()
    assert len(watcher.history.steps) == 1
