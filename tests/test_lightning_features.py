"""GradWatch beside the other features of a Trainer: each run has the weights and the figures of the run without it."""

import logging
import pickle
import sys
import textwrap
import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch import callbacks, strategies
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.tuner import Tuner
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradwatch.lightning import GradWatch
from tests.distributed.launch import torchrun
from tests.forked_python import FRAMEWORKS, run

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore:.*lr_scheduler.step:UserWarning"),  # of lr_find, where no batch was trained yet
]


class Regression(pl.LightningModule):
    """A regression on fixed data. It raises at step ``failing_at``, and has a NaN as its loss at ``spoilt_at``."""

    def __init__(self, optimizer=torch.optim.SGD, failing_at=None, spoilt_at=None, **rates):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
        self.lr, self.batch_size = 0.05, 8
        self.optimizer, self.rates = optimizer, rates
        self.failing_at, self.spoilt_at = failing_at, spoilt_at
        self.latest = None

    def training_step(self, batch, index):
        if self.global_step == self.failing_at:
            raise RuntimeError("the power went out")
        inputs, targets = batch
        loss = (self.net(inputs) - targets).square().mean()
        self.latest = loss.item()
        return loss * torch.nan if self.global_step == self.spoilt_at else loss

    def configure_optimizers(self):
        return self.optimizer(self.parameters(), lr=self.lr, **self.rates)

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(0)
        dataset = TensorDataset(torch.randn(64, 4, generator=generator), torch.ones(64, 1))
        return DataLoader(dataset, batch_size=self.batch_size)


class ByHand(pl.Callback):
    """The total norms and the mean losses of a run that is not watched, in float64."""

    def __init__(self):
        self.totals, self.losses, self.window = [], [], []

    def on_after_backward(self, trainer, module):
        self.window.append(module.latest)

    def on_before_optimizer_step(self, trainer, module, optimizer):
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        is_scaled = scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False)
        scale = scaler.get_scale() if is_scaled else 1
        squares = [parameter.grad.double().square().sum().item() for parameter in module.parameters()]
        self.totals.append(np.sqrt(np.sum(squares)) / scale)
        self.losses.append(np.mean(self.window))
        self.window = []


class RateFinderInBetween(callbacks.LearningRateFinder):
    """Lightning's own example: the search begins anew in the middle of a fit."""

    def on_fit_start(self, trainer, module):
        pass

    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 1:
            self.lr_find(trainer, module)


class OtherOptimizer(callbacks.Callback):
    def on_train_epoch_start(self, trainer, module):
        if trainer.current_epoch == 1:
            trainer.strategy.setup_optimizers(trainer)


QUIET = {"accelerator": "cpu", "enable_progress_bar": False, "enable_model_summary": False, "logger": False}


def trainer_of(tmp_path, *others, **options):
    saves = any(isinstance(each, callbacks.Checkpoint) for each in others)
    options = {**QUIET, "max_epochs": 2, "enable_checkpointing": saves, "default_root_dir": tmp_path} | options
    return pl.Trainer(callbacks=list(others), **options)


def assert_same(module, other):
    assert all(torch.equal(a, b) for a, b in zip(module.parameters(), other.parameters(), strict=True))


def assert_like_by_hand(tmp_path, make, others=list, begin=None, **options):
    """Train twice, watched and not, and compare weights and figures; return the callback."""
    by_hand, watch = ByHand(), GradWatch()
    modules = []
    for callback in (by_hand, watch):
        module, trainer = make(), trainer_of(tmp_path, callback, *others(), **options)
        if begin is not None:
            begin(trainer, module)
        trainer.fit(module)
        modules.append(module)
    history = watch.watcher.history
    assert_same(*modules)
    assert history.steps.tolist() == list(range(len(by_hand.totals)))
    rtol = 1e-5 if next(module.parameters()).dtype.itemsize >= 4 else 1e-2  # a bfloat16 total has 8 bits
    np.testing.assert_allclose(history["grad_norm_total"], by_hand.totals, rtol=rtol)
    np.testing.assert_allclose(history["loss"], by_hand.losses, rtol=rtol)
    assert np.isfinite(history["update_ratio"][0]).all()
    assert watch.findings == []
    return watch


