"""The library of remedies, and which of them a finding is given."""

import doctest
import importlib
import math
from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradwatch
from gradwatch import Advice, remedies
from gradwatch.findings import KINDS, Clue
from gradwatch.measure.layers import of_model, of_tensors
from gradwatch.remedies import FAMILIES, LIBRARY, PRELUDE, Case, NotApplicableError, advise, fitting

KEYS = {
    "fewer-layers", "smaller-batches", "truncated-bptt", "lstm-gru", "weight-regularisation", "relu", "leaky-relu",
    "prelu", "elu", "selu", "gelu", "maxout", "clip-value", "clip-norm", "clip-adaptive", "weight-clipping",
    "gradient-penalty", "spectral-norm", "batch-norm", "layer-norm", "rms-norm", "residual", "xavier", "he",
    "orthogonal", "depth-scaled", "lower-learning-rate", "higher-learning-rate", "warm-up", "loss-scaling", "safe-log",
    "safe-sqrt", "safe-division", "masked-softmax", "scaled-inputs", "clean-data", "safe-power", "safe-angle", "jitter",
    "skip-step", "softmax-over-classes", "initialise", "nonzero-gain", "scaled-layer-inputs", "bfloat16",
    "optimizer-epsilon", "float32-weights", "safe-update", "finite-rate",
    "own-parameters", "longer-schedule", "looser-clip", "clip-before-step",
    "zero-grad", "zero-grad-after-step", "unscale-first", "linear-output", "train-mode", "target-network",
    "non-saturating-loss", "output-probabilities",
}  # fmt: skip


UPDATES = {"clip-norm", "clip-value", "clip-adaptive", "lower-learning-rate", "warm-up"}

# the library


def test_every_name_has_one_remedy_in_one_family():
    assert set(LIBRARY) == KEYS
    assert sum(len(family) for family in FAMILIES.values()) == len(KEYS)


@pytest.mark.parametrize("remedy", LIBRARY.values(), ids=LIBRARY)
def test_what_a_remedy_says_is_complete(remedy):
    assert all([remedy.title, remedy.advice, remedy.applies, remedy.why, remedy.source, remedy.cost])
    assert any(sign in remedy.why for sign in "=≥≤←+·∝")  # a formula
    assert remedy.kinds
    assert set(remedy.kinds) <= set(KINDS)


MADE_SICK = {
    "scaled-inputs": "batches = [(100 * x, y) for x, y in batches]\n",
    "clean-data": "batches[0][0][3, 2] = torch.nan\n",
    "lstm-gru": "model.add_module('reader', nn.RNN(5, 5))\n",
    "truncated-bptt": "model.add_module('reader', nn.LSTM(5, 5))\n",
    "loss-scaling": "model.half()\n",
    "bfloat16": "model.half()\n",
    "float32-weights": "model.half()\n",
    "initialise": "nn.init.constant_(model[0].weight, torch.nan)\n",
    "nonzero-gain": "model.insert(1, nn.LayerNorm(32))\nnn.init.zeros_(model[1].weight)\n",
    "scaled-layer-inputs": "x = 100 * x\n",
    "linear-output": "model.append(nn.Sigmoid())\n",
    "fewer-layers": "model.insert(2, nn.Linear(32, 32)).insert(3, nn.Sigmoid())\n",
}
"""What a program has to which these remedies apply; to that of ``PRELUDE`` they do not."""


@pytest.mark.parametrize("name", LIBRARY)
def test_its_code_runs_or_says_why_it_does_not_apply(name):
    torch.manual_seed(0)
    if name in MADE_SICK:
        with pytest.raises(NotApplicableError):
            exec(compile(PRELUDE + LIBRARY[name].code, name, "exec"), {})
    exec(compile(PRELUDE + MADE_SICK.get(name, "") + LIBRARY[name].code, name, "exec"), {})


