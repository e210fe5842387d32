"""Loops that compute gradients by ``torch.autograd.grad`` or ``torch.func``, or that have losses within losses."""

import contextlib

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

import gradwatch

STEPS = 12
RATE = 0.01


def net(seed=0, activation=nn.ReLU, width=6):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(width, 8), activation(), nn.Linear(8, 1))


def inputs(step):
    return torch.randn(16, 6, generator=torch.Generator().manual_seed(step))


def error(outputs, x):
    return (outputs - x.sum(1, keepdim=True)).square().mean()


def reference():
    """Return (weights, losses, norms) of the same training by ``backward()`` and an optimizer."""
    model = net()
    optimizer, losses, norms = torch.optim.SGD(model.parameters(), lr=RATE), [], []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss = error(model(inputs(step)), inputs(step))
        loss.backward()
        losses.append(loss.item())
        norms.append([p.grad.norm().item() for p in model.parameters()])
        optimizer.step()
    return list(model.parameters()), losses, norms


def functional_gradients(model, parameters, step):
    return grad_and_value(lambda p, x: error(functional_call(model, p, (x,)), x))(parameters, inputs(step))


def functional_in_place(model, watcher):
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    for step in range(STEPS):
        gradients, loss = functional_gradients(model, parameters, step)
        if watcher is not None:
            watcher.step(grads=gradients, loss=loss)
        for name, parameter in parameters.items():
            parameter -= RATE * gradients[name]


def functional_with_an_optimizer(model, watcher):
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    for step in range(STEPS):
        parameters = {name: p.detach() for name, p in model.named_parameters()}
        gradients, loss = functional_gradients(model, parameters, step)
        for name, parameter in model.named_parameters():
            parameter.grad = gradients[name]
        if watcher is not None:
            watcher.observe_loss(loss)
        optimizer.step()


def by_autograd_grad(model, watcher):
    parameters = dict(model.named_parameters())
    for step in range(STEPS):
        loss = error(model(inputs(step)), inputs(step))
        gradients = dict(zip(parameters, torch.autograd.grad(loss, [*parameters.values()]), strict=True))
        if watcher is not None:
            watcher.step(grads=gradients, loss=loss)
        with torch.no_grad():
            for name, parameter in parameters.items():
                parameter -= RATE * gradients[name]


@pytest.mark.parametrize("loop", [functional_in_place, functional_with_an_optimizer, by_autograd_grad])
def test_gradients_that_no_backward_call_makes_have_the_figures_of_one(loop, caplog):
    bare, model = net(), net()
    loop(bare, None)
    with gradwatch.watch(model) as watcher:
        loop(model, watcher)
    assert all(map(torch.equal, model.parameters(), bare.parameters()))
    weights, losses, norms = reference()
    torch.testing.assert_close([*model.parameters()], weights)
    np.testing.assert_allclose(watcher.history["loss"], losses, rtol=1e-5)
    np.testing.assert_allclose(watcher.history["grad_norm"], norms, rtol=1e-4)
    assert watcher.findings == []
    assert caplog.text == ""


def test_where_nobody_hands_gradients_over_one_line_says_what_to_call(caplog):
    model = net()
    with gradwatch.watch(model):
        by_autograd_grad(model, None)
    (line,) = [record.getMessage() for record in caplog.records]
    assert line.endswith("with grads={name: gradient} if they come from torch.autograd.grad or torch.func.")


def test_weights_that_the_loop_makes_anew_at_each_step_are_said_not_to_move():
    """Its model keeps what it began with."""
    model = net()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    with gradwatch.watch(model) as watcher:
        for step in range(150):
            gradients, loss = functional_gradients(model, parameters, step)
            watcher.step(grads=gradients, loss=loss)
            parameters = {name: p - RATE * gradients[name] for name, p in parameters.items()}
    (finding,) = watcher.findings
    assert (finding.kind, finding.layer) == ("stalled", "")
    assert "is 0 of its weights" in finding.measured


def both(train, make):
    """Return (watcher, losses) after ``train(model)`` has made bit for bit the same weights, watched and bare."""
    bare, model = make(), make()
    losses = train(bare)
    with gradwatch.watch(model) as watcher:
        train(model)
    assert all(map(torch.equal, model.parameters(), bare.parameters()))
    assert watcher.findings == []
    return watcher, losses


