"""Gradient scalers: figures are unscaled, what a scaler leaves out is counted as skipped, overflows are no NaN."""

import importlib

import numpy as np
import pytest
import torch
from torch import nn
from torch.amp import GradScaler

import gradwatch
from gradwatch import clip
from gradwatch.lightning import GradWatch

STEPS = 8
OPTIMIZERS = {
    "sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.01),
    "adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01),
    "fused adam": lambda parameters: torch.optim.Adam(parameters, lr=0.01, fused=True),
    "fused sgd": lambda parameters: torch.optim.SGD(parameters, lr=0.01, fused=True),
}


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))


def loss_of(model, step):
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 4, generator=generator)
    return (model(x) - x.sum(1, keepdim=True)).square().mean()


def train(
    make,
    scaler=None,
    overflow_at=(),
    unscale=False,
    watched=False,
    steps=STEPS,
    *,
    is_found=False,
    clip_at=None,
    **options,
):
    """(watcher, weights): one loop, with or without a scaler; at ``overflow_at`` the scaled loss overflows."""
    model = net()
    optimizer = make(model.parameters())
    given = None if is_found else scaler  # found: the loss, too
    watcher = gradwatch.watch(model, optimizer, scaler=given, **options) if watched else None
    for step in range(steps):
        loss = loss_of(model, step)
        if watcher is not None and not is_found:
            watcher.observe_loss(loss)
        optimizer.zero_grad()
        if scaler is None:
            loss.backward()
            optimizer.step()
            continue
        overflow = torch.inf if step in overflow_at else 1.0
        if is_found:  # in the gradients alone, as on a device: the loss stays what it is
            handle = model[0].weight.register_hook(lambda gradient, factor=overflow: gradient * factor)
            scaler.scale(loss).backward()
            handle.remove()
        else:
            (scaler.scale(loss) * overflow).backward()
        if unscale:
            scaler.unscale_(optimizer)
        if clip_at is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip_at)
        scaler.step(optimizer)
        scaler.update()
    if watcher is not None:
        watcher.close()
    return watcher, [parameter.detach().clone() for parameter in model.parameters()]


def scaler_of(scale=1024.0):
    return GradScaler("cpu", init_scale=scale)


@pytest.mark.parametrize("is_found", [False, True], ids=["given", "found"])
@pytest.mark.parametrize("unscale", [False, True])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_figures_are_unscaled(make, unscale, is_found):
    plain, _ = train(make, watched=True, log_every_n_steps=1, layer_scalars=True)
    options = {"watched": True, "log_every_n_steps": 1, "layer_scalars": True, "is_found": is_found}
    scaled, _ = train(make, scaler_of(), unscale=unscale, **options)
    for name in (
        "grad_norm",
        "grad_norm_total",
        "grad_norm_clipped_total",
        "loss",
        "grad_max",
        "grad_mean",
        "grad_std",
    ):
        np.testing.assert_allclose(scaled.history[name], plain.history[name], rtol=1e-4, atol=1e-7, err_msg=name)


@pytest.mark.parametrize(
    "policy", [0.5, clip.by_value(0.01), clip.by_layer_norm(0.2)], ids=lambda policy: str(policy)[:9]
)
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_clipping_is_that_of_unscaled_gradients(make, policy):
    plain, expected = train(make, watched=True, clip=policy)
    scaled, weights = train(make, scaler_of(), watched=True, clip=policy)
    torch.testing.assert_close(weights, expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        scaled.history["grad_norm_clipped_total"], plain.history["grad_norm_clipped_total"], rtol=1e-4
    )


@pytest.mark.parametrize("make", [OPTIMIZERS["sgd"], OPTIMIZERS["adam"]])
def test_a_loop_that_clips_after_unscaling_has_its_true_norms_without_naming_its_scaler(make):
    plain, _ = train(make, watched=True)
    scaled, _ = train(make, scaler_of(2.0**16), unscale=True, clip_at=1e9, watched=True, is_found=True)
    np.testing.assert_allclose(scaled.history["grad_norm_total"], plain.history["grad_norm_total"], rtol=1e-4)
    np.testing.assert_allclose(scaled.history["loss"], plain.history["loss"], rtol=1e-5)


@pytest.mark.parametrize("is_found", [False, True], ids=["given", "found"])
@pytest.mark.parametrize("on_nonfinite", ["report", "skip", "raise"])
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_overflows_are_skipped_steps_and_no_finding(make, on_nonfinite, is_found):
    options = {"watched": True, "on_nonfinite": on_nonfinite, "is_found": is_found}
    watcher, weights = train(make, scaler_of(), (0, 1, 5), **options)
    assert watcher.findings == []
    assert watcher.history["skipped"].tolist() == [step in (0, 1, 5) for step in range(STEPS)]
    assert np.isfinite(watcher.history["loss"]).all()
    _, bare = train(make, scaler_of(), (0, 1, 5))
    assert all(torch.equal(a, b) for a, b in zip(weights, bare, strict=True))


def test_overflows_that_persist_are_a_finding_from_the_first_on():
    watcher, _ = train(OPTIMIZERS["adam"], scaler_of(2.0**60), range(3, 40), watched=True, steps=40)
    (finding,) = watcher.findings
    assert (finding.kind, finding.step, finding.raised_step) == ("nonfinite", 3, 22)
    assert "20 times in a row" in finding.cause


def test_the_scaler_gets_its_own_step_back():
    scaler = scaler_of()
    train(OPTIMIZERS["sgd"], scaler, watched=True)
    assert "step" not in vars(scaler)


def test_a_disabled_scaler_changes_nothing():
    plain, expected = train(OPTIMIZERS["sgd"], watched=True)
    off, weights = train(OPTIMIZERS["sgd"], GradScaler("cpu", enabled=False), watched=True)
    np.testing.assert_array_equal(off.history["grad_norm"], plain.history["grad_norm"])
    assert all(torch.equal(a, b) for a, b in zip(weights, expected, strict=True))


def test_what_is_no_scaler_is_refused_by_name():
    with pytest.raises(TypeError, match="scaler: expected"):
        gradwatch.watch(net(), scaler=1024.0)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore:.*LeafSpec")
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("namespace", ["lightning.pytorch", "pytorch_lightning"])
def test_lightnings_16_mixed_is_unscaled_and_its_overflows_are_skipped(namespace, make, tmp_path):
    pl = importlib.import_module(namespace)
    precision = importlib.import_module(f"{namespace}.plugins").MixedPrecision

    class Regression(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = net()

        def training_step(self, batch, index):
            with torch.autocast("cpu", enabled=False):  # so that the plain loop computes the same
                loss = loss_of(self.net, index)
            self.overflows = index == 2 and overflow
            return loss

        def backward(self, loss, *args, **kwargs):
            super().backward(loss * torch.inf if self.overflows else loss, *args, **kwargs)

        def configure_optimizers(self):
            return make(self.parameters())

    for overflow in (False, True):
        callback = GradWatch()
        trainer = pl.Trainer(
            max_epochs=1,
            callbacks=[callback],
            plugins=precision("16-mixed", "cpu", scaler_of()),
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Regression(), torch.utils.data.DataLoader(range(STEPS), batch_size=1))
        history = callback.watcher.history
        assert callback.findings == []
        assert history["skipped"].tolist() == [overflow and step == 2 for step in range(STEPS)]
        if not overflow:
            plain, _ = train(make, watched=True)
            np.testing.assert_allclose(history["grad_norm"], plain.history["grad_norm"], rtol=1e-4)
            np.testing.assert_allclose(history["loss"], plain.history["loss"], rtol=1e-5)