FUNCTIONS = ["activation_modules", "batches", "depth", "initialisation", "normalisation", "output_probabilities",
             "precision", "recurrence",
             "safe_forms", "safe_modes", "slope_limits", "updates"]  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_examples_in_docstrings_hold(name):
    module = importlib.import_module(f"gradwatch.remedies.{name}")
    failures, tried = doctest.testmod(module, extraglobs={"torch": torch, "__name__": "__main__"})
    assert (failures, tried > 0) == (0, True)


def test_a_function_that_there_is_not_is_answered_with_those_that_there_are():
    with pytest.raises(AttributeError, match=r"no attribute 'init_hee_'; it has .*init_he_"):
        _ = remedies.init_hee_
    assert set(remedies.__all__) == set(dir(remedies))


# which of them


def mlp(*functions, width=8):
    """Linear layers with these functions behind them, and one more."""
    return nn.Sequential(*(part for f in functions for part in (nn.Linear(width, width), f)), nn.Linear(width, 2))


def choice(kind, model, columns=(), clues=(), **known):
    return fitting(Case(kind, of_model(model), columns, clues=frozenset(clues), **known))


CONVOLUTION = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 2))
LANGUAGE = nn.ModuleDict({"embedding": nn.Embedding(9, 8), "rnn": nn.RNN(8, 8), "out": nn.Linear(8, 9)})
SERIES = nn.Sequential(nn.LSTM(1, 8), nn.Linear(8, 1))
GATED = nn.Sequential(nn.Embedding(9, 8), nn.LSTM(8, 8), nn.Linear(8, 9))
TRANSFORMER = nn.Sequential(nn.Embedding(9, 8), nn.TransformerEncoderLayer(8, 2), nn.Linear(8, 9))
ATTENTION = nn.Sequential(nn.MultiheadAttention(8, 2), nn.Linear(8, 9))
GAN = nn.ModuleDict({"critic": mlp(nn.LeakyReLU()), "generator": mlp(nn.ReLU())})