def test_learning_to_learn_is_watched_by_its_outer_update():
    """MAML: the inner updates are part of the graph of the outer loss."""

    def train(model):
        optimizer, losses = torch.optim.Adam(model.parameters(), lr=RATE), []
        for step in range(STEPS):
            parameters = dict(model.named_parameters())
            for _ in range(2):
                inner = error(functional_call(model, parameters, (inputs(step),)), inputs(step))
                gradients = torch.autograd.grad(inner, [*parameters.values()], create_graph=True)
                parameters = {n: p - RATE * g for (n, p), g in zip(parameters.items(), gradients, strict=True)}
            x = inputs(step + 1000)
            outer = error(functional_call(model, parameters, (x,)), x)
            optimizer.zero_grad()
            outer.backward()
            losses.append(outer.item())
            optimizer.step()
        return losses

    watcher, losses = both(train, net)
    np.testing.assert_allclose(watcher.history["loss"], losses, rtol=1e-6)
    assert not np.isnan(watcher.history["grad_norm"]).any()


@pytest.mark.parametrize("name", ["Adam", "LBFGS"])
def test_derivatives_within_a_loss_are_watched_as_part_of_it(name):
    """A network that solves y' = y: the loss holds a derivative of its output."""

    def train(model):
        optimizer, losses = getattr(torch.optim, name)(model.parameters(), lr=RATE), []
        x = torch.linspace(0, 1, 16).reshape(-1, 1).requires_grad_()

        def closure():
            optimizer.zero_grad()
            y = model(x)
            (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
            loss = (slope - y).square().mean() + (y[0] - 1).square().sum()
            loss.backward()
            evaluated.append(loss.item())
            return loss

        for _ in range(STEPS):
            evaluated = []
            optimizer.step(closure)
            losses.append(evaluated[0])
        return losses

    watcher, losses = both(train, lambda: net(activation=nn.Tanh, width=1))
    np.testing.assert_allclose(watcher.history["loss"], losses, rtol=1e-6)


class ActorCritic(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.policy, self.value = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 1)

    def losses(self, x):
        features = self.body(x).tanh()
        returns, value = x.sum(1), self.value(features).squeeze(1)
        chosen = self.policy(features).log_softmax(1)[:, 0]
        return -(chosen * (returns - value).detach()).mean(), (returns - value).square().mean()


@pytest.mark.parametrize("backward", ["of the sum", "of each", "of both at once"])
def test_the_losses_of_an_actor_and_its_critic_are_one_update(backward):
    def train(model):
        optimizer, losses = torch.optim.Adam(model.parameters(), lr=RATE), []
        for step in range(STEPS):
            actor, critic = model.losses(inputs(step))
            optimizer.zero_grad()
            if backward == "of the sum":
                (actor + critic).backward()
            elif backward == "of each":
                actor.backward(retain_graph=True)
                critic.backward()
            else:
                torch.autograd.backward([actor, critic])
            both_losses = actor.item() + critic.item()
            losses.append(both_losses / 2 if backward == "of each" else both_losses)
            optimizer.step()
        return losses

    watcher, losses = both(train, ActorCritic)
    np.testing.assert_allclose(watcher.history["loss"], losses, rtol=1e-5)


def ensemble():
    """Return (parameters of three networks, stacked, and the mean loss of all at a step)."""
    parameters, buffers = stack_module_state([net(seed) for seed in range(3)])
    base = net().to("meta")

    def loss_at(step):
        x = inputs(step)
        one = lambda p, b: error(functional_call(base, (p, b), (x,)), x)
        return vmap(one)(parameters, buffers).mean()

    return parameters, loss_at


def test_an_ensemble_by_vmap_is_watched_by_its_stacked_tensors():
    def train(watched):
        parameters, loss_at = ensemble()
        optimizer, norms = torch.optim.Adam(parameters.values(), lr=RATE), []
        watch = gradwatch.watch_tensors(parameters) if watched else contextlib.nullcontext()
        with watch as watcher:
            for step in range(STEPS):
                optimizer.zero_grad()
                loss = loss_at(step)
                loss.backward()
                norms.append([p.grad.norm().item() for p in parameters.values()])
                if watcher is not None:
                    watcher.step(loss=loss)
                optimizer.step()
        return watcher, parameters, norms

    watcher, parameters, _ = train(watched=True)
    _, bare, norms = train(watched=False)
    assert all(map(torch.equal, parameters.values(), bare.values()))
    np.testing.assert_allclose(watcher.history["grad_norm"], norms, rtol=1e-5)
    assert watcher.findings == []


def test_an_optimizer_of_stacked_tensors_is_told_what_watches_them():
    parameters, _ = ensemble()
    with pytest.raises(ValueError, match=r"stack_module_state, are watched by gradwatch\.watch_tensors"):
        gradwatch.watch(net(), torch.optim.Adam(parameters.values()))
