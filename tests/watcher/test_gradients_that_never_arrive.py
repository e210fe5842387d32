"""Programs whose loss misses a part of the model, each beside ones that look like it and are healthy."""

import copy
import itertools
import logging

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradwatch
from gradwatch.watcher import loop_of_tensors

TEACHER = torch.randn(8, 3, generator=torch.Generator().manual_seed(3))


@pytest.fixture(autouse=True)
def same_every_time():
    torch.manual_seed(0)


def batch(seed):
    inputs = torch.randn(64, 8, generator=torch.Generator().manual_seed(seed))
    return inputs, (inputs @ TEACHER).argmax(1)


def perceptron(*sizes):
    layers = [nn.Linear(inputs, outputs) for inputs, outputs in itertools.pairwise(sizes)]
    between = [part for layer in layers[:-1] for part in (layer, nn.ReLU())]
    return nn.Sequential(*between, layers[-1])


class Model(nn.Module):
    """Parts, and a forward pass of them."""

    def __init__(self, forward, **parts):
        super().__init__()
        self._forward = forward
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, *inputs):
        return self._forward(self, *inputs)


def train(model, loss_of, optimizer=None, steps=100, after=lambda: None):
    """Train; return the findings and the lines that were logged besides."""
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=1e-3)
    with gradwatch.watch(model, optimizer) as watcher:
        for step in range(steps):
            loss = loss_of(*batch(step))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            after()
    return watcher.findings


def classify(model):
    return lambda inputs, classes: F.cross_entropy(model(inputs), classes)


def parts_of(findings):
    return [(finding.kind, {name.split(".")[0] for name in finding.layers}) for finding in findings]


# cut off


def encoder_under_no_grad(model, inputs):
    with torch.no_grad():
        features = model.encoder(inputs)
    return model.head(features)


def attention_detached(model, inputs):
    tokens = inputs.unflatten(1, (2, 4))
    scores = model.query(tokens) @ model.key(tokens).transpose(1, 2)
    return model.head((scores.softmax(-1).detach() @ model.value(tokens)).mean(1))


def encoder_and_head(forward):
    return Model(forward, encoder=perceptron(8, 32, 32), head=nn.Linear(32, 3))


CUT_OFF = {
    "an encoder left under no_grad": (lambda: encoder_and_head(encoder_under_no_grad), {"encoder"}),
    "an encoder detached": (
        lambda: encoder_and_head(lambda model, inputs: model.head(model.encoder(inputs).detach())),
        {"encoder"},
    ),
    "attention weights detached": (
        lambda: Model(
            attention_detached,
            query=nn.Linear(4, 16),
            key=nn.Linear(4, 16),
            value=nn.Linear(4, 16),
            head=nn.Linear(16, 3),
        ),
        {"query", "key"},
    ),
    "the deep one of two branches detached": (
        lambda: Model(
            lambda model, inputs: model.wide(inputs) + model.deep(inputs).detach(),
            wide=nn.Linear(8, 3),
            deep=perceptron(8, 32, 3),
        ),
        {"deep"},
    ),
}


@pytest.mark.parametrize("name", CUT_OFF)
def test_what_is_used_without_its_graph_is_found(name, caplog):
    caplog.set_level(logging.WARNING, "gradwatch")
    make, parts = CUT_OFF[name]
    model = make()
    findings = train(model, classify(model))
    assert parts_of(findings) == [("stalled", parts)]
    assert "cuts them off from the loss" in findings[0].cause
    assert not [line for line in caplog.messages if "had no gradient" in line]  # the finding says it


def test_two_views_that_are_both_stopped():
    model = Model(None, encoder=perceptron(8, 32, 16), predictor=perceptron(16, 16, 16))

    def similarity(inputs, _):
        one, other = model.encoder(inputs).detach(), model.encoder(inputs + 0.1).detach()
        return -F.cosine_similarity(model.predictor(one), other).mean()

    assert parts_of(train(model, similarity)) == [("stalled", {"encoder"})]


def trained_before(model):
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    decoder = nn.Linear(32, 8)
    for step in range(60):
        inputs, _ = batch(step)
        F.mse_loss(decoder(model.encoder(inputs)), inputs).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def in_evaluation_mode(model):
    model.encoder.eval()
    return model


FROZEN = {
    "trained before": trained_before,
    "in evaluation mode": in_evaluation_mode,
    "frozen": lambda model: (model.encoder.requires_grad_(False), model)[1],
}


@pytest.mark.parametrize("name", FROZEN)
def test_an_encoder_that_is_meant_to_stay_as_it_is(name):
    model = FROZEN[name](encoder_and_head(encoder_under_no_grad))
    assert train(model, classify(model)) == []


