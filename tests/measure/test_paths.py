"""Which tensors lie after which, against a slow recursion and against what is known of each architecture."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

from gradwatch.hooks import graph
from gradwatch.measure import layers, paths
from gradwatch.measure.paths import MEETS_DATA, PASSES_ON, PRODUCTS, PathFinder


def observed(model, *losses):
    """The table of ``model`` after the graphs of ``losses`` were seen."""
    table = layers.of_model(model)
    finder = PathFinder(table)
    for loss in losses:
        finder.observe_loss(loss)
    return table


def weights_after(table):
    """{weight: the set of weights after it}; names without ``.weight``."""
    named = [(column, name.removesuffix(".weight")) for column, name in enumerate(table.names)]
    weights = [(column, name) for column, name in named if table.is_weight[column]]
    return {name: {other for place, other in weights if table.after[column, place]} for column, name in weights}


def slow_after(table, loss):
    """{(first, second)} for which the second column lies after the first, by plain recursion over the graph."""
    found = set()

    def visit(node):
        """(columns upstream of a node, whether there is data among what is upstream)"""
        if hasattr(node, "variable"):
            column = table.column(node.variable)
            return ({column} if column is not None else set()), False
        kind = node.name().rstrip("0123456789").removesuffix("Backward").lower()
        inputs = [following for following, _ in node.next_functions]
        parts = [visit(each) for each in inputs if each is not None]
        columns = set().union(*(each for each, _ in parts))
        has_data = kind in MEETS_DATA or (kind in PRODUCTS and None in inputs) or any(data for _, data in parts)
        if kind not in PASSES_ON:
            for used, data in parts:
                if not data:
                    found.update((first, second) for first in columns for second in used if first != second)
        return columns, has_data

    columns, _ = visit(loss.grad_fn)
    return found, columns


def linear(inputs=4, outputs=4, bias=False):
    return nn.Linear(inputs, outputs, bias=bias)


class Model(nn.Module):
    """A model of named parts and a function of (parts, x)."""

    def __init__(self, call, **parts):
        super().__init__()
        self.call = call
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x):
        return self.call(self, x)


def named(*names):
    return {name: linear() for name in names}


CHAIN = Model(lambda m, x: m.c(m.b(m.a(x).tanh()).tanh()), **named("a", "b", "c"))
HEADS = Model(
    lambda m, x: m.actor(m.inner(m.trunk(x).tanh()).tanh()).sum() + m.critic(m.trunk(x).tanh()).square().mean(),
    **named("trunk", "inner", "actor", "critic"),
)
TOWERS = Model(lambda m, x: (m.l2(m.l1(x).relu()) * m.r2(m.r1(x).relu())).sum(), **named("l1", "l2", "r1", "r2"))
RESIDUAL = Model(
    lambda m, x: m.head(m.stem(x) + m.out(m.inner(m.stem(x)).relu())), **named("stem", "inner", "out", "head")
)
SKIPPED = Model(
    lambda m, x: m.up(torch.cat([m.down(x).relu(), m.deep(m.down(x).relu()).relu()], dim=1)),
    down=linear(), deep=linear(), up=linear(8, 2),
)  # fmt: skip
ATTENTION = Model(
    lambda m, x: m.out((m.q(m.stem(x)) @ m.k(m.stem(x)).T).softmax(1) @ m.v(m.stem(x))),
    **named("stem", "q", "k", "v", "out"),
)
SHARED = Model(lambda m, x: m.head(m.cell(m.cell(m.stem(x)).tanh()).tanh()), **named("stem", "cell", "head"))
NORMED = Model(lambda m, x: m.c(m.b(m.a(x).relu()).relu()), a=linear(), b=spectral_norm(linear()), c=linear())
RECOMPUTED = Model(lambda m, x: m.c(checkpoint(m.b, m.a(x).tanh(), use_reentrant=False).tanh()), **named("a", "b", "c"))
ARCHITECTURES = {
    "a chain": (CHAIN, {"a": "b c", "b": "c", "c": ""}),
    "two heads on a trunk": (HEADS, {"trunk": "inner actor critic", "inner": "actor", "actor": "", "critic": ""}),
    "two towers that meet in a product": (TOWERS, {"l1": "l2", "l2": "", "r1": "r2", "r2": ""}),
    "a residual branch": (RESIDUAL, {"stem": "inner out head", "inner": "out head", "out": "head", "head": ""}),
    "a skip connection": (SKIPPED, {"down": "deep up", "deep": "up", "up": ""}),
    "attention": (ATTENTION, {"stem": "q k v out", "q": "out", "k": "out", "v": "out", "out": ""}),
    "a weight used twice": (SHARED, {"stem": "cell head", "cell": "head", "head": ""}),
    "a spectral norm": (NORMED, {"a": "b c", "b": "c", "c": ""}),
    "a checkpoint": (RECOMPUTED, {"a": "b c", "b": "c", "c": ""}),
}


@pytest.mark.parametrize(("model", "expected"), ARCHITECTURES.values(), ids=ARCHITECTURES)
def test_what_lies_after_a_weight(model, expected):
    found = weights_after(observed(model, model(torch.randn(3, 4)).sum()))
    short = {name.removesuffix(".parametrizations.original").split(".")[0]: after for name, after in found.items()}
    assert {name: {each.split(".")[0] for each in after} for name, after in short.items()} == {
        name: set(after.split()) for name, after in expected.items()
    }


@pytest.mark.parametrize("model", [each for each, _ in ARCHITECTURES.values()], ids=ARCHITECTURES)
def test_agrees_with_the_slow_recursion(model):
    loss = model(torch.randn(3, 4)).sum()
    table = observed(model, loss)
    slow, columns = slow_after(table, loss)
    assert {(first, second) for first, second in np.argwhere(table.after).tolist()} == slow
    assert {column for column in range(len(table)) if table.is_placed[column]} == columns


def test_the_weights_of_a_recurrent_module_lie_on_the_path_to_the_next_module():
    model = nn.ModuleDict({"body": nn.GRU(3, 4, num_layers=2, batch_first=True), "head": nn.Linear(4, 1)})
    found = weights_after(observed(model, model["head"](model["body"](torch.randn(2, 5, 3))[0]).sum()))
    assert {"body.weight_ih_l1", "body.weight_hh_l1", "head"} <= found["body.weight_ih_l0"]
    assert found["body.weight_ih_l1"] >= {"head"}
    assert found["head"] == set()


def test_a_tied_embedding_lies_before_and_after_the_layers_between_its_uses():
    model = nn.ModuleDict({"words": nn.Embedding(7, 4), "body": linear()})
    found = weights_after(
        observed(model, (model["body"](model["words"](torch.arange(5))) @ model["words"].weight.T).sum())
    )
    assert found == {"words": {"body"}, "body": {"words"}}


def test_weight_normalisation_is_part_of_its_layer():
    model = nn.Sequential(weight_norm(linear()), nn.ReLU(), linear())
    table = observed(model, model(torch.randn(3, 4)).sum())
    last = table.names.index("2.weight")
    assert [bool(table.after[column, last]) for column in range(len(table))] == [
        name != "2.weight" for name in table.names
    ]


def test_losses_with_heads_of_their_own_add_up():
    model = Model(None, **named("trunk", "left", "right"))
    x = torch.randn(3, 4)
    left, right = model.left(model.trunk(x).tanh()).sum(), model.right(model.trunk(x).tanh()).sum()
    assert observed(model, left).is_placed.tolist() == [True, True, False]
    both = observed(model, left, right)
    assert both.is_placed.all()
    assert weights_after(both) == {"trunk": {"left", "right"}, "left": set(), "right": set()}


def test_what_a_checkpoint_hides_has_no_place():
    model = Model(lambda m, x: m.c(checkpoint(m.b, m.a(x), use_reentrant=True)), **named("a", "b", "c"))
    assert observed(model, model(torch.randn(3, 4)).sum()).is_placed.tolist() == [True, False, True]


def test_a_compiled_graph_says_nothing_of_paths():
    model = nn.Sequential(linear(), nn.Tanh(), linear())
    compiled = torch.compile(model, backend="aot_eager")
    table = observed(model, compiled(torch.randn(3, 4)).sum())
    assert table.after is None
    assert table.is_placed is None


def test_a_loss_without_a_graph_and_a_graph_that_is_too_large_say_nothing(monkeypatch):
    assert observed(CHAIN, torch.tensor(1.0)).after is None
    monkeypatch.setattr(graph, "MOST_NODES", 3)
    assert observed(CHAIN, CHAIN(torch.randn(3, 4)).sum()).after is None


def test_graphs_are_walked_until_every_tensor_has_a_place_and_a_few_more_times_if_one_never_gets_any(monkeypatch):
    walks = []
    walk = paths.inputs_first
    monkeypatch.setattr(paths, "inputs_first", lambda root: walks.append(root) or walk(root))
    losses = [CHAIN(torch.randn(3, 4)).sum() for _ in range(9)]
    observed(CHAIN, *losses)
    assert len(walks) == 1
    unused = nn.ModuleDict({"chain": CHAIN, "never": linear()})
    observed(unused, *losses)
    assert len(walks) == 1 + 1 + paths.MOST_IN_VAIN


def test_watching_walks_the_graph_and_leaves_it_to_the_backward_pass():
    import gradwatch

    model = nn.Sequential(linear(), nn.Tanh(), linear())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer) as watcher:
        model(torch.randn(3, 4)).sum().backward()
        optimizer.step()
        assert weights_after(watcher._loop.layers) == {"0": {"2"}, "2": set()}
