import operator

import pytest
import torch
from torch.optim import LBFGS, SGD, Adam, Optimizer

from gradwatch.findings import NonFiniteError
from gradwatch.hooks.optimizers import StepHooks


class Sharpened(Optimizer):
    """Climbs before it descends, as SAM does: an optimizer that steps another one over the same weights."""

    def __init__(self, weights):
        super().__init__(weights, {})
        self.inner = SGD(self.param_groups, lr=0.1)

    def step(self, closure=None):
        loss = None if closure is None else closure()
        self.inner.step()
        return loss


class Descent(SGD):
    """A user's own optimizer on top of torch's."""

    def step(self, closure=None):
        return super().step(closure)


class Breakable(SGD):
    broken = True

    def step(self, closure=None):
        if self.broken:
            raise ArithmeticError("no update")
        return super().step(closure)


def weights():
    weight = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
    weight.grad = torch.ones(2)
    return [weight]


def closure_of(optimizer):
    """A closure and the losses that its evaluations returned."""
    losses = []

    def closure():
        with torch.enable_grad():
            optimizer.zero_grad()
            losses.append(sum((p**2).sum() for group in optimizer.param_groups for p in group["params"]))
            losses[-1].backward()
        return losses[-1]

    return closure, losses


class Calls(list):
    """What the hooks called, in order."""

    def before(self, optimizer, loss=None, *, again=False):
        self.append(("again" if again else "before", optimizer, loss))

    def after(self, optimizer):
        self.append(("after", optimizer))

    def names(self):
        return [call[0] for call in self]


@pytest.fixture
def hook():
    """Hooks that record, taken off when the test is over."""
    made = []

    def hook(*optimizers, owns=lambda parameters: True, silent=False):
        calls = Calls()
        made.append(StepHooks(None if silent else calls.before, calls.after, optimizers or None, owns))
        calls.hooks = made[-1]
        return calls

    yield hook
    for hooks in made:
        hooks.remove()


named = pytest.mark.parametrize("named", [True, False], ids=["named", "found"])


@named
@pytest.mark.parametrize("kind", [SGD, Adam, Descent, Sharpened])
def test_a_plain_step_is_seen_before_and_after_it_updates(hook, kind, named):
    optimizer = kind(weights())
    calls = hook(*[optimizer] * named)
    optimizer.step()
    assert calls == [("before", optimizer, None), ("after", optimizer)]


def test_before_sees_the_gradients_and_the_old_weights():
    (weight,) = weights()
    optimizer, seen = SGD([weight], lr=1.0), []
    look = lambda *_, **__: seen.append((weight.tolist(), weight.grad.tolist()))
    hooks = StepHooks(look, look, [optimizer], lambda parameters: True)
    optimizer.step()
    hooks.remove()
    assert seen == [([1, 2], [1, 1]), ([0, 1], [1, 1])]


@named
@pytest.mark.parametrize("keyword", [True, False], ids=["keyword", "positional"])
def test_a_closure_is_followed_and_its_loss_is_told(hook, named, keyword):
    optimizer = SGD(weights(), lr=0.1)
    calls = hook(*[optimizer] * named)
    closure, losses = closure_of(optimizer)
    returned = optimizer.step(closure=closure) if keyword else optimizer.step(closure)
    assert calls == [("before", optimizer, losses[0]), ("after", optimizer)]
    assert returned is losses[0]
    assert len(losses) == 1


@pytest.mark.parametrize("keyword", [True, False], ids=["keyword", "positional"])
def test_no_closure_in_words_is_no_closure(hook, keyword):
    optimizer = SGD(weights())
    calls = hook(optimizer)
    optimizer.step(closure=None) if keyword else optimizer.step(None)
    assert calls == [("before", optimizer, None), ("after", optimizer)]


def test_further_evaluations_of_a_closure_are_marked(hook):
    optimizer = LBFGS(weights(), lr=0.1, max_iter=4)
    calls = hook(optimizer)
    closure, losses = closure_of(optimizer)
    optimizer.step(closure)
    evaluations = len(losses)
    assert evaluations > 1
    assert calls.names() == ["before", *["again"] * (evaluations - 1), "after"]
    assert [call[2] for call in calls[:-1]] == losses
    optimizer.step(closure)
    assert calls.names()[evaluations + 1] == "before"


