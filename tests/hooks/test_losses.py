"""The loss of an update is found: the scalars that ``backward()`` was called on since its gradients were empty."""

import itertools
import threading

import pytest
import torch
from torch import nn
from torch.autograd import Function
from torch.utils.checkpoint import checkpoint

import gradwatch
from gradwatch.hooks.losses import factor_of, roots_of_backward

BARE = torch.autograd.backward


@pytest.fixture(autouse=True)
def _backward_is_torchs_own_before_and_after():
    assert torch.autograd.backward is BARE
    yield
    assert torch.autograd.backward is BARE


def net(*widths):
    torch.manual_seed(0)
    layers = [nn.Linear(a, b) for a, b in itertools.pairwise(widths)]
    return nn.Sequential(*layers)


def sgd(*models):
    return torch.optim.SGD([p for model in models for p in model.parameters()], lr=0.01)


def loss_of(model, width=4):
    return model(torch.randn(8, width)).square().mean()


def losses_of(watcher):
    return [None if loss != loss else pytest.approx(loss, rel=1e-6) for loss in watcher.history["loss"].tolist()]


def test_observing_a_loss_overrides_what_was_found_for_that_step_alone():
    model = net(4, 1)
    optimizer, seen = sgd(model), []
    with gradwatch.watch(model, optimizer) as watcher:
        for step in range(3):
            loss = loss_of(model)
            if step == 1:
                watcher.observe_loss(7.0)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seen.append(7.0 if step == 1 else loss.item())
    assert seen == losses_of(watcher)


def test_nothing_is_looked_for_where_the_user_says_so():
    model = net(4, 1)
    optimizer = sgd(model)
    with gradwatch.watch(model, optimizer, find_loss=False) as watcher:
        assert torch.autograd.backward is BARE
        loss_of(model).backward()
        optimizer.step()
    assert losses_of(watcher) == [None]


def test_what_is_neither_true_nor_false_is_refused():
    with pytest.raises(TypeError, match="find_loss"):
        gradwatch.watch(net(4, 1), find_loss="yes")


@pytest.mark.parametrize("call", [lambda parts: torch.autograd.backward(parts), lambda parts: sum(parts).backward()])
def test_of_several_losses_at_once_the_sum_counts(call):
    model = net(4, 1)
    optimizer = sgd(model)
    with gradwatch.watch(model, optimizer) as watcher:
        parts = [loss_of(model), loss_of(model)]
        call(parts)
        optimizer.step()
    assert [sum(part.item() for part in parts)] == losses_of(watcher)


@pytest.mark.parametrize(
    "call",
    [
        lambda output: output.backward(torch.ones_like(output)),
        lambda output: torch.autograd.backward(output, grad_tensors=torch.ones_like(output)),
        lambda output: output.mean().backward(gradient=torch.tensor(2.0)),
    ],
)
def test_gradients_that_are_handed_over_make_no_loss(call):
    model = net(4, 2)
    optimizer = sgd(model)
    with gradwatch.watch(model, optimizer) as watcher:
        call(model(torch.randn(8, 4)))
        optimizer.step()
    assert losses_of(watcher) == [None]


@pytest.mark.parametrize(
    "divide",
    [lambda loss, n: loss / n, lambda loss, n: loss * (1 / n), lambda loss, n: loss / n / 1, lambda loss, n: loss],
)
def test_the_mean_counts_whether_or_not_the_loop_divides_and_however_many_passes_are_left(divide):
    model = net(4, 1)
    optimizer, means = sgd(model), []
    with gradwatch.watch(model, optimizer) as watcher:
        for passes in (4, 4, 1, 3):  # epochs end with fewer, divided by 4 as well
            losses = [loss_of(model) for _ in range(passes)]
            for loss in losses:
                divide(loss, 4).backward()
            optimizer.step()
            optimizer.zero_grad()
            means.append(sum(loss.item() for loss in losses) / passes)
    assert means == losses_of(watcher)


@pytest.mark.parametrize("more", [lambda loss: loss, lambda loss: loss * 1 / 1], ids=["alone", "and by one"])
def test_shares_of_the_mean_over_all_items_of_an_update_count_as_their_sum(more):
    """Hugging Face's Trainer divides the sum of each pass by the number of tokens in all passes."""
    model = net(4, 1)
    optimizer, means = sgd(model), []
    with gradwatch.watch(model, optimizer) as watcher:
        for sizes in ((5, 2, 3), (4, 4, 4), (1, 7)):
            items, sums = torch.tensor(sum(sizes)), []
            for size in sizes:
                sums.append(model(torch.randn(size, 4)).square().sum())
                more(sums[-1] / items).backward()
            optimizer.step()
            optimizer.zero_grad()
            means.append(sum(each.item() for each in sums) / sum(sizes))
    assert losses_of(watcher) == pytest.approx(means)