@pytest.mark.parametrize(
    ("kind", "model", "columns", "clues", "first"),
    [
        ("vanishing", mlp(nn.Sigmoid(), nn.Sigmoid(), nn.Sigmoid()), [0, 2], (), ["batch-norm", "relu", "residual"]),
        ("vanishing", mlp(nn.ReLU(), nn.ReLU(), nn.ReLU()), [0, 2], (), ["he", "batch-norm"]),
        ("vanishing", mlp(nn.Tanh(), nn.Tanh(), nn.Tanh()), [0, 2], (), ["xavier", "batch-norm"]),
        ("vanishing", mlp(nn.Tanh()).half(), [0], (), ["loss-scaling"]),
        ("vanishing", mlp(nn.ReLU()), [0], ["no gradient"], ["lower-learning-rate", "clip-norm", "scaled-inputs"]),
        ("vanishing", LANGUAGE, [1, 2], (), ["orthogonal", "lstm-gru", "truncated-bptt"]),
        ("vanishing", TRANSFORMER, [1], (), ["xavier", "depth-scaled"]),
        ("exploding", mlp(nn.ReLU()), [0], (), ["clip-norm", "lower-learning-rate", "scaled-inputs", "clip-adaptive"]),
        ("exploding", mlp(nn.ReLU()), [0], ["rate rose"], ["lower-learning-rate", "warm-up", "clip-norm"]),
        ("vanishing", mlp(nn.ReLU()), [0], ["faded later"], ["lower-learning-rate", "he"]),
        ("vanishing", mlp(nn.ReLU()), [0], ["weights grown"], ["lower-learning-rate", "he"]),
        ("saturated", mlp(nn.Tanh()), [0], ["weights grown", "large outputs"],
         ["lower-learning-rate", "scaled-inputs"]),
        ("dead", mlp(nn.ReLU()), [0], ["weights grown", "large outputs"], ["lower-learning-rate", "clip-norm"]),
        ("vanishing", SERIES, [0, 1], (), ["scaled-inputs", "lower-learning-rate", "layer-norm"]),
        ("vanishing", GATED, [0, 1], (), ["lower-learning-rate", "layer-norm"]),
        ("exploding", mlp(nn.ReLU()), [0], ["weights large"], ["he", "clip-norm"]),
        ("exploding", mlp(nn.ReLU()), [0], ["bias far out"], ["he", "clip-norm"]),
        ("exploding", LANGUAGE, [0], (), ["clip-value", "clip-norm"]),
        ("exploding", GATED, [1], (), ["clip-norm", "lower-learning-rate", "truncated-bptt", "clip-adaptive"]),
        ("exploding", GAN, [0], (), ["gradient-penalty", "spectral-norm"]),
        ("exploding", GAN, [4], (), ["clip-norm"]),
        ("nonfinite", mlp(nn.ReLU()), [0], ["logarithm"], ["safe-log"]),
        ("nonfinite", mlp(nn.ReLU()), [0], ["root"], ["safe-sqrt"]),
        ("nonfinite", mlp(nn.ReLU()), [0], ["division"], ["safe-division", "safe-sqrt"]),
        ("nonfinite", TRANSFORMER, [0], ["softmax"], ["masked-softmax"]),
        ("nonfinite", mlp(nn.ReLU()), [0], ["exponential"], ["safe-log", "clip-norm"]),
        ("nonfinite", mlp(nn.ReLU()), [0], ["overflow", "before any update"], ["scaled-inputs", "he", "batch-norm"]),
        ("nonfinite", mlp(nn.ReLU()), [0], ["bad batch"], ["clean-data"]),
        ("nonfinite", mlp(nn.ReLU()), [0], ["overflow of float16"], ["bfloat16", "scaled-inputs"]),
        ("nonfinite", mlp(nn.ReLU()), [0], ["scaler gave up"], ["bfloat16", "scaled-inputs"]),
        ("nonfinite", mlp(nn.ReLU()).half(), [0], (), ["bfloat16", "loss-scaling"]),
        ("nonfinite", mlp(nn.ReLU()), [0], ["power"], ["safe-power"]),
        ("nonfinite", mlp(nn.ReLU()), [0], ["arc"], ["safe-angle"]),
        ("nonfinite", mlp(nn.ReLU()), [0], ["decomposition"], ["jitter"]),
        ("nonfinite", mlp(nn.ReLU()), [0], ["another operation"], ["skip-step"]),
        ("nonfinite", mlp(nn.ReLU()), [0], ["bad target"], ["clean-data"]),
        ("nonfinite", mlp(nn.ReLU()), [0], ["sick from the start", "before any update"], ["initialise"]),
        ("nonfinite", mlp(nn.ReLU()), [0], ["sick update"], ["safe-update", "skip-step"]),
        ("nonfinite", mlp(nn.ReLU()), [0], ["sick update", "rate is not finite"], ["finite-rate"]),
        ("nonfinite", mlp(nn.ReLU()), [0], ["sick update", "diverged"], ["clip-norm"]),
        ("nonfinite", mlp(nn.ReLU()).half(), [0], ["sick update", "epsilon is 0"],
         ["optimizer-epsilon", "float32-weights", "bfloat16"]),
        ("exploding", mlp(nn.ReLU()), [0], ["grows along depth"], ["he", "batch-norm", "layer-norm", "depth-scaled"]),
        ("exploding", mlp(nn.ReLU()), [0], ["update too large"],
         ["lower-learning-rate", "scaled-inputs", "clip-norm"]),
        ("exploding", mlp(nn.ReLU()), [0], ["grows without bound"], ["weight-regularisation", "lower-learning-rate"]),
        ("vanishing", mlp(nn.ReLU()), [0], ["one branch"], ["nonzero-gain", "lower-learning-rate"]),
        ("exploding", mlp(nn.ReLU()), [0], ["norm overflows"], ["scaled-inputs", "lower-learning-rate"]),
        ("vanishing", mlp(nn.ReLU()), [0], ["softmax of one", "no gradient"], ["softmax-over-classes"]),
        ("stalled", mlp(nn.ReLU()), [2], ["targets out of reach"], ["linear-output"]),
        ("vanishing", mlp(nn.ReLU()), [0], ["no gradient", "targets out of reach"], ["linear-output"]),
        ("vanishing", mlp(nn.Tanh()), [0], ["factor of 0"], ["nonzero-gain"]),
        ("nonfinite", mlp(nn.ReLU()), [0], ["diverged"], ["clip-norm"]),
        ("nonfinite", mlp(nn.ReLU()), [0], (), ["clean-data", "safe-log", "safe-sqrt", "safe-division"]),
        ("nonfinite", mlp(nn.ReLU()), [0], ["made backward"], ["safe-sqrt", "safe-division", "safe-log"]),
        ("nonfinite", mlp(nn.ReLU()), [0], ["diverged", "division"], ["safe-division", "safe-sqrt", "clip-norm"]),
        ("nonfinite", mlp(nn.ReLU()), [0], ["diverged", "exponential"], ["clip-norm"]),
        ("nonfinite", mlp(nn.ReLU()), [0], ["one batch"], ["clean-data"]),
        ("exploding", mlp(nn.ReLU()), [0], ["one batch"], ["clip-norm", "clean-data"]),
        ("exploding", mlp(nn.ReLU()), [0], ["raw targets"], ["scaled-inputs", "clip-norm"]),
        ("exploding", mlp(nn.ReLU()), [0], ["rate rose", "raw inputs"], ["lower-learning-rate", "scaled-inputs"]),
        ("exploding", mlp(nn.ReLU()), [0], ["weights large", "raw inputs"], ["he", "scaled-inputs"]),
        ("exploding", mlp(nn.ReLU()), [0], ["branches add up"], ["depth-scaled", "batch-norm"]),
        ("exploding", LANGUAGE, [1], ["recurrence grows"], ["orthogonal"]),
        ("exploding", mlp(nn.ReLU()), [0], ["overwritten"], ["initialise"]),
        ("vanishing", mlp(nn.ReLU()), [0], ["flat operation", "no gradient"], ["nonzero-gain", "leaky-relu"]),
        ("vanishing", mlp(nn.GELU()), [0], (), ["batch-norm", "layer-norm", "he"]),
        ("vanishing", mlp(nn.ReLU()), [0], ["no gradient", "weights large"], ["he", "lower-learning-rate"]),
        ("saturated", mlp(nn.Tanh()), [0], ["raw inputs"], ["scaled-inputs"]),
        ("stalled", mlp(nn.ReLU()), (), ["rate decayed"], ["longer-schedule", "higher-learning-rate"]),
        ("dead", mlp(nn.ReLU()), [0], (), ["lower-learning-rate", "clip-norm", "scaled-inputs", "leaky-relu"]),
        ("dead", mlp(nn.ReLU()), [0], ["bias far out"], ["he", "lower-learning-rate"]),
        ("dead", mlp(nn.ReLU()), [0], ["large outputs"], ["scaled-inputs", "lower-learning-rate"]),
        ("dead", CONVOLUTION, [0], (),
         ["lower-learning-rate", "clip-norm", "scaled-inputs", "leaky-relu", "elu", "gelu", "prelu"]),
        ("saturated", mlp(nn.Tanh()), [0], ["weights large"], ["xavier", "batch-norm"]),
        ("saturated", mlp(nn.Tanh()), [0], ["large outputs"], ["scaled-inputs", "batch-norm"]),
        ("saturated", nn.Sequential(nn.LayerNorm(8), mlp(nn.Tanh())), [2], ["large outputs", "weights small"],
         ["scaled-layer-inputs", "lower-learning-rate"]),
        ("stalled", mlp(nn.ReLU()), (), (), ["higher-learning-rate"]),
        ("stalled", mlp(nn.ReLU()), (), ["rate zero"], ["longer-schedule", "higher-learning-rate"]),
        ("stalled", mlp(nn.ReLU()), (), ["clipped away"], ["looser-clip", "higher-learning-rate"]),
        ("stalled", mlp(nn.ReLU()), (), ["rounded away"], ["float32-weights", "higher-learning-rate"]),
        ("stalled", mlp(nn.ReLU()), (0,), ["not owned"], ["own-parameters"]),
        ("stalled", mlp(nn.ReLU()), (0,), ["not owned", "not reached"], ["own-parameters"]),
        ("stalled", mlp(nn.ReLU()), (), ["weights alike"], ["higher-learning-rate", "he"]),
        ("unstable", mlp(nn.ReLU()), (), (), ["lower-learning-rate", "clip-norm", "warm-up"]),
    ],
)  # fmt: skip
def test_the_cause_and_the_sick_layer_decide_what_comes_first(kind, model, columns, clues, first):
    assert list(choice(kind, model, columns, clues)[: len(first)]) == first


