"""The code to paste is what was tried: each remedy's treatment and its code, on the same model under the same seed."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradwatch
from gradwatch.prescription import formulas
from gradwatch.prescription.problem import given
from gradwatch.prescription.setup import NotApplicableError, Setup
from gradwatch.prescription.training import stepper
from gradwatch.prescription.treatments import TREATMENTS, code_of
from gradwatch.remedies import LIBRARY

FORMULAS = {"safe-log", "safe-sqrt", "safe-division", "masked-softmax"}
SETTINGS = {
    "lower-learning-rate": "before training",
    "higher-learning-rate": "before training",
    "warm-up": "before training",
    "clip-norm": "before training",
    "clip-value": "before training",
    "clip-adaptive": "before training",
    "scaled-inputs": "before training",
    "clean-data": "before training",
    "smaller-batches": "before training",
    "weight-regularisation": "before backward",
    "gradient-penalty": "before backward",
    "weight-clipping": "after the update",
    "loss-scaling": "the whole update",
}
"""Where the code stands of those that change no model."""
FUNCTIONS = {"relu", "leaky-relu", "prelu", "elu", "selu", "gelu"}
MODEL = [t for t in TREATMENTS if t.remedy not in FORMULAS | set(SETTINGS)]


def treatment_of(remedy):
    return next(t for t in TREATMENTS if t.remedy == remedy)


def program(**names):
    """What a program of the user's own has."""
    fixed = {"torch": torch, "nn": nn, "F": F, "gradwatch": gradwatch, "loss_fn": nn.CrossEntropyLoss()}
    return {**fixed, "x": torch.randn(16, 6), **names}


def test_every_remedy_is_held_to_its_code_in_one_way():
    ways = [set(SETTINGS), FORMULAS, {t.remedy for t in MODEL}]
    assert set().union(*ways) == set(LIBRARY)
    assert sum(map(len, ways)) == len(LIBRARY)
    assert all(t.code == LIBRARY[t.remedy].code for t in TREATMENTS if not t.strength)


# changes of the model


def stack():
    return nn.Sequential(
        nn.Linear(6, 8, bias=False), nn.Sigmoid(), nn.Linear(8, 8), nn.ReLU(), nn.Dropout(0.0), nn.Linear(8, 8),
        nn.Tanh(), nn.Linear(8, 8, bias=False), nn.Softplus(), nn.Linear(8, 3), nn.Sigmoid(),
    )  # fmt: skip


def images():
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1), nn.Tanh(), nn.Conv2d(4, 4, 3, padding=1), nn.GroupNorm(1, 4), nn.LeakyReLU(),
        nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip


def bare_images():
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3, bias=False),
    )  # fmt: skip


def signals():
    return nn.Sequential(
        nn.Unflatten(1, (1, 6)), nn.Conv1d(1, 4, 3, padding=1), nn.Softsign(), nn.Conv1d(4, 4, 3, padding=1), nn.ELU(),
        nn.Conv1d(4, 4, 3, padding=1), nn.Hardtanh(), nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip


def autoencoder():
    return nn.Sequential(
        nn.Unflatten(1, (1, 2, 3)), nn.Conv2d(1, 4, 3, padding=1), nn.Sigmoid(),
        nn.ConvTranspose2d(4, 4, 3, padding=1), nn.Sigmoid(), nn.ConvTranspose2d(4, 2, 3, padding=1), nn.Sigmoid(),
        nn.ConvTranspose2d(2, 1, 3, padding=1), nn.Sigmoid(),
    )  # fmt: skip


def pieces():
    """A layer of (N, time, features), then of (N, features)."""
    return nn.Sequential(
        nn.Unflatten(1, (3, 2)), nn.Linear(2, 8), nn.ReLU(), nn.Flatten(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 3)
    )


class Custom(nn.Module):
    """Functions called in ``forward``, a ``Sequential`` inside, a normalisation whose scale somebody has changed."""

    def __init__(self):
        super().__init__()
        self.first, self.inner = nn.Linear(6, 8), nn.Sequential(nn.Linear(8, 8), nn.ELU())
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)
        nn.init.constant_(self.norm.weight, 50.0)

    def forward(self, x):
        return self.head(self.norm(self.inner(torch.tanh(self.first(x)))))