def test_a_loss_that_is_a_number_is_told(hook):
    optimizer = SGD(weights())
    calls = hook(optimizer)
    optimizer.step(lambda: 0.5)
    assert calls[0] == ("before", optimizer, 0.5)


def test_without_before_closures_are_left_alone(hook):
    optimizer = SGD(weights())
    calls = hook(optimizer, silent=True)
    closure, losses = closure_of(optimizer)
    optimizer.step(closure)
    optimizer.step()
    assert calls == [("after", optimizer)] * 2
    assert len(losses) == 1


@named
def test_of_nested_optimizers_the_outermost_counts(hook, named):
    optimizer = Sharpened(weights())
    calls = hook(*[optimizer, optimizer.inner] * named)
    closure, losses = closure_of(optimizer)
    optimizer.step(closure)
    optimizer.step()
    assert calls == [
        ("before", optimizer, losses[0]),
        ("after", optimizer),
        ("before", optimizer, None),
        ("after", optimizer),
    ]


def test_an_inner_optimizer_that_alone_was_named_counts(hook):
    optimizer = Sharpened(weights())
    calls = hook(optimizer.inner)
    optimizer.step()
    assert calls == [("before", optimizer.inner, None), ("after", optimizer.inner)]


def test_an_inner_optimizer_that_the_loop_steps_by_itself_counts_as_the_one_that_holds_it(hook):
    optimizer = Sharpened(weights())
    calls = hook(optimizer)
    optimizer.inner.step()
    optimizer.step()
    assert calls == [("before", optimizer, None), ("after", optimizer)] * 2


class Several(Optimizer):
    """Owns one optimizer for each weight, in a list and in a dict."""

    def __init__(self, weights):
        super().__init__(weights, {})
        mine = self.param_groups[0]["params"]
        self.listed, self.named = [SGD(mine[:1])], {"rest": Adam(mine[1:])}

    def step(self, closure=None):
        for optimizer in (*self.listed, *self.named.values()):
            optimizer.step()


def test_inner_optimizers_with_weights_of_their_own_count_by_themselves_where_the_loop_steps_them(hook):
    optimizer = Several(weights() + weights())
    first, second = optimizer.listed[0], optimizer.named["rest"]
    calls = hook(optimizer)
    optimizer.step()
    first.step()
    second.step()
    assert calls == [
        *(("before", optimizer, None), ("after", optimizer)),
        *(("before", first, None), ("after", first)),
        *(("before", second, None), ("after", second)),
    ]


@named
def test_an_optimizer_that_steps_with_its_parents_step_steps_once(hook, named):
    SGD(weights())  # torch puts hooks on a class when the first of it is made
    optimizer = Descent(weights())
    calls = hook(*[optimizer] * named)
    closure, losses = closure_of(optimizer)
    optimizer.step(closure)
    optimizer.step()
    assert calls.names() == ["before", "after"] * 2
    assert len(losses) == 1


def holds(optimizer, parameters):
    return optimizer.param_groups[0]["params"][0] is parameters[0]


def test_found_optimizers_are_those_that_own(hook):
    mine, other, later = SGD(weights()), SGD(weights()), []
    calls = hook(owns=lambda parameters: any(holds(optimizer, parameters) for optimizer in [mine, *later]))
    mine.step()
    other.step()
    later.append(Adam(weights()))
    later[0].step()
    assert [call[1] for call in calls] == [mine, mine, *later, *later]


def test_an_optimizer_of_other_weights_inside_a_step_does_not_count(hook):
    optimizer = Sharpened(weights())
    optimizer.inner = SGD(weights(), lr=0.1)
    calls = hook(owns=lambda parameters: holds(optimizer.inner, parameters))
    optimizer.step()
    assert calls.names() == ["before", "after"]


def test_only_named_optimizers_are_seen(hook):
    mine, other = SGD(weights()), SGD(weights())
    calls = hook(mine)
    other.step()
    assert calls == []


