"""Reinforcement learning on tiny environments: loops whose loss is no measure of progress, that learn or do not.

The score is a return, or its share of the best one, of the policy at the end.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.detection.others.parts import adam, network, scored
from benchmarks.detection.program import Observe, Pair, Training


class Corridor:
    """A corridor of ``length`` cells, many at a time: 1 goes right, 0 left; the last cell pays 1 and ends."""

    def __init__(self, count: int, length: int = 6, limit: int = 20, reward: float = 1.0) -> None:
        self.length, self.limit, self.reward = length, limit, reward
        self.cell, self.age = torch.zeros(count, dtype=torch.long), torch.zeros(count, dtype=torch.long)

    def seen(self) -> Tensor:
        return F.one_hot(self.cell, self.length).float()

    def step(self, action: Tensor) -> tuple[Tensor, Tensor]:
        """Return rewards and whether each episode is over; those that are begin anew."""
        self.cell = (self.cell + 2 * action - 1).clamp(0, self.length - 1)
        self.age = self.age + 1
        has_won = self.cell == self.length - 1
        is_over = has_won | (self.age >= self.limit)
        reward = self.reward * has_won.float() - 0.01 * self.reward
        self.cell, self.age = self.cell * ~is_over, self.age * ~is_over
        return reward, is_over


def wins(policy: nn.Module, length: int = 6, greedy: bool = False) -> Tensor:
    """Return how many of 50 episodes reach the end within twice the length of the corridor."""
    corridor = Corridor(50, length, limit=10_000)
    has_won = torch.zeros(50, dtype=torch.bool)
    for _ in range(2 * length):
        logits = policy(corridor.seen())
        if not torch.isfinite(logits).all():
            return torch.tensor(torch.nan)
        action = logits.argmax(1) if greedy else torch.distributions.Categorical(logits=logits).sample()
        reward, _ = corridor.step(action)
        has_won |= reward > 0
    return has_won.float().mean()


class Memory:
    """The last transitions, in tensors."""

    def __init__(self, size: int = 2000) -> None:
        self.size, self.rows = size, []

    def add(self, *columns: Tensor) -> None:
        self.rows = (self.rows + list(zip(*(column.unbind(0) for column in columns))))[-self.size :]

    def draw(self, batch: int) -> list[Tensor]:
        chosen = [self.rows[index] for index in torch.randint(len(self.rows), (batch,)).tolist()]
        return [torch.stack(column) for column in zip(*chosen)]


def deep_q(discount: float, is_ended: bool, reward: float = 1.0) -> Training:
    """Deep Q-learning with a memory and a target network; ``is_ended`` stops the bootstrap at the end."""
    model, target = network(6, 32, 32, 2), network(6, 32, 32, 2)
    target.load_state_dict(model.state_dict())
    optimizer, corridor, memory = adam(model, 3e-3), Corridor(8, reward=reward), Memory()

    def act(number: int) -> None:
        seen = corridor.seen()
        with torch.no_grad():
            greedy = model(seen).argmax(1)
        is_random = torch.rand(8) < max(0.1, 1 - number / 150)
        action = torch.where(is_random, torch.randint(2, (8,)), greedy)
        paid, _ = corridor.step(action)
        memory.add(seen, action, paid, corridor.seen(), (paid > 0).float())

    def step(number: int, observe: Observe) -> None:
        act(number)
        if number % 5 == 0:
            target.load_state_dict(model.state_dict())
        seen, action, paid, following, is_won = memory.draw(32)
        with torch.no_grad():
            bootstrap = target(following).amax(1) * (1 - is_won if is_ended else 1)
        value = model(seen).gather(1, action[:, None])[:, 0]
        loss = F.smooth_l1_loss(value, paid + discount * bootstrap)
        optimizer.zero_grad()
        observe(loss)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()

    def score() -> Tensor:
        largest = model(torch.eye(6)).abs().max() / reward
        return wins(model, greedy=True) - 0.2 * (largest > 3.0)

    return scored(Training(model, [optimizer], 400, step), score)


Q_LEARNING = Pair("deep Q-learning in a corridor", reaches=0.9)


@Q_LEARNING.healthy
def q_learning_in_a_corridor(seed: int) -> Training:
    """Deep Q-learning with a target network, a memory and a falling share of random actions."""
    return deep_q(0.95, True)


@Q_LEARNING.sick("exploding", also=("unstable",), cause="a discount above 1 and no end of the bootstrap: values grow")
def q_learning_without_an_end(seed: int) -> Training:
    """The end of an episode is ignored and values are divided by 0.9: they grow with every copy."""
    return deep_q(1 / 0.9, False)


def policy_gradient(is_normalised_alone: bool) -> Training:
    """REINFORCE, one episode of each of 8 corridors an update, returns to go, a baseline of their mean."""
    model = network(6, 32, 2, activation=nn.Tanh)
    optimizer = adam(model, 1e-2)

    def step(number: int, observe: Observe) -> None:
        corridor = Corridor(16, limit=15)
        alive, logs, paid, mask = torch.ones(16, dtype=torch.bool), [], [], []
        for _ in range(15):
            log_probabilities = model(corridor.seen()).log_softmax(-1)
            action = (log_probabilities.detach() - torch.empty(16, 2).exponential_().log()).argmax(1)
            reward, is_over = corridor.step(action)
            logs.append(log_probabilities.gather(1, action[:, None])[:, 0])
            paid.append(reward * alive)
            mask.append(alive.float())
            alive = alive & ~is_over
        returns = torch.stack(paid).flip(0).cumsum(0).flip(0)
        masks = torch.stack(mask)
        advantage = returns - (returns * masks).sum(1, keepdim=True) / masks.sum(1, keepdim=True).clamp_min(1)
        if is_normalised_alone:
            advantage = advantage / torch.stack([row[kept > 0].std() for row, kept in zip(returns, masks)])[:, None]
        loss = -(torch.stack(logs) * advantage * masks).sum() / masks.sum()
        optimizer.zero_grad()
        observe(loss)
        loss.backward()
        optimizer.step()

    return scored(Training(model, [optimizer], 100, step), lambda: wins(model))


REINFORCE = Pair("REINFORCE in a corridor", reaches=0.8)


@REINFORCE.healthy
def reinforce_in_a_corridor(seed: int) -> Training:
    """REINFORCE with a baseline for each moment; its loss hovers around zero."""
    return policy_gradient(False)


@REINFORCE.sick(
    "nonfinite", cause="the advantage is NaN: the deviation of one return, or of equal ones, is NaN or zero"
)
def reinforce_normalised_over_one_episode(seed: int) -> Training:
    """Advantages are divided by the deviation of the returns that are left: of one it is NaN, of equal ones zero."""
    return policy_gradient(True)


class ActorCritic(nn.Module):
    """A policy and a value, on a trunk of their own each."""

    def __init__(self, length: int = 6) -> None:
        super().__init__()
        self.actor, self.critic = network(length, 32, 2, activation=nn.Tanh), network(length, 32, 32, 1)

    def forward(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        return self.actor(seen), self.critic(seen)[:, 0]


def advantage_actor_critic(reward: float, detached: bool = False) -> Training:
    """A2C, 16 corridors, 8 steps an update; actor and critic share an optimizer."""
    model = ActorCritic()
    optimizer, corridor = adam(model, 5e-3), Corridor(16, reward=reward)

    def step(number: int, observe: Observe) -> None:
        logs, values, paid, over, entropies = [], [], [], [], []
        for _ in range(8):
            logits, value = model(corridor.seen())
            choice = torch.distributions.Categorical(logits=logits)
            action = choice.sample()
            reward_, is_over = corridor.step(action)
            log = choice.log_prob(action)
            logs.append(log.detach() if detached else log)
            entropies.append(choice.entropy())
            values.append(value)
            paid.append(reward_)
            over.append(is_over.float())
        with torch.no_grad():
            returns, running = [], model(corridor.seen())[1]
            for reward_, is_over in zip(reversed(paid), reversed(over)):
                running = reward_ + 0.95 * (1 - is_over) * running
                returns.insert(0, running)
        target, value = torch.stack(returns), torch.stack(values)
        advantage = (target - value).detach()
        policy_loss = -(torch.stack(logs) * advantage).mean()
        bonus = 0.01 * torch.stack(entropies).mean() if not detached else 0.0
        loss = policy_loss + 0.5 * F.mse_loss(value, target) - bonus
        optimizer.zero_grad()
        observe(loss)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()

    return scored(Training(model, [optimizer], 150, step), lambda: wins(model.actor))


ACTOR_CRITIC = Pair("actor and critic", reaches=0.8)


@ACTOR_CRITIC.healthy
def actor_and_critic_in_one_optimizer(seed: int) -> Training:
    """A2C: two networks of different depth, one optimizer, one sum of losses."""
    return advantage_actor_critic(1.0)


@ACTOR_CRITIC.sick(
    "stalled",
    also=("vanishing",),
    layers=("actor.*",),
    cause="log-probabilities are detached: the actor gets no gradient",
)
def actor_of_stored_probabilities(seed: int) -> Training:
    """Log-probabilities are stored detached, as old ones would be: only the critic learns."""
    return advantage_actor_critic(1.0, detached=True)


class Gaussian(nn.Module):
    """A policy over one continuous action, and a value."""

    def __init__(self, start: float) -> None:
        super().__init__()
        self.mean, self.value = network(2, 32, 1, activation=nn.Tanh), network(2, 32, 1, activation=nn.Tanh)
        self.log_deviation = nn.Parameter(torch.tensor(-0.5))
        nn.init.zeros_(self.value[2].weight)
        nn.init.constant_(self.mean[2].bias, start)

    def forward(self, seen: Tensor) -> tuple[torch.distributions.Normal, Tensor]:
        choice = torch.distributions.Normal(self.mean(seen)[:, 0], self.log_deviation.exp(), validate_args=False)
        return choice, self.value(seen)[:, 0]


def tracking_reward(seen: Tensor, action: Tensor) -> Tensor:
    """Return the reward of an action that is best at the sine of what is seen."""
    return -(action - torch.sin(2 * seen[:, 0])).square().clamp_max(4.0)


def proximal(start: float, epsilon: float) -> Training:
    """PPO on a contextual task: 4 epochs over 128 fresh actions, a clipped ratio, normalised advantages."""
    model = Gaussian(start)
    optimizer = adam(model, 3e-3)
    batch: dict[str, Tensor] = {}

    def collect() -> None:
        seen = torch.rand(128, 2) * 2 - 1
        with torch.no_grad():
            choice, value = model(seen)
            action = choice.loc + choice.scale * torch.randn(128)
            reward = tracking_reward(seen, action)
        advantage = reward - value
        batch.update(seen=seen, action=action, reward=reward, old=choice.log_prob(action))
        batch["advantage"] = (advantage - advantage.mean()) / (advantage.std() + epsilon)

    def step(number: int, observe: Observe) -> None:
        if number % 4 == 0:
            collect()
        choice, value = model(batch["seen"])
        ratio = (choice.log_prob(batch["action"]) - batch["old"]).exp()
        clipped = ratio.clamp(0.8, 1.2)
        gain = torch.minimum(ratio * batch["advantage"], clipped * batch["advantage"]).mean()
        loss = -gain + 0.5 * F.mse_loss(value, batch["reward"]) - 0.003 * choice.entropy().mean()
        optimizer.zero_grad()
        observe(loss)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        optimizer.step()

    def score() -> Tensor:
        seen = torch.rand(500, 2) * 2 - 1
        return tracking_reward(seen, model.mean(seen)[:, 0]).mean()

    return scored(Training(model, [optimizer], 400, step), score)


PROXIMAL = Pair("proximal policy optimisation", reaches=-0.2)


@PROXIMAL.healthy
def proximal_policy_that_tracks(seed: int) -> Training:
    """PPO; its loss is around zero and changes sign."""
    return proximal(0.0, 1e-8)


@PROXIMAL.sick("nonfinite", cause="the advantage is NaN: equal rewards are divided by their deviation of zero")
def proximal_policy_of_equal_rewards(seed: int) -> Training:
    """The policy starts so far off that every reward is clipped to −4; advantages are 0/0 without an epsilon."""
    return proximal(8.0, 0.0)


def soft_actor_critic(reward_scale: float) -> Training:
    """SAC on the contextual task: a squashed actor, two critics, a temperature, one optimizer each."""
    actor = network(2, 32, 32, 2)
    critics = nn.ModuleList(network(3, 32, 32, 1) for _ in range(2))
    log_alpha = nn.ParameterList([nn.Parameter(torch.tensor(-2.0))])
    models = {"actor": actor, "critics": critics, "alpha": log_alpha}
    optimizers = [adam(module, 5e-3) for module in models.values()]

    def acted(seen: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_deviation = actor(seen).chunk(2, -1)
        choice = torch.distributions.Normal(mean, log_deviation.clamp(-4, 1).exp())
        raw = choice.rsample()
        log = choice.log_prob(raw) - torch.log(1 - raw.tanh().square() + 1e-6)
        return 1.5 * raw.tanh(), log[:, 0]

    def update(index: int, loss: Tensor, observe: Observe) -> None:
        optimizers[index].zero_grad()
        observe(loss)
        loss.backward()
        optimizers[index].step()

    def step(number: int, observe: Observe) -> None:
        seen = torch.rand(64, 2) * 2 - 1
        with torch.no_grad():
            action, _ = acted(seen)
            reward = reward_scale * tracking_reward(seen, action[:, 0])
        pairs = torch.cat([seen, action], dim=1)
        update(1, sum(F.mse_loss(critic(pairs)[:, 0], reward) for critic in critics), observe)
        action, log = acted(seen)
        joined = torch.cat([seen, action], dim=1)
        value = torch.minimum(*(critic(joined)[:, 0] for critic in critics))
        update(0, (log_alpha[0].exp().detach() * log - value).mean(), observe)
        update(2, -(log_alpha[0].exp() * (log.detach() - 1.0)).mean(), observe)

    def score() -> Tensor:
        seen = torch.rand(500, 2) * 2 - 1
        return tracking_reward(seen, 1.5 * actor(seen)[:, 0].tanh()).mean()

    return scored(Training(models, optimizers, 200, step), score)


SOFT = Pair("soft actor and critics", reaches=-0.1)


@SOFT.healthy
def soft_actor_that_tracks(seed: int) -> Training:
    """SAC with a temperature of its own; three optimizers, a loss each."""
    return soft_actor_critic(1.0)


@SOFT.sick(
    "exploding", also=("vanishing", "saturated"), cause="rewards of 1e4 reach the critics' squared error unscaled"
)
def soft_actor_of_rewards_in_ten_thousands(seed: int) -> Training:
    """The same task with rewards 30,000 times as large: the critics never come near them."""
    return soft_actor_critic(3e4)


class Shared(nn.Module):
    """A policy and a value on one trunk."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.policy, self.value = network(2, 32, 32), nn.Linear(32, 4), nn.Linear(32, 1)

    def forward(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        h = torch.relu(self.trunk(seen))
        return self.policy(h), self.value(h)[:, 0]


def quadrant_bandit(reward_scale: float) -> Training:
    """A contextual bandit of four arms, the quadrant's own pays; plain descent on policy and value together."""
    model = Shared()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def draw(batch: int) -> tuple[Tensor, Tensor]:
        seen = torch.rand(batch, 2) * 2 - 1
        return seen, 2 * (seen[:, 0] > 0).long() + (seen[:, 1] > 0).long()

    def step(number: int, observe: Observe) -> None:
        seen, best = draw(128)
        logits, value = model(seen)
        log_probabilities = logits.log_softmax(-1)
        action = (log_probabilities.detach() - torch.empty(128, 4).exponential_().log()).argmax(1)
        reward = reward_scale * (action == best).float()
        advantage = (reward - value).detach()
        loss = -(log_probabilities.gather(1, action[:, None])[:, 0] * advantage).mean() + 0.5 * F.mse_loss(
            value, reward
        )
        optimizer.zero_grad()
        observe(loss)
        loss.backward()
        optimizer.step()

    def score() -> Tensor:
        seen, best = draw(500)
        logits = model(seen)[0]
        return (logits.argmax(1) == best).float().mean() + 0 * logits.sum()

    return scored(Training(model, [optimizer], 400, step), score)


BANDIT = Pair("policy and value on one trunk", reaches=0.7)


@BANDIT.healthy
def bandit_of_rewards_up_to_three(seed: int) -> Training:
    """Rewards of 0 and 3."""
    return quadrant_bandit(3.0)


@BANDIT.sick("exploding", also=("nonfinite", "dead"), cause="rewards of 1e4 reach the value's squared error unscaled")
def bandit_of_rewards_in_ten_thousands(seed: int) -> Training:
    """Rewards in cents of a large sum: the squared error of the value is 1e8, and its gradient hits the trunk."""
    return quadrant_bandit(1e4)