class Reader(nn.Module):
    """(N, 6) numbers, read one at a time."""

    def __init__(self, recurrent):
        super().__init__()
        self.recurrent, self.head = recurrent, nn.Linear(5, 3)

    def forward(self, x):
        outputs, state = self.recurrent(x.unsqueeze(-1).repeat(1, 4, 1))
        hidden = state[0] if isinstance(state, tuple) else state
        return self.head(outputs[:, -1, :5] + hidden[-1])


class Cells(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell, self.head = nn.RNNCell(2, 5, bias=False), nn.Linear(5, 3)

    def forward(self, x):
        state = None
        for piece in x.split(2, 1):
            state = self.cell(piece, state)
        return self.head(state)


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.attend, self.norm = nn.MultiheadAttention(6, 2, batch_first=True), nn.LayerNorm(6)
        self.middle, self.head = nn.Sequential(nn.Linear(6, 6), nn.GELU()), nn.Linear(6, 3)

    def forward(self, x):
        x = torch.stack([x, 2 * x], 1)
        return self.head(self.middle(self.norm(self.attend(x, x, x)[0].mean(1))))


def transformer():
    return nn.Sequential(
        nn.Unflatten(1, (3, 2)), nn.Linear(2, 8), nn.Tanh(),
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation=nn.GELU(), batch_first=True), nn.Flatten(),
        nn.Linear(24, 3),
    )  # fmt: skip


MODELS = {
    "stack": stack,
    "images": images,
    "bare images": bare_images,
    "signals": signals,
    "autoencoder": autoencoder,
    "pieces": pieces,
    "custom": Custom,
    "recurrent": lambda: Reader(nn.RNN(1, 5, num_layers=2, nonlinearity="relu", batch_first=True)),
    "both ways": lambda: Reader(nn.RNN(1, 5, num_layers=2, dropout=0.5, bidirectional=True, batch_first=True)),
    "cells": Cells,
    "lstm": lambda: Reader(nn.LSTM(1, 5, batch_first=True)),
    "attention": Attends,
    "transformer": transformer,
}
UNLIKE = {
    **{(remedy, "custom"): "calls in forward are the user's to change" for remedy in FUNCTIONS - {"prelu"}},
    ("residual", "attention"): "it returns its weights, too: where the skip belongs is for its forward to say",
}
"""Where code and treatment are meant to differ, and why."""


def both(treatment, make_model):
    """The model as treated, and as changed by the code, each under the same seed."""
    torch.manual_seed(0)
    treated = make_model()
    pasted = copy.deepcopy(treated)
    torch.manual_seed(1)
    setup = Setup(treated, [(torch.randn(16, 6), torch.randint(3, (16,)))], F.cross_entropy)
    torch.manual_seed(1)
    treatment.change(setup)
    names = program(model=pasted)
    torch.manual_seed(1)
    exec(treatment.code, names)
    return setup.model, pasted


def gradients(model, x):
    for parameter in model.parameters():
        parameter.grad = None
    torch.manual_seed(2)
    output = model(x)
    output.square().sum().backward()
    return output, [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("treatment", MODEL, ids=lambda treatment: treatment.remedy)
def test_pasted_code_makes_the_model_that_was_tried(treatment):
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(3))
    compared = 0
    for name, make_model in MODELS.items():
        try:
            treated, pasted = both(treatment, make_model)
        except NotApplicableError:
            continue
        output, slopes = gradients(treated, x)
        if (treatment.remedy, name) in UNLIKE:
            assert not torch.equal(pasted(x), output), name  # or it need not be in the table
            continue
        their_output, their_slopes = gradients(pasted, x)
        torch.testing.assert_close(their_output, output, msg=lambda text, name=name: f"{name}: {text}")
        torch.testing.assert_close(their_slopes, slopes, msg=lambda text, name=name: f"{name}: {text}")
        with torch.no_grad():
            torch.testing.assert_close(pasted.eval()(x), treated.eval()(x))  # modules of torch have short cuts there
        compared += 1
    assert compared >= 2


def test_a_part_in_two_places_goes_from_both():
    shared = nn.Sigmoid()
    pasted = nn.Sequential(nn.Linear(6, 5), shared, nn.Linear(5, 5), shared, nn.Linear(5, 3))
    exec(LIBRARY["relu"].code, program(model=pasted))
    assert [type(part) for part in pasted] == [nn.Linear, nn.ReLU, nn.Linear, nn.ReLU, nn.Linear]