def test_passes_that_are_divided_by_tensors_of_their_own_or_by_a_weight_are_no_shares():
    model = net(4, 1)
    temperature = torch.nn.Parameter(torch.tensor(2.0))
    optimizer, means = sgd(model), []
    with gradwatch.watch(model, optimizer) as watcher:
        for divisor in (lambda: torch.tensor(8.0), lambda: temperature):
            losses = [loss_of(model) / divisor() for _ in range(3)]
            for loss in losses:
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            means.append(sum(loss.item() for loss in losses) / 3)
    assert losses_of(watcher) == pytest.approx(means)


def test_a_factor_of_the_loss_itself_stays():
    model = net(4, 1)
    optimizer = sgd(model)
    with gradwatch.watch(model, optimizer) as watcher:
        halves = [loss_of(model) / 2 for _ in range(3)]
        for half in halves:
            half.backward()
            optimizer.step()
            optimizer.zero_grad()
    assert [half.item() for half in halves] == losses_of(watcher)


@pytest.mark.parametrize("watched", ["both at once", "both", "the critic", "the generator"])
@pytest.mark.parametrize("order", ["by turns", "both losses first"])
def test_each_half_of_a_gan_has_the_losses_that_its_gradients_are_made_of(watched, order):
    generator, critic = net(3, 2), net(2, 5, 1)
    optimizers = {"generator": sgd(generator), "critic": sgd(critic)}
    models = {"generator": generator, "critic": critic}
    if watched == "both at once":
        watchers = {"": gradwatch.watch(models, list(optimizers.values()))}
    else:
        chosen = models if watched == "both" else [watched.removeprefix("the ")]
        watchers = {name: gradwatch.watch(models[name], optimizers[name]) for name in chosen}
    expected = {name: [] for name in models}
    for _ in range(4):
        optimizers["critic"].zero_grad()
        made = generator(torch.randn(8, 3))
        of_critic = critic(made.detach()).mean() - critic(torch.randn(8, 2)).mean()
        if order == "by turns":
            of_critic.backward()
            optimizers["critic"].step()
            expected["critic"].append(of_critic.item())
            optimizers["generator"].zero_grad()
            of_generator = -critic(made).mean()
            of_generator.backward()  # leaves gradients in the critic
            optimizers["generator"].step()
        else:
            optimizers["generator"].zero_grad()
            of_generator = -critic(made).mean()
            of_critic.backward()
            of_generator.backward()
            optimizers["critic"].step()
            optimizers["generator"].step()
            expected["critic"].append((of_critic.item() + of_generator.item()) / 2)  # its gradient is that of both
        expected["generator"].append(of_generator.item())
    for name, watcher in watchers.items():
        watcher.close()
        history = watcher.history
        for number, half in enumerate(["generator", "critic"]):
            if name in ("", half):
                of_half = history["loss"][history["optimizer"] == number] if name == "" else history["loss"]
                assert of_half.tolist() == pytest.approx(expected[half], rel=1e-6)


def test_the_loss_of_another_model_is_none_of_ours():
    model, other = net(4, 1), net(4, 1)
    optimizer, its_own, seen = sgd(model), sgd(other), []
    with gradwatch.watch(model, optimizer) as watcher:
        for _ in range(4):
            its_own.zero_grad()
            (100 * loss_of(other)).backward()
            its_own.step()
            optimizer.zero_grad()
            loss = loss_of(model)
            loss.backward()
            (50 * loss_of(other)).backward()
            optimizer.step()
            seen.append(loss.item())
    assert seen == losses_of(watcher)


def test_towers_that_share_an_optimizer_are_all_listened_to():
    towers = nn.ModuleList([net(4, 1), net(4, 1)])
    optimizer, means = sgd(towers), []
    with gradwatch.watch(towers, optimizer) as watcher:
        for _ in range(3):
            losses = [loss_of(tower) for tower in towers]
            for loss in losses:
                loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            means.append(sum(loss.item() for loss in losses) / 2)
    assert means == losses_of(watcher)


def test_a_tower_that_nobody_listens_to_has_its_loss_all_the_same():
    towers = nn.ModuleList([net(4, 1), net(4, 1)])
    optimizer, seen = sgd(towers), []
    with gradwatch.watch(towers, optimizer) as watcher:
        for step in range(6):
            loss = loss_of(towers[step % 2])
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seen.append(loss.item())
    assert seen == losses_of(watcher)


def test_a_loop_without_an_optimizer_has_its_losses_too():
    weight, seen = torch.ones(3, requires_grad=True), []
    with gradwatch.watch_tensors({"weight": weight}) as watcher:
        for _ in range(3):
            loss = weight.square().sum()
            loss.backward()
            watcher.step()
            with torch.no_grad():
                weight -= 0.1 * weight.grad
            weight.grad = None
            seen.append(loss.item())
    assert seen == losses_of(watcher)