def test_alternating_optimizers_are_each_seen(hook):
    pair = [SGD(weights()), Adam(weights())]
    calls = hook(*pair)
    for optimizer in pair * 2:
        optimizer.step()
    assert [call[1] for call in calls[::2]] == pair * 2
    assert calls.names() == ["before", "after"] * 4


@named
def test_removed_hooks_see_nothing_and_change_nothing(hook, named):
    optimizer = SGD(weights())
    calls = hook(*[optimizer] * named)
    calls.hooks.remove()
    calls.hooks.remove()
    closure, losses = closure_of(optimizer)
    optimizer.step()
    assert optimizer.step(closure) is losses[0]
    assert calls == []


@named
def test_an_optimizer_whose_step_raised_is_seen_when_it_steps_again(hook, named):
    optimizer = Breakable(weights())
    calls = hook(*[optimizer] * named)
    with pytest.raises(ArithmeticError):
        optimizer.step()
    optimizer.broken = False
    optimizer.step()
    assert calls.names() == ["before", "before", "after"]


@named
def test_an_optimizer_whose_step_raised_hides_no_other(hook, named):
    broken, other = Breakable(weights()), SGD(weights())
    calls = hook(*[broken, other] * named)
    with pytest.raises(ArithmeticError):
        broken.step()
    other.step()
    other.step()
    assert calls[1:] == [("before", other, None), ("after", other)] * 2


def test_an_inner_optimizer_that_raised_leaves_the_outer_one_whole(hook):
    optimizer = Sharpened(weights())
    optimizer.inner = Breakable(optimizer.param_groups)
    calls = hook()
    with pytest.raises(ArithmeticError):
        optimizer.step()
    optimizer.inner.broken = False
    optimizer.step()
    assert calls == [("before", optimizer, None), ("before", optimizer, None), ("after", optimizer)]


def test_a_closure_that_raised_ends_its_step(hook):
    optimizer = SGD(weights())
    calls = hook(optimizer)
    with pytest.raises(ZeroDivisionError):
        optimizer.step(lambda: 1 / 0)
    optimizer.step()
    assert calls == [("before", optimizer, None), ("after", optimizer)]


def test_before_may_refuse_the_update():
    (weight,) = weights()
    optimizer = SGD([weight], lr=1.0)

    def refuse(*_, **__):
        raise NonFiniteError("", 0, "refused")

    hooks = StepHooks(refuse, lambda optimizer: None, [optimizer], lambda parameters: True)
    with pytest.raises(NonFiniteError):
        optimizer.step()
    hooks.remove()
    assert weight.tolist() == [1, 2]


def test_watched_and_unwatched_optimizers_update_alike(hook):
    ours, theirs = ([weight] for _ in range(2) for weight in weights())
    for parameters, watch in ((ours, True), (theirs, False)):
        optimizer = LBFGS(parameters, lr=0.3)
        if watch:
            hook(optimizer)
        closure, _ = closure_of(optimizer)
        for _ in range(3):
            optimizer.step(closure)
    assert torch.equal(ours[0], theirs[0])


class TakesLoss(SGD):
    """A stranger's optimizer whose ``step`` takes the loss itself."""

    def step(self, loss=None, *others, closure=None):
        self.given = (loss, *others), closure
        return super().step()


@named
@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((torch.tensor(2.0),), {}),
        ((torch.tensor([2.0, 3.0]),), {}),
        ((0.5,), {}),
        (({"closure": None},), {}),
        (("a", [1], 2), {}),
        ((None, 2.0), {}),
        ((), {"loss": 3.0}),
        ((), {"closure": 4.0}),
    ],
)
def test_what_is_no_closure_is_handed_to_the_step_as_it_is(hook, named, args, kwargs, fails, monkeypatch):
    optimizer = TakesLoss(weights())
    calls = hook(*[optimizer] * named)
    if fails:
        calls.hooks.act_plainly = calls.before

        def fail(*_):
            raise ArithmeticError("made to happen")

        monkeypatch.setattr(calls.hooks, "_owns", fail)
    optimizer.step(*args, **kwargs)
    given, closure = optimizer.given
    expected = args or (kwargs.get("loss"),)
    assert len(given) == len(expected)
    assert all(map(operator.is_, given, expected))
    assert closure is kwargs.get("closure")
    assert calls[0] == ("before", optimizer, None)