def test_pairs_are_pasted_one_after_the_other():
    treatments = [treatment_of(remedy) for remedy in ("leaky-relu", "he", "residual", "batch-norm")]
    for first, second in itertools.pairwise(treatments):
        treated, pasted = stack(), stack()
        pasted.load_state_dict(treated.state_dict())
        x = torch.randn(16, 6)
        setup = Setup(treated, [(x, torch.randint(3, (16,)))], F.cross_entropy)
        torch.manual_seed(1)
        first.change(setup)
        second.change(setup)
        names = program(model=pasted)
        torch.manual_seed(1)
        exec(code_of((first, second)), names)
        torch.testing.assert_close(pasted(x), treated(x))


# settings: the weights after three updates

SETTING = [t for t in TREATMENTS if t.remedy in SETTINGS and t.remedy != "loss-scaling"]


def data():
    """Six batches: one with a NaN, one with a wild number; features of different size, one that never changes."""
    generator = torch.Generator().manual_seed(5)
    batches = [
        (4 + 3 * torch.randn(16, 6, generator=generator), torch.randint(3, (16,), generator=generator))
        for _ in range(6)
    ]
    for x, _ in batches:
        x[:, 5] = 2.0
    batches[1][0][3, 2] = math.nan
    batches[2][0][0, 0] = 1e6
    return batches


def a_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    return model, torch.optim.SGD(model.parameters(), lr=0.05)


def as_tried(treatment, batches):
    model, optimizer = a_model()
    setup = Setup(model, batches, nn.CrossEntropyLoss())
    treatment.change(setup)
    with gradwatch.watch(setup.model, optimizer, clip=setup.clip) as watcher:
        step = stepper(setup, optimizer, watcher.observe_loss)
        for number in range(3):
            step(number)
    return model


def as_pasted(code, place, batches):
    model, optimizer = a_model()
    names = program(model=model, optimizer=optimizer, batches=batches)

    def paste(here):
        if place == here:
            exec(code, names)

    paste("before training")
    for number in range(3):
        x, y = names["batches"][number % len(names["batches"])]
        names |= {"x": x, "y": y, "loss": F.cross_entropy(model(x), y)}
        paste("before backward")
        optimizer.zero_grad()
        names["loss"].backward()
        optimizer.step()
        paste("after the update")
        if "warm_up" in names:
            names["warm_up"].step()
    if "watcher" in names:
        names["watcher"].observe_loss(names["loss"])
        names["watcher"].close()
    return model


@pytest.mark.parametrize("treatment", SETTING, ids=lambda treatment: treatment.remedy + treatment.strength)
def test_pasted_settings_train_as_the_trial_did(treatment):
    sound = treatment.remedy != "clean-data"
    batches = data()[3:] if sound else data()
    tried = as_tried(treatment, batches)
    pasted = as_pasted(treatment.code, SETTINGS[treatment.remedy], batches)
    untreated = as_pasted("", "before training", batches)
    torch.testing.assert_close(list(pasted.parameters()), list(tried.parameters()))
    if treatment.remedy != "clip-adaptive":  # which clips spikes alone: here it must change nothing
        assert not torch.equal(pasted[0].weight, untreated[0].weight)


def broken_rows():
    """A NaN or Inf in every batch, in inputs or targets; a wild row in one, no sound row in another."""
    generator = torch.Generator().manual_seed(5)
    batches = [(torch.randn(16, 2, 6, generator=generator), torch.randn(16, generator=generator)) for _ in range(6)]
    for number, (x, y) in enumerate(batches):
        x[number, 1, number] = math.nan
        y[number + 2] = -math.inf
    batches[2][0][9, 0, 0] = 1e4
    batches[4][0][:, 1, 2] = math.inf
    return batches


def silent_batches():
    """Most hold nothing but zeros: there is no usual size, so that nothing is wild."""
    batches = [(torch.zeros(4, 6), torch.arange(4)) for _ in range(5)]
    batches[1][0][:] = 5.0
    batches[2][0][3, 1] = math.nan
    return batches