def test_two_sick_layers_of_one_model_are_told_different_things():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    convolution, linear = (choice("vanishing", model, [column]) for column in (0, 2))
    assert convolution[0] == "xavier"
    assert linear[0] == "he"
    assert set(convolution) != set(linear)
    layers = of_model(model)
    first, second = (advise(Case("saturated", layers, [column])) for column in (0, 2))
    assert Advice("batch-norm", "batch normalisation (BatchNorm2d) before Tanh") in first
    assert Advice("batch-norm", "batch normalisation (BatchNorm1d) between layers") in second


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", [mlp(nn.Sigmoid()), CONVOLUTION, LANGUAGE, GATED, TRANSFORMER, GAN])
def test_every_kind_has_remedies_of_the_library_for_any_model_each_once(kind, model):
    said = advise(Case(kind, of_model(model), [0]))
    names = [advice.name for advice in said]
    assert names
    assert set(names) <= KEYS
    assert len(set(names)) == len(names)
    assert not any("{" in advice.text for advice in said)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", [mlp(nn.Sigmoid()), mlp(nn.ReLU()).half(), CONVOLUTION, LANGUAGE, GATED,
                                   TRANSFORMER, ATTENTION, GAN])  # fmt: skip
def test_what_is_advised_is_what_prescribe_tries(kind, model):
    """Whatever the cause says: what a finding advises is told to fit its kind."""
    tried = {name for name, remedy in LIBRARY.items() if kind in remedy.kinds}
    layers = of_model(model)
    cases = (Case(kind, layers, [column], clues=frozenset({clue})) for clue in get_args(Clue) for column in (0, 1, 2))
    assert set().union(*map(fitting, cases)) <= tried


