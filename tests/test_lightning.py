"""GradWatch in real Trainers of both namespaces, LightningCLI and YAML included."""

import importlib
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import gradwatch
from gradwatch import Memory
from gradwatch.lightning import GradWatch
from tests.forked_python import FRAMEWORKS, run

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore::UserWarning:pytorch_lightning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]
NAMESPACES = ["lightning.pytorch", "pytorch_lightning"]


@pytest.fixture(params=NAMESPACES)
def pl(request):
    return importlib.import_module(request.param)


def module_of(pl, spoil=None, optimizer=torch.optim.SGD):
    """A regression on fixed data; the batch ``spoil`` holds a NaN."""

    class Regression(pl.LightningModule):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))

        def training_step(self, batch, index):
            x, y = batch
            if index == spoil:
                x = x * torch.nan
            return (self.net(x) - y).square().mean()

        def configure_optimizers(self):
            return optimizer(self.parameters(), lr=0.05)

    return Regression()


def data():
    generator = torch.Generator().manual_seed(0)
    return DataLoader(TensorDataset(torch.randn(64, 4, generator=generator), torch.ones(64, 1)), batch_size=8)


def fit(pl, module, callback, tmp_path, **options):
    options = {"max_epochs": 1, "logger": False, "enable_checkpointing": False} | options
    trainer = pl.Trainer(
        callbacks=[callback],
        accelerator="cpu",
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    trainer.fit(module, data())
    return trainer


def reference_run(accumulate=1):
    """Norms and losses of the same run as a plain loop."""
    module = module_of(importlib.import_module("lightning.pytorch"))
    optimizer, norms, losses = module.configure_optimizers(), [], []
    batches = list(data())
    for first in range(0, len(batches), accumulate):
        optimizer.zero_grad()
        parts = [module.training_step(batch, 0) for batch in batches[first : first + accumulate]]
        (sum(parts) / accumulate).backward()
        norms.append([p.grad.norm().item() for p in module.parameters()])
        losses.append(np.mean([part.item() for part in parts]))
        optimizer.step()
    return norms, losses


@pytest.mark.parametrize("accumulate", [1, 2])
def test_figures_are_those_of_the_plain_loop(pl, tmp_path, accumulate):
    callback = GradWatch()
    fit(pl, module_of(pl), callback, tmp_path, accumulate_grad_batches=accumulate)
    norms, losses = reference_run(accumulate)
    np.testing.assert_allclose(callback.watcher.history["grad_norm"], norms, rtol=1e-5)
    np.testing.assert_allclose(callback.watcher.history["loss"], losses, rtol=1e-5)
    assert callback.findings == []


def test_clip_is_made_before_the_update_and_totals_reach_other_callbacks(pl, tmp_path):
    callback = GradWatch(clip=0.1)
    trainer = fit(pl, module_of(pl), callback, tmp_path)
    history = callback.watcher.history
    np.testing.assert_allclose(
        history["grad_norm_clipped_total"], np.minimum(history["grad_norm_total"], 0.1), rtol=1e-4
    )
    assert trainer.callback_metrics["grad_norm_total"] == pytest.approx(history["grad_norm_total"][-1])
    assert trainer.callback_metrics["grad_norm_clipped_total"] == pytest.approx(0.1, rel=1e-4)


def test_watching_leaves_the_weights_bit_for_bit(pl, tmp_path):
    class Silent(pl.Callback):
        pass

    bare, watched = module_of(pl), module_of(pl)
    fit(pl, bare, Silent(), tmp_path)
    fit(pl, watched, GradWatch(histograms=True), tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(bare.parameters(), watched.parameters(), strict=True))


def test_nan_is_found_and_reported_through_the_trainers_own_writer(pl, tmp_path):
    logger = importlib.import_module(f"{pl.__name__}.loggers").TensorBoardLogger(tmp_path, name="run")
    callback = GradWatch(log_every_n_steps=2, layer_scalars=["grad_norm"])
    fit(pl, module_of(pl, spoil=5), callback, tmp_path, logger=logger)
    assert [(f.kind, f.layer, f.step) for f in callback.findings] == [("nonfinite", "net.2.bias", 5)]
    assert len(list(tmp_path.rglob("events*"))) == 1
    events = EventAccumulator(logger.log_dir, size_guidance={"scalars": 0, "tensors": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("grad_norm/net.0.weight")] == [0, 2, 4, 6]
    assert [event.step for event in events.Scalars("grad_norm_total")] == [0, 2, 4, 6]
    assert [event.step for event in events.Tensors("gradwatch/findings/text_summary")] == [5]


def test_without_a_tensorboard_logger_nothing_is_written(pl, tmp_path):
    fit(pl, module_of(pl), GradWatch(), tmp_path)
    assert list(tmp_path.rglob("*")) == []


def test_a_log_dir_of_its_own_is_used_where_given(pl, tmp_path):
    fit(pl, module_of(pl), GradWatch(log_dir=tmp_path / "own"), tmp_path)
    assert len(list((tmp_path / "own").glob("events*"))) == 1


def test_raise_stops_the_fit_before_the_update(pl, tmp_path):
    module = module_of(pl, spoil=3)
    with pytest.raises(gradwatch.NonFiniteError, match="step 3"):
        fit(pl, module, GradWatch(on_nonfinite="raise"), tmp_path)
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())


def test_skip_goes_on_without_the_bad_batch(pl, tmp_path):
    module, callback = module_of(pl, spoil=3), GradWatch(on_nonfinite="skip")
    fit(pl, module, callback, tmp_path)
    assert callback.watcher.history["skipped"].tolist() == [step == 3 for step in range(8)]
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())


