"""The code to paste is what a trial executes: the same model and the same training come of both."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradwatch
from gradwatch import remedies
from gradwatch.prescription.training import stepper
from gradwatch.prescription.treatments import TREATMENTS, code_of
from gradwatch.prescription.trial_program import TrialProgram
from gradwatch.remedies import LIBRARY, NotApplicableError, PartlyAppliedWarning

DATA = {"scaled-inputs", "clean-data", "smaller-batches"}
SAFE = {"safe-log", "safe-sqrt", "safe-division", "masked-softmax", "safe-power", "safe-angle", "jitter",
        "softmax-over-classes", "output-probabilities"}  # fmt: skip
FOR_OTHER_MODELS = {"loss-scaling", "bfloat16", "float32-weights", "initialise", "nonzero-gain", "scaled-layer-inputs",
                    "linear-output"}  # fmt: skip
"""Those for half precision, weights that are NaN, gains that are 0, large inputs and functions at the output."""
FOR_SICK_UPDATES = {"optimizer-epsilon", "safe-update", "finite-rate", "skip-step", "own-parameters", "longer-schedule",
                    "looser-clip", "zero-grad", "zero-grad-after-step", "unscale-first",
                    "target-network", "non-saturating-loss"}  # fmt: skip
"""Those that change nothing where every update is finite and made, by a loop whose calls are in order."""
OF_MODELS = [
    treatment
    for treatment in TREATMENTS
    if treatment.change.place == "before the optimizer is made" and treatment.remedy not in DATA | SAFE
]
OF_TRAINING = [
    treatment
    for treatment in TREATMENTS
    if treatment.change.place != "before the optimizer is made" or treatment.remedy in DATA
]


def treatment_of(remedy):
    return next(t for t in TREATMENTS if t.remedy == remedy)


def program(**names):
    """The names that a program of the user's own has."""
    fixed = {"torch": torch, "nn": nn, "gradwatch": gradwatch, "loss_fn": nn.CrossEntropyLoss()}
    return {**fixed, "x": torch.randn(16, 6), **names}


def batches_of(x):
    return [(x, torch.randint(3, (len(x),)))]


def test_every_remedy_is_tried_by_the_code_that_it_shows():
    assert {treatment.remedy for treatment in TREATMENTS} == set(LIBRARY)
    for treatment in TREATMENTS:
        remedy = LIBRARY[treatment.remedy]
        assert treatment.change in (remedy.change, *remedy.strengths.values())
    assert all(remedy.change in remedy.strengths.values() for remedy in LIBRARY.values() if remedy.strengths)


def test_every_function_that_code_imports_is_public_and_has_an_example():
    imported = {name for remedy in LIBRARY.values() for name in remedy.change.functions}
    assert imported <= set(remedies.__all__)
    assert all(getattr(remedies, name).__doc__ for name in imported)


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
    "custom": Custom,
    "recurrent": lambda: Reader(nn.RNN(1, 5, num_layers=2, nonlinearity="relu", batch_first=True)),
    "both ways": lambda: Reader(nn.RNN(1, 5, num_layers=2, dropout=0.5, bidirectional=True, batch_first=True)),
    "cells": Cells,
    "lstm": lambda: Reader(nn.LSTM(1, 5, batch_first=True)),
    "attention": Attends,
    "transformer": transformer,
}


def both(treatment, make_model):
    """The model of a trial, and the one that pasted code changes, each under the same seed."""
    torch.manual_seed(0)
    treated = make_model()
    pasted = copy.deepcopy(treated)
    x = torch.randn(16, 6)
    torch.manual_seed(1)
    trial = TrialProgram(treated, batches_of(x), F.cross_entropy, [treatment])
    names = program(model=pasted, x=x)
    torch.manual_seed(1)
    torch.randint(3, (16,))  # as ``batches_of``
    if trial.not_done:
        with pytest.warns(PartlyAppliedWarning):
            exec(treatment.change.code, names)
    else:
        exec(treatment.change.code, names)
    return trial.model, pasted


def gradients(model, x):
    for parameter in model.parameters():
        parameter.grad = None
    torch.manual_seed(2)
    output = model(x)
    output.square().sum().backward()
    return output, [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("treatment", OF_MODELS, ids=lambda treatment: treatment.remedy)
def test_pasted_code_makes_the_model_that_was_tried(treatment):
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(3))
    compared = 0
    for name, make_model in MODELS.items():
        try:
            treated, pasted = both(treatment, make_model)
        except NotApplicableError:
            continue
        output, slopes = gradients(treated, x)
        their_output, their_slopes = gradients(pasted, x)
        torch.testing.assert_close(their_output, output, msg=lambda text, name=name: f"{name}: {text}")
        torch.testing.assert_close(their_slopes, slopes, msg=lambda text, name=name: f"{name}: {text}")
        with torch.no_grad():
            torch.testing.assert_close(pasted.eval()(x), treated.eval()(x))  # modules of torch have short cuts there
            torch.testing.assert_close(copy.deepcopy(treated)(x), treated(x))
        compared += 1
    assert compared >= 2 or treatment.remedy in FOR_OTHER_MODELS


