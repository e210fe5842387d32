"""Every kind of tensor that trains is measured as a slow float64 loop measures it, and clipped as torch clips it."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import gradwatch
from tests import reference

SAMPLED, LOGGED = (0, 1, 2, 4, 8, 10), (0, 4, 8)
EVERY_FIGURE = {"layer_scalars": True, "log_every_n_steps": 4}
STEPS = 12
FIGURES = {
    "weight_norm": reference.l2_norm,
    "grad_max": reference.largest,
    "grad_zero_fraction": reference.zero_fraction,
}
HALF = {torch.float16, torch.bfloat16}


class Bowl(nn.Module):
    """Sum of |p − 1|² · weight over bare parameters: each gradient depends on its own tensor alone."""

    def __init__(self, **shapes):
        super().__init__()
        for seed, (name, (shape, dtype)) in enumerate(shapes.items()):
            generator = torch.Generator().manual_seed(seed)
            start = torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)
            self.register_parameter(name, nn.Parameter(start * (0.6 + 0.8j) if dtype.is_complex else start))

    def forward(self, step):
        return sum(((p - 1).abs().square().sum() * (2 + math.cos(step))).double() for p in self.parameters())


class Sparse(nn.Module):
    """Rare rows: most of an embedding has no gradient, and one row comes twice."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.head = nn.Embedding(12, 4, sparse=True), nn.Linear(4, 1)

    def forward(self, step):
        return self.head(self.embedding(torch.tensor([step % 5, 3, step % 5, 7]))).square().sum()


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.unused, self.second = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 4)
        self.second.weight = self.first.weight

    def forward(self, step):
        x = torch.linspace(-1, 1, 8).reshape(2, 4) * (step + 1)
        return self.second(self.first(x).relu()).square().mean()


class ChannelsLast(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 4, 3), nn.Linear(4, 1)
        self.to(memory_format=torch.channels_last)

    def forward(self, step):
        x = torch.linspace(-1, 1, 2 * 3 * 6 * 6).reshape(2, 3, 6, 6).contiguous(memory_format=torch.channels_last)
        return self.head(self.conv(x * math.cos(step)).relu().mean((2, 3))).square().mean()


class Lazy(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.head = nn.LazyLinear(5), nn.LazyLinear(1)

    def forward(self, step):
        torch.manual_seed(step)  # the first forward draws the weights
        return self.head(self.hidden(torch.linspace(-1, 1, 6).reshape(2, 3) * (step + 1)).tanh()).square().mean()


CASES = {
    **{
        str(dtype).removeprefix("torch."): lambda dtype=dtype: Bowl(matrix=((5, 4), dtype), vector=((7,), dtype))
        for dtype in reference.DTYPES
    },
    "mixed": lambda: Bowl(
        f16=((6, 2), torch.float16),
        bf16=((3,), torch.bfloat16),
        f32=((4, 4), torch.float32),
        f64=((2, 5), torch.float64),
        c64=((3, 3), torch.complex64),
    ),
    "0-dim": lambda: Bowl(scalar=((), torch.float32), scalar64=((), torch.float64), row=((3,), torch.float32)),
    "empty": lambda: Bowl(empty=((0, 3), torch.float32), full=((2, 3), torch.float32), none=((0,), torch.float64)),
    "only empty": lambda: Bowl(empty=((0, 3), torch.float32)),
    "sparse": Sparse,
    "tied": Tied,
    "channels_last": ChannelsLast,
    "lazy": Lazy,
}
NOT_CLIPPED_BY_TORCH = {"sparse"}


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.01)


def train(model, optimizer, steps=STEPS, watcher=None, before_update=lambda: None, after_update=lambda: None):
    for step in range(steps):
        optimizer.zero_grad()
        loss = model(step)
        if watcher is not None:
            watcher.observe_loss(loss)
        loss.backward()
        before_update()
        optimizer.step()
        after_update()


def watched(make, steps=STEPS, make_optimizer=sgd, **options):
    model = make()
    optimizer = make_optimizer(model)
    with gradwatch.watch(model, optimizer, **options) as watcher:
        train(model, optimizer, steps, watcher)
    return watcher, model


def expected_figures(make, make_optimizer=sgd):
    """Names to (S, P) lists, from a loop that nobody watches."""
    model = make()
    optimizer = make_optimizer(model)
    rows = {name: [] for name in ("grad_norm", "grad_norm_total", "update_ratio", *FIGURES)}
    weights = []

    def before_update():
        grads = [None if p.grad is None else reference.values(p.grad) for p in model.parameters()]
        weights[:] = [reference.values(p) for p in model.parameters()]
        rows["grad_norm"].append([math.nan if g is None else reference.l2_norm(g) for g in grads])
        rows["grad_norm_total"].append(reference.total_norm([g for g in grads if g is not None]))
        for name, figure in FIGURES.items():
            of = weights if name.startswith("weight") else grads
            rows[name].append([math.nan if g is None else figure(w) for g, w in zip(grads, of, strict=True)])

    def after_update():
        pairs = zip(weights, model.parameters(), strict=True)
        rows["update_ratio"].append(
            [math.nan if p.grad is None else reference.relative_change(w, reference.values(p)) for w, p in pairs]
        )

    train(model, optimizer, before_update=before_update, after_update=after_update)
    return rows