@pytest.mark.parametrize("kind", KINDS)
def test_bare_tensors_are_advised_too(kind):
    assert advise(Case(kind, of_tensors({"w": torch.zeros(2)})))


@pytest.mark.parametrize("kind", ["exploding", "nonfinite", "unstable"])
def test_clipping_is_advised_only_where_it_is_not_done(kind):
    assert "clip-norm" in choice(kind, mlp(nn.ReLU()))
    assert "clip-norm" not in choice(kind, mlp(nn.ReLU()), clips=True)


@pytest.mark.parametrize("kind", ["vanishing", "exploding", "unstable"])
@pytest.mark.parametrize("norm", [nn.BatchNorm1d(8), nn.LayerNorm(8), nn.GroupNorm(1, 8), nn.RMSNorm(8)])
def test_normalisation_is_advised_only_where_there_is_none(kind, norm):
    assert "batch-norm" in choice(kind, mlp(nn.ReLU()))
    assert "batch-norm" not in choice(kind, nn.Sequential(mlp(nn.ReLU()), norm))


def test_a_normalising_module_of_another_library_counts_by_its_name():
    class LlamaRMSNorm(nn.Module):
        pass

    assert "batch-norm" not in choice("vanishing", nn.Sequential(mlp(nn.ReLU()), LlamaRMSNorm()))


