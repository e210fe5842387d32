import importlib

import pytest
import torch
from torch import nn
from torch.distributed import HashStore, destroy_process_group, init_process_group

import gradwatch
from gradwatch.measure import layers


class Net(nn.Module):
    """Registers its layers against the order in which they run, and one that never runs."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.last = nn.Linear(3, 2)
        self.unused = nn.Linear(2, 2, bias=False)
        self.first = nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.first(x)) * self.scale


NAMES = ("scale", "last.weight", "last.bias", "unused.weight", "first.weight", "first.bias")


def tied():
    model = nn.Sequential(nn.Embedding(5, 3), nn.Linear(3, 5, bias=False))
    model[1].weight = model[0].weight
    return model


def by_depth(table):
    return [table.names[column] for column in table.depth.argsort()]


def hooks_of(model):
    return [hook for module in model.modules() for hook in (*module._forward_pre_hooks, *module._forward_hooks)]


def test_checkpoint_wrappers_and_fabric_leave_no_trace_in_the_names():
    checkpoint = importlib.import_module("torch.distributed.algorithms._checkpoint.checkpoint_wrapper")
    fabric = importlib.import_module("lightning.fabric")
    model = Net()
    model.first = checkpoint.checkpoint_wrapper(model.first)
    assert layers.of_model(model).names == NAMES
    prepared = fabric.Fabric(accelerator="cpu", devices=1).setup(model)
    assert layers.of_model(prepared).names == NAMES


def test_layers_are_listed_in_order_of_registration():
    model = Net()
    table = layers.of_model(model)
    assert table.names == NAMES
    assert all(found is own for found, own in zip(table.tensors, model.parameters(), strict=True))
    assert table.owners == ("Net", *["Linear"] * 5)
    assert table.module_types == {"Net", "Linear"}
    assert table.is_weight.tolist() == [False, True, False, True, True, False]
    assert table.size.tolist() == [1, 6, 2, 4, 12, 3]
    assert table.depth.tolist() == list(range(6))
    assert len(table) == 6


def test_column_finds_a_tensor_by_identity():
    model = Net()
    table = layers.of_model(model)
    assert table.column(model.unused.weight) == 3
    assert table.column(model.unused.weight.clone()) is None


def test_a_tied_weight_is_listed_once_under_its_first_name():
    assert layers.of_model(tied()).names == ("0.weight",)


def test_a_module_used_twice_is_listed_once():
    shared = nn.Linear(2, 2, bias=False)
    assert layers.of_model(nn.Sequential(shared, nn.ReLU(), shared)).names == ("0.weight",)


def test_frozen_layers_keep_their_place():
    model = Net()
    model.last.requires_grad_(False)
    assert layers.of_model(model).names == NAMES


def test_several_models_begin_their_names_with_their_own():
    table = layers.of_model({"generator": nn.Linear(1, 1), "critic": nn.Sequential(nn.Linear(1, 1, bias=False))})
    assert table.names == ("generator.weight", "generator.bias", "critic.0.weight")


def test_a_parameter_that_two_models_share_belongs_to_the_first():
    shared = nn.Linear(1, 1, bias=False)
    assert layers.of_model({"a": shared, "b": nn.Sequential(shared, nn.Linear(1, 1))}).names == (
        "a.weight",
        "b.1.weight",
        "b.1.bias",
    )


def compiled(model):
    return torch.compile(model, backend="eager")


@pytest.mark.parametrize("wrap", [nn.DataParallel, compiled, lambda model: compiled(nn.DataParallel(model))])
def test_wrappers_leave_no_trace(wrap):
    table = layers.of_model(wrap(Net()))
    assert table.names == NAMES
    assert table.module_types == {"Net", "Linear"}


def test_distributed_leaves_no_trace():
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        assert layers.of_model(nn.parallel.DistributedDataParallel(Net())).names == NAMES
    finally:
        destroy_process_group()


def test_a_compiled_part_leaves_no_trace():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), compiled(nn.Linear(1, 1, bias=False)))
    assert layers.of_model(model).names == ("0.weight", "1.weight")


@pytest.mark.parametrize("name", ["module", "_orig_mod"])
def test_a_module_named_like_a_wrapper_keeps_its_name(name):
    model = nn.Module()
    model.add_module(name, nn.Linear(1, 1, bias=False))
    assert layers.of_model(model).names == (f"{name}.weight",)


def test_a_lazy_module_has_a_size_once_it_ran():
    model = nn.LazyLinear(3)
    table = layers.of_model(model)
    assert (table.size.tolist(), table.is_weight.tolist()) == ([0, 0], [False, False])
    model(torch.ones(1, 2))
    assert (table.size.tolist(), table.is_weight.tolist()) == ([6, 3], [True, False])


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        ("*.weight", None, ["last.weight", "unused.weight", "first.weight"]),
        (["first.*", "scale"], None, ["scale", "first.weight", "first.bias"]),
        (None, "*.bias", ["scale", "last.weight", "unused.weight", "first.weight"]),
        ("*.weight", ["first.*", "last.*"], ["unused.weight"]),
        (lambda name, parameter: parameter.ndim < 2, None, ["scale", "last.bias", "first.bias"]),
        (None, lambda name, parameter: name != "scale", ["scale"]),
    ],
)
def test_include_and_exclude_choose(include, exclude, expected):
    model = Net()
    assert list(layers.of_model(model, include, exclude).names) == expected
    assert list(layers.of_tensors(dict(model.named_parameters()), include, exclude).names) == expected


def test_an_include_that_matches_nothing_names_near_misses():
    with pytest.raises(ValueError, match=r"^include='last.wieght' matches none of the 6 .* 'last.weight'"):
        layers.of_model(Net(), include="last.wieght")


@pytest.mark.parametrize("include", ["zzz", lambda name, parameter: False])
def test_an_include_that_resembles_nothing_is_refused_all_the_same(include):
    with pytest.raises(ValueError, match=r"^include="):
        layers.of_model(Net(), include=include)


def test_an_exclude_that_leaves_nothing_is_refused_by_name():
    with pytest.raises(ValueError, match="exclude='\\*' leaves none of the 6"):
        layers.of_model(Net(), exclude="*")


@pytest.mark.parametrize("model", [None, [nn.Linear(1, 1)], {"a": torch.ones(1)}, nn.Linear])
def test_what_is_no_model_is_refused(model):
    with pytest.raises(TypeError, match=r"^model: expected an nn.Module or {name: nn.Module}, found"):
        layers.of_model(model)


@pytest.mark.parametrize("model", [nn.ReLU(), nn.Linear(1, 1).requires_grad_(False), {}])
def test_a_model_with_nothing_to_train_is_refused(model):
    with pytest.raises(ValueError, match="at least one parameter that requires a gradient"):
        layers.of_model(model)


def test_a_model_without_values_is_refused():
    with pytest.raises(ValueError, match="'weight' is on the meta device"):
        layers.of_model(nn.Linear(1, 1, device="meta"))


def test_bare_tensors_have_no_owner():
    table = layers.of_tensors({"w1": torch.ones(2, 3), "w2": torch.ones(4)})
    assert (table.names, table.owners, table.module_types) == (("w1", "w2"), ("", ""), frozenset())


@pytest.mark.parametrize("tensors", [[torch.ones(1)], {"w": 1.0}, torch.ones(1)])
def test_what_are_no_tensors_is_refused(tensors):
    with pytest.raises(TypeError, match=r"^tensors: expected {name: torch.Tensor}"):
        layers.of_tensors(tensors)


class Refusing(nn.ParameterList):
    """A holder of parameters that has no truth of its own, as a ``TensorDictParams`` of torchrl."""

    def __bool__(self):
        raise RuntimeError("converting this to a boolean value is not permitted")


@pytest.mark.parametrize("traces", [False, True])
def test_a_module_that_refuses_to_be_asked_for_its_truth_is_watched(traces):
    class Loss(nn.Module):
        def __init__(self):
            super().__init__()
            self.held = Refusing([torch.ones(3), torch.zeros(())])

        def forward(self, x):
            return (x @ self.held[0] + self.held[1]).square().mean()

    model = Loss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with gradwatch.watch(model, optimizer, trace_nonfinite=traces) as watcher:
        for step in range(3):
            optimizer.zero_grad()
            model(torch.full((2, 3), torch.nan if step == 2 else 1.0)).backward()
            optimizer.step()
    assert watcher.history.layers == ("held.0", "held.1")
    (finding,) = watcher.findings
    assert (finding.kind, finding.step) == ("nonfinite", 2)
    assert "was given already held NaN" in finding.cause
    assert not watcher._loop.guard.has_noted_faults