FEATURES = {
    "SWA": {"others": lambda: [callbacks.StochasticWeightAveraging(swa_lrs=1e-2, swa_epoch_start=1)], "max_epochs": 3},
    "accumulation schedule": {"others": lambda: [callbacks.GradientAccumulationScheduler({0: 4, 1: 3})]},
    "fast_dev_run": {"fast_dev_run": 3},
    "overfit_batches": {"overfit_batches": 2},
    "clipping of the Trainer": {"gradient_clip_val": 1e-3},
    "detect_anomaly": {"detect_anomaly": True},
    "lr_find": {"begin": lambda trainer, module: Tuner(trainer).lr_find(module, num_training=10)},
    "LearningRateFinder": {"others": lambda: [callbacks.LearningRateFinder(num_training_steps=10)]},
    "LearningRateFinder in between": {"others": lambda: [RateFinderInBetween(num_training_steps=10)]},
    "scale_batch_size": {"begin": lambda trainer, module: Tuner(trainer).scale_batch_size(module, max_trials=2)},
    "other optimizers in between": {"others": lambda: [OtherOptimizer()]},
    **{precision: {"precision": precision} for precision in ("64-true", "bf16-true", "16-true", "bf16-mixed")},
}
if hasattr(callbacks, "WeightAveraging"):  # Lightning 2.2 has none
    FEATURES["weight averaging"] = {"others": lambda: [callbacks.WeightAveraging()]}


@pytest.mark.parametrize("name", FEATURES)
def test_a_run_is_that_without_the_callback(tmp_path, name):
    assert_like_by_hand(tmp_path, Regression, **FEATURES[name])


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_scale_is_not_in_the_figures(tmp_path, fused, accumulate):
    assert_like_by_hand(
        tmp_path,
        lambda: Regression(torch.optim.Adam, fused=fused),
        plugins=MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=1024.0)),
        accumulate_grad_batches=accumulate,
    )


def test_barebones_has_its_figures_and_logs_nothing(tmp_path):
    nothing = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert_like_by_hand(tmp_path, Regression, barebones=True, **nothing)
    assert not any("self.log" in str(warning.message) for warning in said)


def test_each_fit_begins_anew_and_a_tuner_in_between_changes_nothing(tmp_path):
    watch = GradWatch()
    trainer, module = trainer_of(tmp_path, watch), Regression(spoilt_at=5)
    trainer.fit(module)
    assert [(finding.kind, finding.step) for finding in watch.findings] == [("nonfinite", 5)]
    trainer.fit_loop.max_epochs = 3
    healthy = Regression()
    Tuner(trainer).lr_find(healthy, num_training=5)
    trainer.fit(healthy)
    assert watch.watcher.history.steps.tolist() == list(range(8))
    assert watch.findings == []


def test_a_fit_goes_on_from_the_checkpoint_of_an_exception(tmp_path):
    first, second = GradWatch(), GradWatch()
    with pytest.raises(RuntimeError, match="power"):
        trainer_of(tmp_path, first, callbacks.OnExceptionCheckpoint(tmp_path, "cut")).fit(Regression(failing_at=5))
    bare, resumed = Regression(), Regression()
    trainer_of(tmp_path).fit(bare, ckpt_path=tmp_path / "cut.ckpt")
    trainer_of(tmp_path, second).fit(resumed, ckpt_path=tmp_path / "cut.ckpt")
    assert_same(resumed, bare)
    assert first.watcher.history.steps.tolist() == [0, 1, 2, 3, 4]
    assert second.watcher.history.steps[0] == 5


def test_a_copy_of_a_callback_has_its_settings_and_no_fit(tmp_path):
    watch = GradWatch(include="net.0.*")
    trainer_of(tmp_path, watch, max_epochs=1).fit(Regression(spoilt_at=3))
    other = pickle.loads(pickle.dumps(watch))
    assert other.watcher is None
    assert other.findings == []
    trainer_of(tmp_path, other, max_epochs=1).fit(Regression())
    assert other.watcher.history.layers == ("net.0.weight", "net.0.bias")
    assert [finding.kind for finding in watch.findings] == ["nonfinite"]