@pytest.mark.parametrize("kind", KINDS)
def test_token_ids_are_not_to_be_scaled(kind):
    """Whatever else is sick with the embedding, and where a bias of the model's own comes before it."""
    tied = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 9))
    tied.register_parameter("offset", nn.Parameter(torch.zeros(8)))
    for clue in {*get_args(Clue)} - {"raw targets"}:
        assert "scaled-inputs" not in choice(kind, tied, clues=[clue])
        assert "scaled-inputs" not in choice(kind, tied, [0, 1, 2], clues=[clue])
    assert any("scaled-inputs" in choice(kind, mlp(nn.Tanh()), [0], clues=[clue]) for clue in get_args(Clue))


def test_no_skip_or_shorter_stack_is_advised_around_recurrent_weights():
    for model in (SERIES, GATED, LANGUAGE):
        assert not {"residual", "fewer-layers"} & set(choice("vanishing", model, [1, 2]))


@pytest.mark.parametrize("clue", ["overflow", "exponential", "overflow of float16", "logarithm", "root"])
def test_nothing_that_changes_updates_is_advised_for_what_came_before_any(clue):
    assert not UPDATES & set(choice("nonfinite", mlp(nn.ReLU()), [0], [clue, "before any update"]))
    assert not UPDATES & set(choice("nonfinite", mlp(nn.ReLU()), [0], ["before any update"]))
    assert UPDATES & set(choice("nonfinite", mlp(nn.ReLU()), [0]))


def test_residual_connections_are_advised_where_none_are_known():
    assert "residual" in choice("vanishing", mlp(nn.ReLU()), [0])
    assert "residual" not in choice("vanishing", TRANSFORMER, [1])


def test_the_function_behind_a_layer_is_told_by_name():
    model = mlp(nn.Sigmoid(), nn.ReLU(), nn.Tanh())
    assert any("in place of Sigmoid," in said.text for said in advise(Case("vanishing", of_model(model), [0])))
    both = advise(Case("vanishing", of_model(model), [0, 4]))
    assert any("in place of Sigmoid and Tanh," in advice.text for advice in both)


def test_a_function_behind_normalisation_belongs_to_the_layer_before_it():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2), nn.Tanh(), nn.Linear(2, 2), nn.ReLU())
    assert of_model(model).followed_by == (*[frozenset({"Tanh"})] * 4, *[frozenset({"ReLU"})] * 2)


def test_a_known_learning_rate_becomes_a_figure():
    said = advise(Case("exploding", of_model(mlp(nn.ReLU())), [0], rate=0.3, lower_rate=0.03))
    assert Advice("lower-learning-rate", "a lower learning rate (0.03 where it is 0.3)") in said


# end to end: the cause of a real run


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def masked(x):
    return x.masked_fill(x < 100, -math.inf).softmax(-1)


def first_remedy(function, loss=lambda outputs: outputs.square().mean(), inputs=None):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), Function(function), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with gradwatch.watch(model, optimizer) as watcher:
        value = loss(model(torch.randn(8, 4) if inputs is None else inputs))
        watcher.observe_loss(value)
        value.backward()
        optimizer.step()
    return watcher.findings[0].remedies[0].name


@pytest.mark.parametrize(
    ("function", "remedy"),
    [
        (torch.log, "safe-log"),
        (torch.sqrt, "safe-sqrt"),
        (lambda x: (x - x).sqrt() + x, "safe-sqrt"),  # finite, but its derivative is not
        (lambda x: (x - x).norm(dim=1, keepdim=True).sqrt() + x, "safe-sqrt"),
        (lambda x: (x - x) / (x - x), "safe-division"),
        (lambda x: 1 / (x - x), "safe-division"),
        (masked, "masked-softmax"),
        (lambda x: (1e4 * x.abs() + 1e5).half().float(), "bfloat16"),
        (lambda x: (x - x).pow(0.5) + x, "safe-power"),
        (lambda x: (x - x + 1).acos() + x, "safe-angle"),
        (lambda x: torch.linalg.svd((x - x)[:, None].expand(-1, 4, 4))[0].abs().sum(1), "jitter"),
        (lambda x: (1000 * x.abs() + 1000).exp(), "safe-log"),
        (lambda x: (1e25 * x) * (1e25 * x), "scaled-inputs"),
    ],
)
def test_the_operation_that_made_a_nan_names_the_remedy(function, remedy):
    assert first_remedy(function) == remedy