def assert_history_is(history, expected):
    np.testing.assert_allclose(history["grad_norm"], expected["grad_norm"], rtol=1e-5)
    np.testing.assert_allclose(history["grad_norm_total"], expected["grad_norm_total"], rtol=1e-5)
    for name in ("update_ratio", *FIGURES):
        at = list(LOGGED if name.startswith("grad") else SAMPLED)
        between = sorted(set(range(STEPS)) - set(at))
        wanted = np.array(expected[name])[at]
        np.testing.assert_allclose(history[name][at], wanted, rtol=1e-5, atol=1e-9, err_msg=name)
        assert np.isnan(history[name][between]).all(), name


@pytest.mark.parametrize("case", CASES)
def test_history_is_that_of_a_slow_float64_loop(case):
    watcher, model = watched(CASES[case], **EVERY_FIGURE)
    assert watcher.history.layers == tuple(name for name, _ in model.named_parameters())
    assert_history_is(watcher.history, expected_figures(CASES[case]))


@pytest.mark.parametrize("case", sorted(set(CASES) - {"sparse"}))
def test_history_under_adam_is_that_of_a_slow_float64_loop(case):
    def adam(model):
        return torch.optim.Adam(model.parameters(), lr=0.01)

    watcher, _ = watched(CASES[case], make_optimizer=adam, **EVERY_FIGURE)
    assert_history_is(watcher.history, expected_figures(CASES[case], adam))


@pytest.mark.parametrize("case", CASES)
def test_no_kind_of_tensor_is_taken_for_sick(case):
    watcher, _ = watched(CASES[case], steps=40)
    assert [finding for finding in watcher.findings if finding.layer] == []


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("options", [{}, {"histograms": True, "layer_scalars": True, "log_every_n_steps": 3}])
def test_watching_changes_no_bit_of_any_kind_of_tensor(case, options, tmp_path):
    bare = CASES[case]()
    train(bare, sgd(bare))
    log_dir = tmp_path if options else None
    _, model = watched(CASES[case], log_dir=log_dir, **options)
    for a, b in zip(bare.parameters(), model.parameters(), strict=True):
        assert a.stride() == b.stride()
        torch.testing.assert_close(b, a, rtol=0, atol=0)


@pytest.mark.parametrize("case", sorted(set(CASES) - NOT_CLIPPED_BY_TORCH))
def test_clip_trains_as_clip_grad_norm_does(case):
    bare = CASES[case]()
    train(bare, sgd(bare), before_update=lambda: nn.utils.clip_grad_norm_(bare.parameters(), 1.0))
    watcher, model = watched(CASES[case], clip=1.0)
    for a, b in zip(model.parameters(), bare.parameters(), strict=True):
        # torch rounds the norm of half-precision gradients to their dtype, and with it the total; gradwatch does not
        tolerance = {"rtol": 2**-6, "atol": 2**-8} if a.dtype in HALF else {"rtol": 1e-4, "atol": 1e-6}
        tolerance = tolerance if case == "mixed" or a.dtype in HALF else {}
        torch.testing.assert_close(a, b, **tolerance)
    assert (watcher.history["grad_norm_clipped_total"] <= 1 + 1e-6).all()


@pytest.mark.parametrize("case", CASES)
def test_clip_scales_gradients_as_a_slow_float64_loop_does(case):
    model = CASES[case]()
    optimizer = sgd(model)
    with gradwatch.watch(model, optimizer, clip=0.1) as watcher:
        optimizer.zero_grad()
        model(0).backward()
        grads = [reference.values(p.grad) for p in model.parameters() if p.grad is not None]
        optimizer.step()
    after = [p.grad for p in model.parameters() if p.grad is not None]
    for gradient, wanted in zip(after, reference.clip_by_norm(grads, 0.1), strict=True):
        relative = {torch.float16: 2**-10, torch.bfloat16: 2**-7}.get(gradient.dtype, 1e-5)
        np.testing.assert_allclose(reference.values(gradient), wanted, rtol=relative, atol=1e-7)
    np.testing.assert_allclose(watcher.history["grad_norm_total"], [reference.total_norm(grads)], rtol=1e-5)