def test_pairs_are_pasted_one_after_the_other():
    treatments = [treatment_of(remedy) for remedy in ("leaky-relu", "he", "residual", "batch-norm")]
    for pair in itertools.pairwise(treatments):
        treated, pasted = stack(), stack()
        pasted.load_state_dict(treated.state_dict())
        x = torch.randn(16, 6)
        batches = batches_of(x)
        torch.manual_seed(1)
        trial = TrialProgram(treated, batches, F.cross_entropy, pair)
        names = program(model=pasted, x=x)
        torch.manual_seed(1)
        exec(code_of(pair), names)
        torch.testing.assert_close(pasted(x), trial.model(x))


@pytest.mark.parametrize("inputs", [torch.ones(4, 6), (torch.ones(4, 6),), {"x": torch.ones(4, 6)}], ids=type)
def test_code_gives_the_model_its_inputs_as_the_trial_does(inputs):
    model = stack()
    model.forward = lambda x: nn.Sequential.forward(model, x)
    exec(LIBRARY["relu"].code, program(model=model, x=inputs))
    assert isinstance(model[1], nn.ReLU)


@pytest.mark.parametrize("treatment", OF_MODELS, ids=lambda treatment: treatment.remedy)
def test_code_that_makes_weights_says_on_which_side_of_the_optimizer_it_belongs(treatment):
    assert "# before the optimizer is made\n" in treatment.change.code


# changes of the training: the weights after three updates


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
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))


def as_tried(treatment, batches):
    trial = TrialProgram(a_model(), batches, nn.CrossEntropyLoss(), [treatment])
    optimizer = torch.optim.SGD(trial.model.parameters(), lr=0.05)
    with trial.watch(optimizer, None, lambda finding: None) as watcher:
        step = stepper(trial, optimizer, watcher.observe_loss)
        for number in range(3):
            step(number)
    return trial.model


def as_pasted(change, batches):
    """The user's own loop, with the code at the place that it names."""
    model = a_model()
    names = program(model=model, batches=batches)

    def paste(place):
        if change is not None and change.place == place:
            exec(change.code, names)

    paste("before the optimizer is made")
    names["optimizer"] = torch.optim.SGD(model.parameters(), lr=0.05)
    paste("after the optimizer is made")
    for number in range(3):
        x, y = names["batches"][number % len(names["batches"])]
        names |= {"x": x, "y": y, "loss": F.cross_entropy(model(x), y)}
        paste("before loss.backward()")
        names["optimizer"].zero_grad()
        names["loss"].backward()
        names["optimizer"].step()
        paste("after optimizer.step()")
    if "watcher" in names:
        names["watcher"].observe_loss(names["loss"])
        names["watcher"].close()
    return model


@pytest.mark.parametrize("treatment", OF_TRAINING, ids=lambda treatment: treatment.remedy + treatment.strength)
def test_pasted_code_trains_as_the_trial_did(treatment):
    batches = data() if treatment.remedy == "clean-data" else data()[3:]
    tried = as_tried(treatment, batches)
    pasted = as_pasted(treatment.change, batches)
    untreated = as_pasted(None, batches)
    torch.testing.assert_close(list(pasted.parameters()), list(tried.parameters()))
    if treatment.remedy != "clip-adaptive":  # which limits huge updates alone: here it must change nothing
        assert torch.equal(pasted[0].weight, untreated[0].weight) == (treatment.remedy in FOR_SICK_UPDATES)


def test_mixed_precision_trains_nearly_as_float32():
    """float16 has ten binary digits."""
    (x, y), *_ = data()
    exact, mixed = a_model(), a_model().half()
    names = program(model=mixed)
    exec(LIBRARY["loss-scaling"].code, names)
    scaler = names["scaler"]
    assert next(mixed.parameters()).dtype == torch.float32
    assert mixed(x.half()).dtype == torch.float16
    mixed.load_state_dict(exact.state_dict())
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.05) for model in (exact, mixed)]
    F.cross_entropy(exact(x), y).backward()
    optimizers[0].step()
    scaler.scale(F.cross_entropy(mixed(x.half()).float(), y)).backward()
    scaler.step(optimizers[1])
    torch.testing.assert_close(list(mixed.parameters()), list(exact.parameters()), rtol=2e-3, atol=1e-3)


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
    trial = TrialProgram(tried, batches, F.mse_loss, [treatment_of("scaled-inputs")])
    step = stepper(trial, torch.optim.SGD(tried.parameters(), lr=0.1), lambda loss: None)
    names = program(batches=batches, model=pasted)
    exec(LIBRARY["scaled-inputs"].code, names)
    optimizer = torch.optim.SGD(pasted.parameters(), lr=0.1)
    for number, (x, y) in enumerate(names["batches"]):
        step(number)
        optimizer.zero_grad()
        F.mse_loss(pasted(x), y).backward()
        optimizer.step()
    torch.testing.assert_close(list(pasted.parameters()), list(tried.parameters()))
    assert not torch.allclose(pasted[2].weight, model[2].weight)