def test_lbfgs_counts_one_step_an_update(pl, tmp_path):
    callback = GradWatch()
    fit(pl, module_of(pl, optimizer=torch.optim.LBFGS), callback, tmp_path)
    assert len(callback.watcher.history) == 8


def test_manual_optimization_watches_each_optimizers_own_parameters(pl, tmp_path):
    class Gan(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.generator, self.critic = nn.Linear(4, 4), nn.Linear(4, 1)

        def training_step(self, batch, index):
            for optimizer in self.optimizers():
                loss = self.critic(self.generator(batch[0])).square().mean()
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()

        def configure_optimizers(self):
            return [torch.optim.SGD(part.parameters(), lr=0.01) for part in (self.generator, self.critic)]

    callback = GradWatch()
    fit(pl, Gan(), callback, tmp_path)
    measured = ~np.isnan(callback.watcher.history["grad_norm"])
    assert measured[0::2].tolist() == [[True, True, False, False]] * 8
    assert measured[1::2].tolist() == [[False, False, True, True]] * 8


def test_both_clips_at_once_is_an_error_that_names_both(pl, tmp_path):
    with pytest.raises(ValueError, match=r"GradWatch\(clip='auto'\) and Trainer\(gradient_clip_val=0\.5\)"):
        fit(pl, module_of(pl), GradWatch(clip="auto"), tmp_path, gradient_clip_val=0.5)


@pytest.mark.parametrize(
    "options", [{"clip": -1.0}, {"on_nonfinite": "skipp"}, {"history": 0}, {"log_every_n_steps": -3}]
)
def test_a_bad_keyword_is_refused_where_it_is_written(options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}="):
        GradWatch(**options)
    with pytest.raises(TypeError, match="find_loss="):
        GradWatch(find_loss="yes")


def test_a_metric_of_that_name_that_the_module_logs_itself_stays_its_own(pl, tmp_path, caplog):
    module = module_of(pl)
    module.on_before_optimizer_step = lambda optimizer: module.log("grad_norm_total", 7.0, prog_bar=True)
    callback = GradWatch()
    trainer = fit(pl, module, callback, tmp_path)
    history = callback.watcher.history
    assert trainer.callback_metrics["grad_norm_total"] == 7
    assert trainer.callback_metrics["grad_norm_clipped_total"] == pytest.approx(history["grad_norm_clipped_total"][-1])
    assert trainer.progress_bar_metrics == {"grad_norm_total": 7}
    assert not [record for record in caplog.records if record.name == "gradwatch"]


def test_a_fault_of_logging_the_totals_stops_no_fit(pl, tmp_path, caplog):
    class Refusing(type(module_of(pl))):
        def log_dict(self, *args, **kwargs):
            raise RuntimeError("no more metrics")

    callback = GradWatch()
    fit(pl, Refusing(), callback, tmp_path)
    assert len(callback.watcher.history) == 8
    assert "a fault in gradwatch itself (Lightning's log)" in caplog.text


def test_the_trainers_clipping_is_seen_past(pl, tmp_path):
    callback = GradWatch()
    fit(pl, module_of(pl), callback, tmp_path, gradient_clip_val=1e-3)
    assert callback.watcher.history["grad_norm_total"][0] > 1


def test_clipping_in_manual_optimization_is_seen_past(pl, tmp_path):
    class Clipping(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False
            self.net, self.totals = nn.Linear(4, 1), []

        def training_step(self, batch, index):
            optimizer = self.optimizers()
            optimizer.zero_grad()
            self.manual_backward((self.net(batch[0]) - 1).square().mean())
            self.totals.append(torch.nn.utils.get_total_norm([p.grad for p in self.parameters()]).item())
            self.clip_gradients(optimizer, gradient_clip_val=1e-3, gradient_clip_algorithm="norm")
            optimizer.step()

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.01)

    callback, module = GradWatch(), Clipping()
    fit(pl, module, callback, tmp_path)
    np.testing.assert_allclose(callback.watcher.history["grad_norm_total"], module.totals, rtol=1e-4)
    np.testing.assert_allclose(callback.watcher.history["grad_norm_clipped_total"], 1e-3, rtol=1e-2)


def test_sinks_are_closed_and_hooks_taken_off_after_the_fit(pl, tmp_path):
    memory, module = Memory(), module_of(pl)
    trainer = fit(pl, module, GradWatch(sinks=[memory]), tmp_path)
    assert memory.closed
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    assert not any(o._optimizer_step_post_hooks for o in trainer.optimizers)


def test_a_fit_resumed_from_a_checkpoint_goes_on_counting(pl, tmp_path):
    first = GradWatch()
    trainer = fit(pl, module_of(pl, spoil=6), first, tmp_path)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    second = GradWatch()
    other = pl.Trainer(
        callbacks=[second],
        max_epochs=2,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    other.fit(module_of(pl), data(), ckpt_path=tmp_path / "end.ckpt")
    assert second.watcher.history.steps.tolist() == list(range(8, 16))
    assert [(f.kind, f.step) for f in second.findings] == [("nonfinite", 6)]
    assert second.findings[0].last_step == 15


@pytest.mark.slow
@pytest.mark.parametrize("cut", [1, 5, 8, 11, 14])
@pytest.mark.parametrize("clip", [None, "auto"])
def test_a_fit_cut_at_any_batch_finds_what_the_uncut_one_finds(pl, tmp_path, cut, clip):
    class Spikes(pl.LightningModule):
        """Batches are alike, since Lightning begins a cut epoch's data anew; what is sick follows the global step."""

        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))

        def training_step(self, batch, index):
            step = self.trainer.global_step
            trained.append(step)
            loss = (self.net(torch.ones(8, 4)) - 1).square().mean()
            return loss * torch.nan if step == 6 else loss + step * 1e-3

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.01)

    def callback():
        thresholds = gradwatch.Thresholds(vanishing_norm=1e9, patience=3)
        return GradWatch(clip=clip, on_nonfinite="skip", thresholds=thresholds)

    def fit_of(*callbacks, ckpt_path=None):
        trainer = pl.Trainer(
            callbacks=list(callbacks),
            max_epochs=2,
            accelerator="cpu",
            logger=False,
            default_root_dir=tmp_path,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Spikes(), data(), ckpt_path=ckpt_path)

    saves = pl.callbacks.ModelCheckpoint(tmp_path, "{step}", save_top_k=-1, every_n_train_steps=1)
    whole, second = callback(), callback()
    trained = []
    fit_of(whole, saves)
    at_most = trained.pop()
    trained.clear()
    fit_of(second, ckpt_path=tmp_path / f"step={cut}.ckpt")
    assert second.watcher.history.steps.tolist() == trained
    assert trained[0] == cut
    assert trained[-1] <= at_most + 1  # Lightning 2.2 trains the batch at which it saved a checkpoint once more
    expected = [replace(each, last_step=trained[-1]) if each.last_step == at_most else each for each in whole.findings]
    assert second.findings == expected
    totals = [watch.watcher.history["grad_norm_clipped_total"] for watch in (second, whole)]
    np.testing.assert_array_equal(totals[0][: at_most + 1 - cut], totals[1][cut:])