def spoil(gradient, value, count):
    """A copy with ``count`` entries replaced, at most all of them."""
    gradient = (gradient.coalesce() if gradient.is_sparse else gradient).clone()
    entries = gradient.values() if gradient.is_sparse else gradient
    positions = [np.unravel_index(i, tuple(entries.shape)) for i in range(count)]
    for position in positions:
        entries[tuple(int(i) for i in position)] = value
    return gradient


SPOILED = [
    *[(case, "vector", 3) for case in ("float16", "bfloat16", "float32", "float64", "complex64")],
    *[("mixed", name, 2) for name in ("f16", "bf16", "f32", "f64", "c64")],
    ("0-dim", "scalar", 1),
    ("empty", "full", 6),
    ("sparse", "embedding.weight", 4),
    ("tied", "first.weight", 5),
    ("channels_last", "conv.weight", 7),
    ("lazy", "hidden.weight", 2),
]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(("case", "name", "count"), SPOILED)
def test_entries_that_are_not_finite_are_counted_and_named(case, name, count, value):
    model = CASES[case]()
    if case == "lazy":
        model(0)  # a gradient hook needs a tensor
    optimizer = sgd(model)
    with gradwatch.watch(model, optimizer) as watcher:
        train(model, optimizer, 2, watcher)
        hook = dict(model.named_parameters())[name].register_hook(lambda g: spoil(g, value, count))
        train(model, optimizer, 1, watcher)
        hook.remove()
    column = watcher.history.layers.index(name)
    wanted = np.zeros((3, len(watcher.history.layers)), dtype=int)
    wanted[2, column] = count
    np.testing.assert_array_equal(watcher.history["nonfinite"], wanted)
    (finding,) = watcher.findings
    assert (finding.kind, finding.layer, finding.layers, finding.step) == ("nonfinite", name, (name,), 2)
    assert (finding.value, finding.severity) == (count, "error")
    assert name in finding.message


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("case", sorted(set(CASES) - {"only empty", "lazy"}))
def test_a_total_that_is_not_finite_scales_nothing(case, value):
    model = CASES[case]()
    optimizer = sgd(model)
    name, _ = max(model.named_parameters(), key=lambda named: named[1].numel())
    with gradwatch.watch(model, optimizer, clip=1e-3) as watcher:
        dict(model.named_parameters())[name].register_hook(lambda g: spoil(g, value, 1))
        optimizer.zero_grad()
        model(0).backward()
        before = [reference.values(p.grad) for p in model.parameters() if p.grad is not None]
        optimizer.step()
    after = [reference.values(p.grad) for p in model.parameters() if p.grad is not None]
    np.testing.assert_array_equal(np.concatenate(after), np.concatenate(before))
    assert watcher.history["nonfinite"].sum() == 1


def test_the_largest_of_half_precision_is_no_overflow():
    model = Bowl(f16=((400,), torch.float16))
    optimizer = sgd(model)
    with gradwatch.watch(model, optimizer) as watcher:
        model.get_parameter("f16").grad = torch.full((400,), 65504.0, dtype=torch.float16)
        optimizer.step()
    np.testing.assert_allclose(watcher.history["grad_norm"], [[65504.0 * 20]], rtol=1e-6)
    assert watcher.history["nonfinite"].tolist() == [[0]]


def test_a_tied_tensor_appears_once_by_its_first_name():
    watcher, _ = watched(Tied, steps=2)
    assert "first.weight" in watcher.history.layers
    assert "second.weight" not in watcher.history.layers
    assert len(watcher.history.layers) == len({*watcher.history.layers}) == 5


def test_an_unused_tensor_is_not_measured_and_is_no_finding():
    watcher, _ = watched(Tied, steps=40, **EVERY_FIGURE)
    unused = [name.startswith("unused") for name in watcher.history.layers]
    for name in ("grad_norm", "update_ratio", *FIGURES):
        assert np.isnan(watcher.history[name][:, unused]).all()
        assert not np.isnan(watcher.history[name][0, ~np.array(unused)]).any()
    assert watcher.findings == []


def test_a_lazy_module_is_watched_before_its_first_forward_by_its_final_shape():
    watcher, model = watched(Lazy, steps=3)
    assert watcher.history.layers == ("hidden.weight", "hidden.bias", "head.weight", "head.bias")
    assert not np.isnan(watcher.history["grad_norm"]).any()
    assert model.hidden.weight.shape == (5, 3)


def test_hooks_of_a_lazy_module_come_off_whether_or_not_it_was_used():
    for steps in (0, 2):
        _, model = watched(Lazy, steps=steps)
        model(0).backward()
        assert not any(p._post_accumulate_grad_hooks for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool])