class Inner(Function):
    """A function whose backward pass calls ``backward()`` itself."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * 2

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            inside = x.detach().requires_grad_()
            (1000 * inside.sum()).backward()
        return gradient * 2


@pytest.mark.parametrize("wrap", [Inner.apply, lambda x: checkpoint(torch.tanh, x, use_reentrant=True)])
def test_a_backward_pass_within_another_is_no_loss(wrap):
    model = net(4, 1)
    optimizer = sgd(model)
    with gradwatch.watch(model, optimizer) as watcher:
        losses = []
        for _ in range(2):
            losses.append(wrap(model(torch.randn(8, 4))).mean())
            losses[-1].backward()
            optimizer.step()
            optimizer.zero_grad()
    assert [loss.item() for loss in losses] == losses_of(watcher)


def test_a_penalty_on_gradients_counts_by_the_loss_that_it_is_part_of():
    model = nn.Sequential(net(4, 8), nn.Tanh(), net(8, 1))
    optimizer, seen = sgd(model), []
    with gradwatch.watch(model, optimizer) as watcher:
        for _ in range(3):
            x = torch.randn(8, 4, requires_grad=True)
            output = model(x)
            (slope,) = torch.autograd.grad(output.sum(), x, create_graph=True)
            loss = output.square().mean() + slope.square().sum()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seen.append(loss.item())
    assert seen == losses_of(watcher)


def test_a_backward_pass_that_fails_leaves_no_loss():
    model = net(4, 1)
    optimizer = sgd(model)
    with gradwatch.watch(model, optimizer) as watcher:
        with pytest.raises(RuntimeError, match="does not require grad"):
            torch.tensor(5.0).backward()
        loss = loss_of(model)
        loss.backward()
        optimizer.step()
    assert [loss.item()] == losses_of(watcher)


def test_losses_of_autograd_grad_are_said_to_be_unseen(caplog):
    model = net(4, 1)
    optimizer = sgd(model)
    with gradwatch.watch(model, optimizer) as watcher:
        gradients = torch.autograd.grad(loss_of(model), list(model.parameters()))
        for parameter, gradient in zip(model.parameters(), gradients, strict=True):
            parameter.grad = gradient
        optimizer.step()
    assert losses_of(watcher) == [None]
    assert "no loss was seen" in caplog.text


def test_models_trained_by_threads_at_once_have_their_own_losses():
    models = [net(4, 1) for _ in range(3)]
    optimizers, seen = [sgd(model) for model in models], [[] for _ in models]
    watchers = [gradwatch.watch(*pair) for pair in zip(models, optimizers, strict=True)]

    def train(number):
        for _ in range(30):
            loss = loss_of(models[number])
            loss.backward()
            optimizers[number].step()
            optimizers[number].zero_grad()
            seen[number].append(loss.item())

    threads = [threading.Thread(target=train, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for watcher, expected in zip(watchers, seen, strict=True):
        watcher.close()
        assert watcher.history["loss"].tolist() == pytest.approx(expected, rel=1e-6)


def test_a_watcher_that_is_dropped_leaves_no_wrapper():
    model = net(4, 1)
    watcher = gradwatch.watch(model, sgd(model))
    assert torch.autograd.backward is not BARE
    watcher.close()


def test_the_roots_of_a_call():
    x = torch.ones((), requires_grad=True)
    wide = torch.ones(2, requires_grad=True)
    for args, kwargs, is_loss in [
        ((x,), {}, True), ((), {"tensors": [x, x]}, True), (([x, x], None), {}, True), ((x, [None]), {}, True),
        (([x, wide],), {}, False), ((x, x), {}, False), (([x],), {"grad_tensors": [x]}, False), (([],), {}, False),
    ]:  # fmt: skip
        assert roots_of_backward(args, kwargs)[1] is is_loss


def test_the_factor_of_a_loss_is_a_number_not_a_tensor_of_the_graph():
    x = torch.ones((), requires_grad=True)
    assert (
        factor_of(x) == factor_of(x.exp()) == factor_of(x * x) == factor_of(x.exp() / torch.ones(2).sum() ** 0 + 1) == 1
    )
    assert factor_of(x / 4) == pytest.approx(0.25)
    assert factor_of(3 * x) == pytest.approx(3)
    assert factor_of(x * 0) == 1


def test_a_fault_while_the_loss_is_read_leaves_no_earlier_loss_in_its_place(monkeypatch):
    model = net(4, 1)
    optimizer, detach = sgd(model), gradwatch.hooks.losses.LossFinder._value
    with gradwatch.watch(model, optimizer, on_nonfinite="skip") as watcher:
        for step in range(4):
            with monkeypatch.context() as broken:
                broken.setattr(gradwatch.hooks.losses.LossFinder, "_value", detach if step != 2 else lambda *_: 1 / 0)
                (loss_of(model) * (torch.nan if step == 1 else 1)).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert watcher.history["skipped"].tolist() == [0, 1, 0, 0]
    assert [finding.last_step for finding in watcher.findings] == [1]
