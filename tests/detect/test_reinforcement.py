"""Reinforcement learning that goes well raises nothing: its losses are no measure, and its targets move."""

import copy
import random

import pytest
import torch
from torch import nn

import gradwatch

SIZE = 6


def network(inputs, outputs, function=nn.ReLU):
    return nn.Sequential(nn.Linear(inputs, 32), function(), nn.Linear(32, 32), function(), nn.Linear(32, outputs))


def walk(places, actions):
    """(next places, rewards) of a corridor of six places, whose right end pays 1 and leads back to a random place."""
    following = (places + 2 * actions - 1).clamp(min=0)
    is_there = following == SIZE - 1
    return torch.where(is_there, torch.randint(SIZE - 1, places.shape), following), is_there.float()


def seen(places):
    return nn.functional.one_hot(places, SIZE).float()


def pays(choose):
    """Mean reward of a policy: 0 where it never arrives, 0.3 where it walks straight to the right."""
    places, total = torch.randint(SIZE - 1, (64,)), 0.0
    for _ in range(40):
        places, rewards = walk(places, choose(seen(places)))
        total += rewards.mean().item()
    return total / 40


@pytest.mark.parametrize("seed", range(3))
def test_q_learning_with_a_target_network_is_quiet(seed):
    torch.manual_seed(seed)
    random.seed(seed)
    values = network(SIZE, 2)
    target, memory = copy.deepcopy(values), []
    optimizer = torch.optim.Adam(values.parameters(), lr=1e-3)
    places = torch.randint(SIZE - 1, (8,))
    with gradwatch.watch(values, optimizer) as watcher:
        for step in range(400):
            greedy = values(seen(places)).argmax(1)
            actions = torch.where(torch.rand(8) < 0.3, torch.randint(2, (8,)), greedy)
            following, rewards = walk(places, actions)
            memory += zip(places, actions, rewards, following, strict=True)
            places = following
            batch = [torch.stack(column) for column in zip(*random.sample(memory, min(len(memory), 32)), strict=True)]
            before, taken, paid, after = batch
            with torch.no_grad():
                wanted = 10 * paid + 0.9 * target(seen(after)).max(1).values
            loss = nn.functional.mse_loss(values(seen(before)).gather(1, taken[:, None])[:, 0], wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if step % 40 == 0:
                target.load_state_dict(values.state_dict())
    assert pays(lambda x: values(x).argmax(1)) > 0.25
    assert watcher.findings == []


@pytest.mark.parametrize("seed", range(3))
def test_an_actor_and_its_critic_are_quiet(seed):
    torch.manual_seed(seed)
    agent = nn.ModuleDict({"critic": network(SIZE, 1, nn.Tanh), "actor": network(SIZE, 2, nn.Tanh)})
    optimizer = torch.optim.Adam(agent.parameters(), lr=3e-3)
    places = torch.randint(SIZE - 1, (32,))
    with gradwatch.watch(agent, optimizer) as watcher:
        for _ in range(250):
            policy = torch.distributions.Categorical(logits=agent["actor"](seen(places)))
            value, actions = agent["critic"](seen(places))[:, 0], policy.sample()
            places, rewards = walk(places, actions)
            with torch.no_grad():
                wanted = 5 * rewards + 0.9 * agent["critic"](seen(places))[:, 0]
            advantage = (wanted - value).detach()
            gain = (policy.log_prob(actions) * advantage).mean()
            loss = (value - wanted).square().mean() - gain - 0.01 * policy.entropy().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert pays(lambda x: agent["actor"](x).argmax(1)) > 0.25
    assert watcher.findings == []


@pytest.mark.parametrize("seed", range(3))
def test_a_policy_gradient_is_quiet(seed):
    torch.manual_seed(seed)
    policy = network(SIZE, 2, nn.Tanh)
    optimizer = torch.optim.Adam(policy.parameters(), lr=5e-3)
    with gradwatch.watch(policy, optimizer) as watcher:
        for _ in range(120):
            places, chances, rewards = torch.randint(SIZE - 1, (32,)), [], []
            for _ in range(12):
                choice = torch.distributions.Categorical(logits=policy(seen(places)))
                actions = choice.sample()
                places, paid = walk(places, actions)
                chances.append(choice.log_prob(actions))
                rewards.append(paid)
            returns = torch.stack(rewards).flip(0).cumsum(0).flip(0)
            loss = -(torch.stack(chances) * (returns - returns.mean(1, keepdim=True))).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert pays(lambda x: policy(x).argmax(1)) > 0.25
    assert watcher.findings == []