def test_an_encoder_that_the_optimizer_was_not_given():
    model = encoder_and_head(encoder_under_no_grad)
    assert train(model, classify(model), torch.optim.Adam(model.head.parameters(), lr=1e-3)) == []


def test_a_target_network_that_follows():
    online = perceptron(8, 32, 16)
    model = Model(None, online=online, predictor=perceptron(16, 16, 16), target=copy.deepcopy(online))

    def similarity(inputs, _):
        with torch.no_grad():
            target = model.target(inputs + 0.1)
        return -F.cosine_similarity(model.predictor(model.online(inputs)), target).mean()

    @torch.no_grad()
    def follow():
        for average, parameter in zip(model.target.parameters(), online.parameters(), strict=True):
            average.lerp_(parameter, 0.01)

    assert train(model, similarity, after=follow) == []


def test_a_codebook_of_running_means():
    def quantised(model, inputs):
        codes, codebook = model.encoder(inputs), model.codebook.weight
        nearest = torch.cdist(codes.detach(), codebook.detach()).argmin(1)
        with torch.no_grad():
            for each in nearest.unique():
                codebook[each].lerp_(codes[nearest == each].mean(0), 0.05)
        return model.decoder(codes + (model.codebook(nearest) - codes).detach())

    model = Model(quantised, encoder=perceptron(8, 32, 4), codebook=nn.Embedding(16, 4), decoder=perceptron(4, 32, 8))
    nn.init.uniform_(model.codebook.weight, -0.1, 0.1)
    assert train(model, lambda inputs, _: F.mse_loss(model(inputs), inputs)) == []


@pytest.mark.parametrize("where", ["beside", "distance", "loss"])
def test_a_teacher_that_the_optimizer_was_given(where):
    forwards = {
        "beside": lambda model, inputs: (model.student(inputs), model.teacher(inputs).detach()),
        "distance": lambda model, inputs: model.student(inputs) - model.teacher(inputs).detach(),
        "loss": lambda model, inputs: F.mse_loss(model.student(inputs), model.teacher(inputs).detach()),
    }
    losses = {"beside": lambda both: F.mse_loss(*both), "distance": lambda each: each.square().mean(), "loss": abs}
    model = Model(forwards[where], student=perceptron(8, 16, 3), teacher=perceptron(8, 64, 3))
    assert train(model, lambda inputs, _: losses[where](model(inputs))) == []


# left out


def two_heads():
    def forward(model, inputs):
        features = model.trunk(inputs).relu()
        return model.first(features), model.second(features)

    return Model(forward, trunk=nn.Linear(8, 32), first=nn.Linear(32, 3), second=nn.Linear(32, 8))


SECOND_LOSSES = {  # what is alive when the optimizer steps, and what it adds to the loss
    "forgotten": (F.mse_loss, lambda other: 0),
    "added as a number": (F.mse_loss, lambda other: other.item()),
    "added": (F.mse_loss, lambda other: other),
    "a monitored mean": (lambda output, inputs: output.mean(), lambda other: 0),
    "not computed": (lambda output, inputs: None, lambda other: 0),
}


@pytest.mark.parametrize("how", SECOND_LOSSES)
def test_a_second_loss(how):
    model, (compute, added) = two_heads(), SECOND_LOSSES[how]
    alive = []

    def loss_of(inputs, classes):
        first, second = model(inputs)
        alive[:] = [compute(second, inputs)]
        return F.cross_entropy(first, classes) + added(alive[0])

    findings = train(model, loss_of)
    assert parts_of(findings) == [("stalled", {"second"})] * (how in ("forgotten", "added as a number"))
    assert all("A loss is computed from them and left out" in finding.cause for finding in findings)


def test_heads_that_take_turns():
    model = two_heads()
    turn = iter(range(1000))

    def loss_of(inputs, classes):
        first, second = model(inputs)
        return F.cross_entropy(first, classes) if next(turn) // 7 % 2 else F.mse_loss(second, inputs)

    assert train(model, loss_of) == []


# bare tensors


@pytest.mark.parametrize("is_cut", [True, False])
def test_the_single_number_of_an_optimizer_gets_no_gradient(is_cut):
    scale = torch.tensor(1.5, requires_grad=True)
    optimizer = torch.optim.SGD([scale], lr=0.01)
    loop = loop_of_tensors({"scale": scale})
    for step in range(100):
        inputs, _ = batch(step)
        used = torch.tensor(scale.item(), requires_grad=True) if is_cut else scale
        (used * inputs - 3 * inputs).square().mean().backward()
        loop.before_update(optimizer)
        optimizer.step()
        loop.after_update(optimizer)
        optimizer.zero_grad()
    findings = loop.findings()
    loop.close()
    assert [(each.kind, each.layers) for each in findings] == [("stalled", ("scale",))] * is_cut