def test_a_parameter_of_whole_numbers_is_not_measured_and_disturbs_nothing(dtype, caplog):
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    model.seed = nn.Parameter(torch.ones(2, dtype=dtype), requires_grad=False)
    optimizer = torch.optim.Adam([each for each in model.parameters() if each.requires_grad], lr=0.01)
    with gradwatch.watch(model, optimizer, clip=1.0) as watcher:
        for _ in range(25):
            model(torch.ones(8, 4)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert len(watcher.history) == 25
    assert np.isnan(watcher.history["grad_norm"][:, watcher.history.layers.index("seed")]).all()
    assert "a fault in gradwatch" not in caplog.text


@pytest.mark.parametrize("place", ["whole model", "one layer"])
def test_tensors_on_the_meta_device_are_refused_by_name(place):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1, device="meta"))
    model = model.to("meta") if place == "whole model" else model
    name = "0.weight" if place == "whole model" else "1.weight"
    with pytest.raises(ValueError, match=rf"'{name}' is on the meta device .* Materialise it before watch\(\)"):
        gradwatch.watch(model)


def test_a_bare_tensor_on_the_meta_device_is_refused_by_name():
    with pytest.raises(ValueError, match="'w' is on the meta device"):
        gradwatch.watch_tensors({"w": torch.ones(2, device="meta")})


@pytest.mark.parametrize(
    "model", [nn.ReLU(), nn.Linear(2, 2).requires_grad_(False), nn.Sequential()], ids=["none", "frozen", "no modules"]
)
def test_a_model_with_nothing_to_train_is_refused(model):
    with pytest.raises(ValueError, match="expected at least one parameter that requires a gradient, found none"):
        gradwatch.watch(model)


def test_no_bare_tensors_at_all_are_refused():
    with pytest.raises(ValueError, match="empty mapping"):
        gradwatch.watch_tensors({})


@pytest.mark.parametrize("case", reference.finite_cases())
def test_bare_gradients_of_every_kind_are_those_of_a_slow_float64_loop(case):
    grads = {f"w{i}": gradient for i, gradient in enumerate(reference.finite_cases()[case])}
    tensors = {name: torch.ones(g.shape, dtype=g.dtype) for name, g in grads.items()}
    entries = [reference.values(gradient) for gradient in grads.values()]
    with gradwatch.watch_tensors(tensors, clip=0.5, layer_scalars=True) as watcher:
        watcher.step(grads=grads, loss=1.0)
    norms = [reference.l2_norm(values) for values in entries]
    np.testing.assert_allclose(watcher.history["grad_norm"], [norms], rtol=1e-5)
    np.testing.assert_allclose(watcher.history["grad_norm_total"], [reference.total_norm(entries)], rtol=1e-5)
    np.testing.assert_allclose(
        watcher.history["grad_max"], [[reference.largest(v) if v else math.nan for v in entries]]
    )
    zeros = [[reference.zero_fraction(values) for values in entries]]
    np.testing.assert_allclose(watcher.history["grad_zero_fraction"], zeros)
    for gradient, wanted in zip(grads.values(), reference.clip_by_norm(entries, 0.5), strict=True):
        relative = {torch.float16: 2**-9, torch.bfloat16: 2**-6}.get(gradient.dtype, 1e-5)
        np.testing.assert_allclose(reference.values(gradient), wanted, rtol=relative, atol=1e-7)


@pytest.mark.parametrize("case", ["float16", "bfloat16", "float32", "float64", "complex64", "0-dim", "mixed"])
def test_bare_tensors_tell_how_far_their_update_moved_them_one_step_later(case):
    tensors = {f"w{i}": tensor for i, tensor in enumerate(reference.finite_cases()[case]) if tensor.numel() <= 128}
    before = [reference.values(tensor) for tensor in tensors.values()]
    with gradwatch.watch_tensors(tensors) as watcher:
        watcher.step(grads={name: tensor.clone() for name, tensor in tensors.items()}, loss=1.0)
        for tensor in tensors.values():
            tensor -= 0.125 * tensor
        after = [reference.values(tensor) for tensor in tensors.values()]
        watcher.step(grads={name: tensor.clone() for name, tensor in tensors.items()}, loss=1.0)
    wanted = [reference.relative_change(old, new) for old, new in zip(before, after, strict=True)]
    np.testing.assert_allclose(watcher.history["update_ratio"][1], wanted, rtol=1e-5)


def test_names_that_no_file_takes_are_named_as_the_user_has_them():
    names = ["\ud800", r"\ud800", "a\ud800b"]
    tensors = {name: torch.ones(2, requires_grad=True) for name in names}
    with gradwatch.watch_tensors(tensors) as watcher:
        for _ in range(3):
            watcher.step(grads={name: torch.ones(2) * (place + 1) for place, name in enumerate(names)})
        assert (watcher.history["grad_norm"][-1] / 2**0.5).tolist() == pytest.approx([1, 2, 3])
        assert len(set(watcher.history.layers)) == 3
        with pytest.raises(KeyError, match="is not watched"):
            watcher.step(grads={"b": torch.ones(2)})