@pytest.mark.parametrize(
    ("loss", "remedy"),
    [
        (lambda outputs: (outputs - outputs.amax() - 1).log().mean(), "safe-log"),
        (lambda outputs: (outputs - outputs).sqrt().mean(), "safe-sqrt"),
        (lambda outputs: (outputs / (outputs - outputs)).mean(), "safe-division"),
        (lambda outputs: (outputs[None] - outputs[:, None]).pow(2).sum(-1).sqrt().mean(), "safe-sqrt"),
        (lambda outputs: (1e4 * outputs.abs()).exp().sum().log(), "safe-log"),
        (lambda outputs: (outputs - outputs + 1).acos().mean(), "safe-angle"),
        (lambda outputs: (outputs - outputs).pow(0.3).mean(), "safe-power"),
    ],
)
def test_so_does_one_in_the_loss(loss, remedy):
    assert first_remedy(torch.relu, loss) == remedy


def test_a_broken_row_asks_for_clean_data():
    inputs = torch.randn(8, 4)
    inputs[3, 1] = math.nan
    assert first_remedy(torch.relu, inputs=inputs) == "clean-data"


def names_of(remedies):
    return [advice.name for advice in remedies]


def remedies_of(kind, model, steps=25, optimizer=None, inputs=lambda: torch.randn(32, 8), loss_of=None):
    torch.manual_seed(0)
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.03)
    with gradwatch.watch(model, optimizer) as watcher:
        for _ in range(steps):
            outputs = model(inputs())
            loss = (outputs - 1).square().mean() if loss_of is None else loss_of(outputs)
            watcher.observe_loss(loss)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    (finding,) = (found for found in watcher.findings if found.kind == kind)
    return finding.remedies


def test_what_was_measured_when_a_finding_opened_decides_too():
    model = mlp(nn.ReLU())
    nn.init.constant_(model[0].bias, -10.0)
    assert remedies_of("dead", model)[0] == Advice("he", "He initialisation of 0.weight, biases 0")

    torch.manual_seed(0)
    model = mlp(nn.Tanh(), nn.Tanh())
    for layer in (model[0], model[2]):
        nn.init.normal_(layer.weight, std=20.0)
    assert remedies_of("saturated", model)[0].name == "xavier"


def test_a_rate_that_is_known_is_told_with_a_tenth_of_it():
    model = mlp(nn.ReLU())
    nn.init.constant_(model[0].bias, -10.0)
    lower = Advice("lower-learning-rate", "a lower learning rate (0.003 where it is 0.03)")
    assert lower in remedies_of("dead", model)


def test_every_steep_operation_of_a_loss_is_answered():
    """Squares are none: their slope at 0 is 0."""
    remedies = remedies_of(
        "nonfinite", mlp(nn.ReLU()), 1, loss_of=lambda y: (y - y).pow(2).sum().sqrt() * (y.pow(2).sum() + 1).log()
    )
    assert names_of(remedies) == ["safe-log", "safe-sqrt"]


def test_an_exponential_of_the_loss_that_overflows_at_once_is_no_matter_of_updates():
    """A contrastive loss by its formula."""
    similar = lambda y: (F.normalize(y) @ F.normalize(y).T / 0.01).exp()
    remedies = remedies_of(
        "nonfinite", mlp(nn.ReLU()), 1, loss_of=lambda y: -(similar(y).diag() / similar(y).sum(1)).log().mean()
    )
    assert remedies[0].text.startswith("logsumexp, log_softmax")
    assert not UPDATES & set(names_of(remedies))