# --- checkpoints


def saved(tmp_path, *watches, module=None):
    trainer = trainer_of(tmp_path, *watches, max_epochs=1)
    trainer.fit(module or Regression())
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    return tmp_path / "saved.ckpt"


def test_a_checkpoint_goes_on_in_a_trainer_without_the_callback_and_back(tmp_path):
    bare, module = Regression(), Regression()
    trainer_of(tmp_path).fit(bare)
    path = saved(tmp_path, GradWatch())
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer_of(tmp_path).fit(module, ckpt_path=path)
    assert not any("callbacks used to create the checkpoint" in str(warning.message) for warning in said)
    assert_same(module, bare)

    watch, module = GradWatch(), Regression()
    trainer_of(tmp_path, watch).fit(module, ckpt_path=saved(tmp_path))
    assert_same(module, bare)
    assert watch.watcher.history.steps.tolist() == list(range(8))  # of its own: nothing watched those before


def lines_of(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "gradwatch"]


def test_a_fit_resumes_with_another_include(tmp_path, caplog):
    path = saved(tmp_path, GradWatch(include="*.weight", clip="auto"))
    bare, module, watch = Regression(), Regression(), GradWatch(include=["net.0.*"], clip="auto")
    trainer_of(tmp_path, GradWatch(clip="auto")).fit(bare)
    with caplog.at_level(logging.WARNING, "gradwatch"):
        trainer_of(tmp_path, watch).fit(module, ckpt_path=path)
    assert lines_of(caplog) == [
        "gradwatch: other layers are watched than in the checkpoint: 1 new (net.0.bias), 1 gone (net.2.weight). Steps "
        "are counted on, and what is learned of layers begins anew."
    ]
    assert watch.watcher.history.steps.tolist() == list(range(8, 16))
    assert_same(module, bare)  # the averages of clip="auto" went on, too


def test_a_state_that_cannot_be_read_stops_no_fit(tmp_path, caplog):
    path = saved(tmp_path, GradWatch())
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["gradwatch"][0]["version"] = 0
    torch.save(checkpoint, path)
    watch = GradWatch()
    with caplog.at_level(logging.WARNING, "gradwatch"):
        trainer_of(tmp_path, watch).fit(Regression(), ckpt_path=path)
    (line,) = lines_of(caplog)
    assert "found version 0" in line
    assert watch.watcher.history.steps.tolist() == list(range(8))


@pytest.mark.parametrize("of_a_stranger", [{"runs": 3}, [3], []])
def test_what_somebody_else_has_saved_by_that_name_stops_no_fit(tmp_path, of_a_stranger):
    path, watch = saved(tmp_path), GradWatch()
    torch.save({**torch.load(path, weights_only=True), "gradwatch": of_a_stranger}, path)
    trainer_of(tmp_path, watch).fit(Regression(), ckpt_path=path)
    assert watch.watcher.history.steps.tolist() == list(range(8))


def test_a_strategy_that_restores_after_setup_resumes_the_watcher(tmp_path):
    class RestoresLate(SingleDeviceStrategy):
        """It restores as FSDP and ModelParallel do, which need a model that is sharded already."""

        restore_checkpoint_after_setup = True

    path, watch = saved(tmp_path, GradWatch()), GradWatch()
    options = {"strategy": RestoresLate("cpu"), "accelerator": "auto"}
    trainer_of(tmp_path, watch, **options).fit(Regression(), ckpt_path=path)
    assert watch.watcher.history.steps.tolist() == list(range(8, 16))


# --- several callbacks


