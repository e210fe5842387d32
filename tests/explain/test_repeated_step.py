"""A sick step of torch's own modules is looked at twice, modules first; that shows what one thorough look does."""

import contextlib
import gc
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import gradwatch
from gradwatch.explain.repeated_step import RepeatedStep
from gradwatch.explain.replay import Replay
from gradwatch.explain.replica import as_it_was
from gradwatch.hooks.guard import Guard


def of_a_bad_batch():
    x = torch.ones(4, 8)
    x[1, 2] = torch.nan
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1)), x


def of_a_layer_that_overflows():
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 1))
    nn.init.constant_(model[2].weight, 3e38)
    return model, torch.ones(4, 8)


def of_corrupt_statistics():
    model = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
    model[1].running_mean[3] = torch.nan
    model[1].eval()
    return model, torch.ones(4, 8)


def of_a_layer_of_two_names():
    shared = nn.Linear(8, 8)
    nn.init.constant_(shared.weight, 1e30)
    model = nn.Sequential(nn.Sequential(shared, nn.Tanh()), nn.Sequential(shared, shared), nn.Linear(8, 1))
    return model, torch.ones(4, 8)


def of_noise():
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(8, 8), nn.RReLU(), nn.Linear(8, 1))
    nn.init.constant_(model[3].weight, 3e38)
    return model, torch.ones(4, 8)


def recorded(model, x):
    """The calls of a step, and its loss."""
    replay = Replay({"": model})
    loss = model(x).square().mean()
    loss.backward()
    calls = replay.calls
    replay.remove()
    return calls, loss.item()


@pytest.mark.parametrize(
    "make",
    [of_a_bad_batch, of_a_layer_that_overflows, of_corrupt_statistics, of_a_layer_of_two_names, of_noise],
)
def test_two_looks_show_what_one_thorough_look_does(make):
    torch.manual_seed(0)
    model, x = make()
    calls, loss = recorded(model, x)
    assert not math.isfinite(loss)
    state = {name: values.clone() for name, values in model.state_dict().items()}
    by_two, at_once = (RepeatedStep(calls, {"": model}, free, Guard(), loss, []).observe() for free in (True, False))
    assert by_two == at_once
    assert by_two is not None
    for name, values in model.state_dict().items():
        torch.testing.assert_close(values, state[name], rtol=0, atol=0, equal_nan=True)


def test_the_operation_of_the_layer_at_fault_is_named():
    torch.manual_seed(0)
    model, x = of_a_layer_that_overflows()
    calls, loss = recorded(model, x)
    found = RepeatedStep(calls, {"": model}, True, Guard(), loss, []).observe()
    assert (found.pattern, found.module.name, found.operation.name) == ("forward", "2", "addmm")


@pytest.mark.parametrize("collects", [True, False])
def test_garbage_is_collected_afterwards_if_it_was_before(collects):
    was_enabled = gc.isenabled()
    try:
        (gc.enable if collects else gc.disable)()
        with contextlib.suppress(ValueError), as_it_was():
            assert not gc.isenabled()
            raise ValueError
        assert gc.isenabled() is collects
    finally:
        (gc.enable if was_enabled else gc.disable)()


OPERATIONS = {
    "max_pool2d": lambda x: F.max_pool2d(x, 2),
    "avg_pool2d": lambda x: F.avg_pool2d(x, 2),
    "adaptive_avg_pool2d": lambda x: F.adaptive_avg_pool2d(x, 2),
    "convolution": lambda x: F.conv2d(x, torch.ones(2, 3, 3, 3)),
    "mean over axes": lambda x: x.mean((2, 3), keepdim=True),
    "std over axes": lambda x: x.std((2, 3)),
    "largest over axes": lambda x: x.amax((2, 3)),
    "pad": lambda x: F.pad(x, (1, 1, 1, 1)),
    "interpolate": lambda x: F.interpolate(x, scale_factor=2.0),
    "upsample": lambda x: F.interpolate(x, size=(8, 8), mode="bilinear"),
    "roll": lambda x: x.roll((1, 1), (2, 3)),
    "flip": lambda x: x.flip((2, 3)),
    "permute": lambda x: x.permute(0, 2, 3, 1).contiguous(),
    "norm": lambda x: torch.linalg.vector_norm(x, dim=(2, 3)),
    "log-sum-exp": lambda x: x.logsumexp((2, 3)),
    "Fourier": lambda x: torch.fft.fftn(x, dim=(2, 3)).abs(),
    "layer norm": lambda x: F.layer_norm(x, x.shape[2:]),
    "group norm": lambda x: F.group_norm(x, 1),
    "batch norm": lambda x: F.batch_norm(x, None, None, training=True),
    "local response": lambda x: F.local_response_norm(x, 3),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x),
    "einsum": lambda x: torch.einsum("bchw,bcwk->bchk", x, x),
    "unfold": lambda x: F.unfold(x, (2, 2)),
    "grid": lambda x: F.grid_sample(x, torch.zeros(2, 4, 4, 2), align_corners=False),
    "index": lambda x: x[:, [0, 2]],
    "write by index": lambda x: x.clone().index_put((torch.tensor([0]),), torch.tensor(1.0)),
    "split and join": lambda x: torch.cat(x.split([1, 2], 1), 1),
    "cosine": lambda x: F.cosine_similarity(x, x + 1),
}
"""Operations of networks, among them those whose arguments are lists, which have no hash."""


class Applies(nn.Module):
    """An operation of the user's own forward pass, and then the logarithm of a negative number."""

    def __init__(self, operation):
        super().__init__()
        self.operation, self.scale = operation, nn.Parameter(torch.ones(()))

    def forward(self, x):
        return (self.operation(x * self.scale).mean() - 1e3).log()


@pytest.mark.parametrize("name", OPERATIONS)
def test_whatever_operation_comes_before_the_origin_is_observed(name, caplog):
    torch.manual_seed(0)
    model = Applies(OPERATIONS[name])
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with gradwatch.watch(model, optimizer, on_nonfinite="skip") as watcher:
        model(torch.rand(2, 3, 4, 4)).backward()
        optimizer.step()
    assert "fault in gradwatch" not in caplog.text
    (finding,) = watcher.findings
    assert finding.cause.startswith("Observed: ")
    assert "the logarithm of -" in finding.cause