@pytest.mark.parametrize(
    ("make_batches", "lengths"), [(broken_rows, [14, 14, 13, 14, 14]), (silent_batches, [4, 4, 3, 4, 4])]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_rows_left_out_by_the_code_are_those_of_the_trial(make_batches, lengths, dtype):
    batches = [(x.to(dtype), y) for x, y in make_batches()]
    setup = Setup(nn.Identity(), batches, lambda output, y: torch.zeros(()))
    treatment_of("clean-data").change(setup)
    names = program(batches=batches, model=setup.model, loss_fn=setup.loss_fn)
    exec(LIBRARY["clean-data"].code, names)
    assert [len(x) for x, _ in setup.batches] == lengths
    torch.testing.assert_close(names["batches"], setup.batches, rtol=0, atol=0)


def structures(broken):
    """Batches of a mapping and a tuple."""
    generator = torch.Generator().manual_seed(5)
    batches = [
        ({"a": torch.randn(9, 6, generator=generator)}, (torch.arange(9), torch.randn(9, generator=generator)))
        for _ in range(4)
    ]
    batches[1][0]["a"][3, 2] = math.nan if broken else 0.0
    return batches


@pytest.mark.parametrize("remedy", ["clean-data", "smaller-batches"])
def test_batches_of_any_structure_are_changed_by_the_code_as_in_the_trial(remedy):
    model = nn.Linear(6, 1)
    model.forward = lambda a: F.linear(a, model.weight)
    batches = structures(broken=remedy == "clean-data")
    setup = Setup(model, list(batches), lambda output, y: (output.squeeze(1) - y[1]).square().mean())
    treatment_of(remedy).change(setup)
    names = program(batches=batches, model=model, loss_fn=setup.loss_fn)
    exec(code_of((treatment_of(remedy),), given(model, batches[0][0])), names)
    torch.testing.assert_close(names["batches"], setup.batches)
    assert len(setup.batches) == (4 if remedy == "clean-data" else 12)


@pytest.mark.parametrize("inputs", [torch.ones(4, 6), (torch.ones(4, 6),), {"x": torch.ones(4, 6)}], ids=type)
def test_code_gives_the_model_its_inputs_as_the_trial_does(inputs):
    model = stack()
    model.forward = lambda x: nn.Sequential.forward(model, x)
    exec(code_of((treatment_of("relu"),), given(model, inputs)), program(model=model, x=inputs))
    assert isinstance(model[1], nn.ReLU)


def test_targets_of_any_structure_are_left_by_the_code_of_scaled_inputs():
    batches = [(5 * torch.randn(9, 6), (torch.arange(9), torch.randn(9))) for _ in range(4)]
    names = program(batches=batches)
    exec(LIBRARY["scaled-inputs"].code, names)
    assert names["batches"][0][1] is batches[0][1]
    assert torch.cat([x for x, _ in names["batches"]]).std(0, correction=0).tolist() == pytest.approx([1.0] * 6)


def test_batches_without_a_loss_are_left_out_by_the_code_too():
    batches = [(torch.randn(4, 6), torch.arange(4) % 3) for _ in range(4)]
    batches[2] = batches[2][0], torch.full((4,), -100)  # which cross entropy ignores
    setup = Setup(nn.Sequential(nn.Linear(6, 3), nn.Dropout()), list(batches), F.cross_entropy)
    treatment_of("clean-data").change(setup)
    names = program(batches=batches, model=setup.model, loss_fn=setup.loss_fn)
    exec(LIBRARY["clean-data"].code, names)
    sound = [batches[number] for number in (0, 1, 3)]
    torch.testing.assert_close(setup.batches, sound)
    torch.testing.assert_close(names["batches"], sound)
    assert setup.model.training


def constant_features(generator):
    """As scikit-learn's digits have: pixels that are 0 in every image."""
    return torch.randn(16, 6, generator=generator).mul(5).masked_fill(torch.arange(6) == 0, 0.0)


@pytest.mark.parametrize("shape", [(), (1,), (2,)])
@pytest.mark.parametrize(
    ("first", "inputs"),
    [
        (lambda: nn.Linear(6, 4), constant_features),
        (lambda: nn.Sequential(nn.Conv1d(1, 2, 3), nn.Flatten(), nn.Linear(8, 4)),
         lambda generator: 100 + 9 * torch.randn(16, 1, 6, generator=generator)),
        (lambda: nn.Embedding(9, 4), lambda generator: torch.randint(9, (16,), generator=generator)),
    ],
    ids=["features, one constant", "a signal", "token ids"],
)  # fmt: skip
def test_large_targets_are_scaled_by_the_code_too(first, inputs, shape):
    generator = torch.Generator().manual_seed(0)
    weight = torch.tensor([1.0, 50.0])[: shape[0]] if shape else torch.tensor(1.0)
    targets = [200 + 80 * weight * torch.randn(16, *shape, generator=generator) for _ in range(3)]
    batches = [(inputs(generator), y) for y in targets]
    torch.manual_seed(0)
    model = nn.Sequential(first(), nn.Tanh(), nn.Linear(4, math.prod(shape)), *([] if shape else [nn.Flatten(0)]))
    tried, pasted = copy.deepcopy(model), copy.deepcopy(model)
    setup = Setup(tried, batches, F.mse_loss)
    treatment_of("scaled-inputs").change(setup)
    step = stepper(setup, torch.optim.SGD(tried.parameters(), lr=0.1), lambda loss: None)
    names = program(batches=batches)
    exec(LIBRARY["scaled-inputs"].code, names)
    optimizer = torch.optim.SGD(pasted.parameters(), lr=0.1)
    for number, (x, y) in enumerate(names["batches"]):
        step(number)
        optimizer.zero_grad()
        F.mse_loss(pasted(x), y).backward()
        optimizer.step()
    torch.testing.assert_close(list(pasted.parameters()), list(tried.parameters()))
    assert not torch.allclose(pasted[2].weight, model[2].weight)


@pytest.mark.parametrize("treatment", MODEL, ids=lambda treatment: treatment.remedy)
def test_code_that_makes_weights_says_on_which_side_of_the_optimizer_it_belongs(treatment):
    makes_weights = False
    for make_model in MODELS.values():
        model = make_model()
        before = {id(parameter) for parameter in model.parameters()}
        exec(treatment.code, program(model=model))
        makes_weights |= not {id(parameter) for parameter in model.parameters()} <= before
    assert treatment.code.startswith("# before the optimizer is made") == makes_weights


def test_loss_scaling_pasted_trains_nearly_as_the_trial_did():
    """The code computes in half precision, which the trial left out: float16 has ten binary digits."""
    (x, y), *_ = data()
    models = [a_model() for _ in range(2)]
    (tried, optimizer), (pasted, their_optimizer) = models
    for model, _ in models:
        model.half()
    setup = Setup(tried, [(x.half(), y)], nn.CrossEntropyLoss())
    treatment_of("loss-scaling").change(setup)
    stepper(setup, optimizer, lambda loss: None)(0)
    names = program(model=pasted, optimizer=their_optimizer, x=x.half(), y=y)
    exec(LIBRARY["loss-scaling"].code, names)
    names["watcher"].observe_loss(names["loss"])
    names["watcher"].close()
    assert next(pasted.parameters()).dtype == torch.float32
    torch.testing.assert_close(list(pasted.parameters()), list(tried.parameters()), rtol=2e-3, atol=1e-3)


# formulas

OVER = torch.tensor([[2.0, 0.5, 1e-8, 0.0], [-1.0, -1e-8, 0.25, 3.0]])
MASKED = torch.tensor([[1.0, -math.inf, 0.5], [-math.inf, -math.inf, -math.inf]])


@pytest.mark.parametrize(
    ("remedy", "mode", "plain", "pasted"),
    [
        ("safe-log", formulas.SafeLog, torch.log, "safe_log(x)"),
        ("safe-log", formulas.SafeLog, lambda x: (200 * x).exp(), "safe_exp(200 * x)"),
        ("safe-sqrt", formulas.SafeSqrt, torch.sqrt, "safe_sqrt(x)"),
        ("safe-sqrt", formulas.SafeSqrt, lambda x: x.norm(dim=-1), "safe_norm(x)"),
        ("safe-division", formulas.SafeDivision, lambda x: x.flip(1) / x, "safe_divide(x.flip(1), x)"),
        ("safe-division", formulas.SafeDivision, lambda x: 1 / x, "safe_divide(1, x)"),
        ("masked-softmax", formulas.SafeSoftmax, lambda x: x.softmax(-1), "safe_softmax(x)"),
    ],
)
def test_pasted_formulas_are_those_that_were_tried(remedy, mode, plain, pasted):
    values = MASKED if remedy == "masked-softmax" else OVER
    ours, theirs = (values.clone().requires_grad_() for _ in range(2))
    with mode():
        expected = plain(ours)
    names = program(x=theirs)
    exec(LIBRARY[remedy].code, names)
    found = eval(pasted, names)
    weights = torch.arange(1.0, 1 + found.numel()).view_as(found)
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(theirs.grad, ours.grad)
    assert found.isfinite().all()
    assert theirs.grad.isfinite().all()