PROGRAM = """
    import torch
    import {namespace} as pl
    from {namespace}.cli import LightningCLI

    class Model(pl.LightningModule):
        def __init__(self, width: int = 8):
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Linear(4, width), torch.nn.Linear(width, 1))
        def training_step(self, batch, index):
            return self.net(batch).square().mean()
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.01)
        def train_dataloader(self):
            return torch.utils.data.DataLoader(torch.randn(16, 4), 8)

    cli = LightningCLI(Model, save_config_callback=None)
    if cli.trainer.callbacks:
        (watch,) = [c for c in cli.trainer.callbacks if type(c).__name__ == "GradWatch"]
        print("layers", watch.watcher.history.layers, "steps", len(watch.watcher.history))
"""
CONFIG = """
    trainer:
      max_epochs: 1
      accelerator: cpu
      logger: false
      enable_checkpointing: false
      enable_progress_bar: false
      callbacks:
        - class_path: gradwatch.lightning.GradWatch
          init_args:
            clip: 0.5
            include: ["net.0.*"]
            thresholds: {vanishing_norm: 1.0e-9}
            layer_scalars: true
"""


@pytest.mark.process
@pytest.mark.parametrize("namespace", NAMESPACES)
def test_lightning_cli_takes_it_from_yaml_and_prints_its_config(namespace, tmp_path):
    (tmp_path / "program.py").write_text(textwrap.dedent(PROGRAM).format(namespace=namespace))
    (tmp_path / "config.yaml").write_text(textwrap.dedent(CONFIG))
    command = [sys.executable, "program.py", "fit", "--config", "config.yaml"]
    done = run(command, loaded=FRAMEWORKS, cwd=tmp_path)
    assert "layers ('net.0.weight', 'net.0.bias') steps 2" in done.stdout, done.stderr
    shown = run([*command, "--print_config"], loaded=FRAMEWORKS, cwd=tmp_path, check=True)
    assert "class_path: gradwatch.lightning.GradWatch" in shown.stdout
    assert "vanishing_norm: 1.0e-09" in shown.stdout
    assert "on_nonfinite: report" in shown.stdout