class LastOutput(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(1, 16, batch_first=True), nn.Linear(16, 1)

    def forward(self, x):
        return self.out(self.lstm(x)[0][:, -1])


def test_gates_that_raw_numbers_saturate_ask_for_scaled_inputs():
    model = LastOutput()
    adam = torch.optim.Adam(model.parameters(), lr=0.01)
    raw = lambda: 20_000 + 8_000 * torch.randn(32, 12, 1)
    names = names_of(remedies_of("vanishing", model, 25, adam, raw, lambda y: (y - 20_000).square().mean()))
    assert names[:2] == ["scaled-inputs", "lower-learning-rate"]


def test_weights_that_a_divergence_made_large_are_no_matter_of_initialisation():
    torch.manual_seed(0)
    raw, model = (lambda: 200 * torch.randn(32, 8)), mlp(nn.ReLU(), nn.ReLU())
    names = names_of(remedies_of("exploding", model, 6, torch.optim.SGD(model.parameters(), lr=0.01), raw))
    assert names[0] == "scaled-inputs"  # a clipped run of raw inputs stays where it is
    assert not {"he", "xavier"} & set(names)


def test_layers_that_gradients_reached_at_first_ask_for_a_lower_rate():
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(6)), nn.Linear(8, 1))
    adam = torch.optim.Adam(model.parameters(), lr=1.0)
    assert names_of(remedies_of("vanishing", model, 60, adam))[0] == "lower-learning-rate"

    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Sequential(nn.Linear(8, 8), nn.Tanh()) for _ in range(6)), nn.Linear(8, 1))
    adam = torch.optim.Adam(model.parameters(), lr=3.0)
    assert names_of(remedies_of("saturated", model, 60, adam))[0] == "lower-learning-rate"

    assert names_of(remedies_of("vanishing", faint(), 25))[0] == "xavier"


def faint():
    """Whose first weights are so small that no gradient ever reaches them."""
    torch.manual_seed(0)
    model = mlp(*(nn.Tanh() for _ in range(6)))
    for layer in model[:-1:2]:
        nn.init.normal_(layer.weight, std=0.02)
    return model


class Coder(nn.Module):
    """What a variational autoencoder samples, its log-variances begun at 80."""

    def __init__(self):
        super().__init__()
        self.mean, self.log_variance, self.out = nn.Linear(8, 4), nn.Linear(8, 4), nn.Linear(4, 8)
        nn.init.constant_(self.log_variance.bias, 80.0)

    def forward(self, x):
        log_variance = self.log_variance(x)
        return self.out(self.mean(x) + torch.randn(len(x), 4) * (0.5 * log_variance).exp())


def test_a_bias_far_out_in_another_layer_is_seen():
    torch.manual_seed(0)
    model = Coder()
    assert names_of(remedies_of("exploding", model, 25, torch.optim.Adam(model.parameters(), lr=1e-3)))[0] in (
        "he",
        "xavier",
    )


@pytest.mark.parametrize("cut", ["detach", "item", "argmax"])
def test_a_loss_that_does_not_reach_the_model_is_to_be_connected_not_the_optimizer_made_anew(cut):
    torch.manual_seed(0)
    model = mlp(nn.ReLU())
    optimizer = torch.optim.Adam(model.parameters())
    with gradwatch.watch(model, optimizer) as watcher:
        for _ in range(100):
            output = model(torch.randn(8, model[0].in_features))
            loss = {
                "detach": lambda value: value.detach().square().mean().requires_grad_(),
                "item": lambda value: torch.tensor(value.square().mean().item(), requires_grad=True),
                "argmax": lambda value: value.argmax(1).float().mean().requires_grad_(),
            }[cut](output)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    (finding,) = watcher.findings
    assert finding.kind == "stalled"
    assert finding.remedies[0].text.startswith("compute the loss from what the model returns, without detach()")