def test_two_callbacks_watch_one_fit_and_each_resumes_its_own(tmp_path):
    bare, module = Regression(), Regression(spoilt_at=5)
    trainer_of(tmp_path, GradWatch(clip=0.1), max_epochs=1).fit(bare)
    first, second = GradWatch(include="net.0.*"), GradWatch(include="net.2.*", clip=0.1)
    path = saved(tmp_path, first, second)
    trainer_of(tmp_path, first, second, max_epochs=1).fit(other := Regression())
    assert_same(other, bare)
    assert [watch.watcher.history.layers[0] for watch in (first, second)] == ["net.0.weight", "net.2.weight"]
    np.testing.assert_array_equal(*(watch.watcher.history["grad_norm_total"] for watch in (first, second)))
    assert first.watcher.history["grad_norm_total"].max() > 0.1  # measured before the second clips

    resumed = [GradWatch(include="net.0.*"), GradWatch(include="net.2.*", clip=0.1)]
    trainer_of(tmp_path, *resumed).fit(module, ckpt_path=path)
    assert [watch.watcher.history.steps[0] for watch in resumed] == [8, 8]


def test_only_the_last_of_several_callbacks_acts(tmp_path):
    with pytest.raises(ValueError, match="Give clip, on_nonfinite and recover to the last one"):
        trainer_of(tmp_path, GradWatch(on_nonfinite="skip"), GradWatch()).fit(Regression())


def test_two_callbacks_write_one_file_each(tmp_path):
    logger = pl.loggers.TensorBoardLogger(tmp_path, name="run")
    watches = GradWatch(), GradWatch(log_dir=tmp_path / "second"), GradWatch()
    trainer_of(tmp_path, *watches, logger=logger, max_epochs=1).fit(Regression())
    assert len(list(tmp_path.rglob("events*"))) == 2


# --- processes

SPAWN = """
    import lightning.pytorch as pl, torch
    from gradwatch.lightning import GradWatch
    from tests.test_lightning_features import QUIET, Regression

    if __name__ == "__main__":
        watch = GradWatch(include=["net.*"])
        trainer = pl.Trainer(devices=1, strategy="ddp_spawn", callbacks=[watch], max_epochs=1,
                             enable_checkpointing=False, **QUIET)
        trainer.fit(Regression(spoilt_at=2))
        print([(f.kind, f.step) for f in watch.findings], watch.watcher)
"""


@pytest.mark.process
@pytest.mark.slow
def test_findings_return_from_processes_that_the_trainer_starts(tmp_path):
    (tmp_path / "train.py").write_text(textwrap.dedent(SPAWN))
    done = run([sys.executable, "train.py"], loaded=FRAMEWORKS, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "[('nonfinite', 2)] None", done.stderr


SHARDED = """
    import lightning.pytorch as pl
    from lightning.pytorch.strategies import ModelParallelStrategy
    from torch.distributed.fsdp import fully_shard
    from gradwatch.lightning import GradWatch
    from tests.test_lightning_features import QUIET, Regression

    class Sharded(Regression):
        is_sharded = False

        def configure_model(self):
            if not self.is_sharded:
                fully_shard(self.net, mesh=self.device_mesh["data_parallel"])
                self.is_sharded = True

    def fit(epochs, path=None):
        watch = GradWatch(clip=0.5)
        strategy = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1)
        trainer = pl.Trainer(devices=2, strategy=strategy, callbacks=[watch], max_epochs=epochs,
                             enable_checkpointing=False, use_distributed_sampler=False, **QUIET)
        trainer.fit(Sharded(), ckpt_path=path)
        return trainer, watch

    fit(1)[0].save_checkpoint("sharded")
    trainer, watch = fit(2, "sharded")
    print(f"rank {trainer.global_rank} resumed at {watch.watcher.history.steps[0]}")
"""


@pytest.mark.process
@pytest.mark.slow
def test_a_sharded_fit_resumes_from_its_sharded_checkpoint(tmp_path):
    (tmp_path / "train.py").write_text(textwrap.dedent(SHARDED))
    ended = torchrun(2, ["train.py"], tmp_path, 120)
    if not hasattr(strategies, "ModelParallelStrategy"):  # Lightning 2.2 has FSDP1 alone, which it refuses on a CPU
        assert ended.status != 0
        assert "cannot import name 'ModelParallelStrategy'" in ended.output
        return
    assert ended.status == 0, ended.output
    assert all(f"rank {rank} resumed at 8" in ended.output for rank in (0, 1)), ended.output
