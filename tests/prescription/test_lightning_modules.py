"""``prescribe`` trains a ``LightningModule`` by its own methods, as a Trainer would."""

from dataclasses import replace

import lightning.pytorch
import pytest
import pytorch_lightning
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from transformers import BatchEncoding

import gradwatch
from gradwatch.prescription.loaded_batches import load
from gradwatch.prescription.problem import Problem
from gradwatch.prescription.training import held_out_losses, stepper
from gradwatch.prescription.trial_program import TrialProgram

pytestmark = [
    pytest.mark.usefixtures("clock"),
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
]


def data(count=640, batch=32):
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(count, 16, generator=generator)
    y = (x @ torch.randn(16, 4, generator=generator)).argmax(1)
    return DataLoader(TensorDataset(x, y), batch_size=batch, shuffle=True)


def deep_module(framework):
    """Return a class of that framework: eight sigmoid layers, which pass on next to no gradient."""

    class Deep(framework.LightningModule):
        def __init__(self):
            super().__init__()
            layers = [nn.Linear(16, 24), nn.Sigmoid()]
            for _ in range(7):
                layers += [nn.Linear(24, 24), nn.Sigmoid()]
            self.body = nn.Sequential(*layers, nn.Linear(24, 4))

        def forward(self, x):
            return self.body(x)

        def training_step(self, batch, batch_idx):
            x, y = batch
            loss = F.cross_entropy(self(x), y)
            self.log("train_loss", loss, prog_bar=True)
            self.log_dict({"epoch": self.current_epoch, "rate": self.optimizers().param_groups[0]["lr"]})
            return {"loss": loss, "batch": batch_idx}

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Deep


Deep = deep_module(lightning.pytorch)


@pytest.mark.slow
@pytest.mark.parametrize("framework", [lightning.pytorch, pytorch_lightning], ids=lambda framework: framework.__name__)
def test_a_deep_module_is_cured_in_one_call(framework):
    found = gradwatch.prescribe(deep_module(framework), batches=data(), seeds=1, budget_seconds=8)
    assert found.best is not None, str(found)
    assert {finding.kind for finding in found.findings} == {"vanishing"}
    assert found.findings[0].layer.startswith("body.")


@pytest.mark.slow
def test_a_module_itself_may_be_given_and_stays_as_it_was():
    torch.manual_seed(0)
    module = Deep()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    found = gradwatch.prescribe(module, batches=data(), seeds=2, budget_seconds=8)
    assert found.best is not None, str(found)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert type(module) is Deep
    assert module._trainer is None


class Sums(lightning.pytorch.LightningDataModule):
    classes = 4

    def setup(self, stage):
        self.stage = stage

    def train_dataloader(self):
        return data()


def test_a_data_module_is_set_up_and_read():
    module = Sums()
    assert len(load(module).batches) == 20
    assert module.stage == "fit"


def test_a_data_module_with_several_loaders_is_refused():
    class Two(Sums):
        def train_dataloader(self):
            return [data(), data()]

    with pytest.raises(TypeError, match="batches: expected a data module with one loader, found 2 in train_dataloader"):
        load(Two())


class Plain(lightning.pytorch.LightningModule):
    """A linear layer; what was called is noted in ``seen``."""

    seen = ()

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 4)

    def forward(self, x):
        return self.layer(x)

    def training_step(self, batch, batch_idx):
        self.seen = (*self.seen, (batch_idx, self.global_step, self.current_epoch))
        return F.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_a_module_asks_its_trainer_as_it_is_used_to():
    class Curious(Plain):
        def configure_model(self):
            self.layer = nn.Linear(16, self.trainer.datamodule.classes)

        def training_step(self, batch, batch_idx, dataloader_idx):
            assert dataloader_idx == 0
            assert self.trainer.is_global_zero
            assert (
                self.trainer.max_epochs * self.trainer.num_training_batches == self.trainer.estimated_stepping_batches
            )
            assert self.lr_schedulers() is None
            self.logger.experiment.add_scalar("rate", self.optimizers().param_groups[0]["lr"], self.global_step)
            self.logger.log_metrics({"epoch": self.current_epoch})
            return super().training_step(batch, batch_idx)

    assert len(train(Curious, Sums())[1]) == 6


def train(make_model, batches, steps=6, make_optimizer=None, loss_fn=None):
    """Return (model, losses, rates) of a few updates, as a trial makes them."""
    problem = Problem.of(make_model, make_optimizer, batches, loss_fn)
    program, losses, rates = updated(problem, steps)
    held_out_losses(problem, program, float("inf"))
    return program.model, losses, rates


def updated(problem, steps):
    """Return (program, losses, rates) of a few updates."""
    torch.manual_seed(0)
    program = TrialProgram(problem.fresh_model(), problem.training, problem.loss_fn)
    optimizer = problem.fresh_optimizer(program.model, program.loss_fn)
    rates = []
    optimizer.register_step_pre_hook(lambda *_: rates.append(optimizer.param_groups[0]["lr"]))
    step = stepper(program, optimizer, lambda loss: None)
    losses = [step(number) for number in range(steps)]
    return program, losses, rates


def test_a_step_is_given_the_numbers_that_a_trainer_would_give_it():
    model, _, _ = train(Plain, data(count=160), steps=6)  # five batches, four to train on, one held out
    assert model.seen == ((0, 0, 0), (1, 1, 0), (2, 2, 0), (3, 3, 0), (4, 4, 0), (0, 5, 1), (1, 6, 1))


def test_losses_are_those_of_the_same_loop_by_hand():
    batches = list(data(count=160))
    _, losses, _ = train(Plain, batches, steps=4)
    torch.manual_seed(0)
    layer = nn.Linear(16, 4)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    for (x, y), loss in zip(batches, losses, strict=False):
        by_hand = F.cross_entropy(layer(x), y)
        assert by_hand.item() == loss
        optimizer.zero_grad()
        by_hand.backward()
        optimizer.step()


class Scheduled(Plain):
    """A module with a schedule of a given kind."""

    make = staticmethod(lambda optimizer, trainer: None)

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return {"optimizer": optimizer, "lr_scheduler": self.make(optimizer, self.trainer)}


def one_cycle(optimizer, trainer):
    steps = 40 if trainer.max_steps == 40 else 40 * trainer.estimated_stepping_batches // 300
    return {"scheduler": torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.4, total_steps=steps), "interval": "step"}


@pytest.mark.parametrize(
    "make",
    [
        one_cycle,
        lambda optimizer, _: torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5),
        lambda optimizer, _: {"scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9), "frequency": 2},
    ],
    ids=["one cycle", "each epoch", "each second epoch"],
)
def test_rates_are_those_that_a_trainer_gives(make, tmp_path):
    def make_module():
        module = Scheduled()
        module.make = make
        return module

    class Rates(lightning.pytorch.Callback):
        seen = ()

        def on_before_optimizer_step(self, trainer, module, optimizer):
            self.seen = (*self.seen, optimizer.param_groups[0]["lr"])

    loader, rates = data(count=160), Rates()
    lightning.pytorch.Trainer(
        max_steps=40, max_epochs=-1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", callbacks=[rates], default_root_dir=tmp_path,
    ).fit(make_module(), loader)  # fmt: skip
    assert len(set(rates.seen)) > 3
    assert train(make_module, loader, steps=40)[2] == pytest.approx(rates.seen)


class Plateaued(Plain):
    """A module whose rate falls when what it logs is not better than ever before; the first rate is far too high."""

    monitor, mode, options = "loss", "min", {}

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = F.cross_entropy(self(x), y.roll(1))
        self.log("loss", loss, **self.options)
        self.log_dict({"accuracy": (self(x).argmax(1) == y.roll(1)).float().mean()}, **self.options)
        return loss

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=20.0)
        plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, mode=self.mode, factor=0.5, patience=0)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": plateau, "monitor": self.monitor}}


def plateaued(monitor, mode="min", options=None):
    def make():
        module = Plateaued()
        module.monitor, module.mode, module.options = monitor, mode, options or {}
        return module

    return make


@pytest.mark.parametrize(
    ("monitor", "mode", "options"),
    [
        ("loss", "min", {}),
        ("loss", "min", {"on_epoch": True, "on_step": False}),
        ("loss", "min", {"on_epoch": True}),
        ("loss_epoch", "min", {"on_epoch": True, "on_step": True}),
        ("accuracy", "max", {"on_epoch": True}),
    ],
)
def test_rates_are_those_that_a_trainer_gives_where_they_wait_for_a_metric(monitor, mode, options, tmp_path):
    class Rates(lightning.pytorch.Callback):
        seen = ()

        def on_before_optimizer_step(self, trainer, module, optimizer):
            self.seen = (*self.seen, optimizer.param_groups[0]["lr"])

    loader, rates = DataLoader(data(count=150).dataset, batch_size=32), Rates()  # five batches, one of which is smaller
    make = plateaued(monitor, mode, options)
    torch.manual_seed(0)
    lightning.pytorch.Trainer(
        max_steps=40, max_epochs=-1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, accelerator="cpu", callbacks=[rates], default_root_dir=tmp_path,
    ).fit(make(), loader)  # fmt: skip
    assert len(set(rates.seen)) > 2
    problem = Problem.of(make, None, loader, None)
    problem = replace(problem, training=problem.training + problem.held_out)  # as the Trainer trains on all
    assert updated(problem, 40)[2] == pytest.approx(rates.seen)


def test_the_training_loss_takes_the_place_of_a_metric_of_validation_that_is_to_fall():
    rates = [updated(Problem.of(plateaued(name, mode), None, data(count=160), None), 60)[2] for name, mode in (
        ("val_loss", "min"), ("val_accuracy", "max"))]  # fmt: skip
    assert len(set(rates[0])) > 2
    assert set(rates[1]) == {20.0}


def test_nothing_that_is_logged_is_read_where_no_scheduler_waits_for_it():
    class Unreadable:
        def __float__(self):
            raise AssertionError("was read")

    class Logging(Plain):
        def training_step(self, batch, batch_idx):
            self.log("anything", Unreadable(), on_epoch=True)
            return super().training_step(batch, batch_idx)

    train(Logging, data(count=160), steps=6)


def test_a_lower_rate_lowers_the_whole_schedule():
    module = Scheduled()
    module.make = one_cycle
    problem = Problem.of(module, None, data(), None)
    model = problem.fresh_model()
    rates = []
    for factor in (1.0, 0.1):
        optimizer = problem.fresh_optimizer(model, problem.loss_fn)
        optimizer.param_groups[0]["lr"] *= factor
        optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
        for _ in range(50):
            optimizer.step()
    assert [0.1 * rate for rate in rates[:50]] == pytest.approx(rates[50:])
    assert max(rates) == pytest.approx(0.4)


@pytest.mark.slow
def test_a_logarithm_of_zero_in_the_training_step_is_cured():
    class Likelihood(Plain):
        def training_step(self, batch):
            x, y = batch
            return -F.relu(self(x)).log().gather(1, y[:, None]).mean() + self(x).square().mean()

    found = gradwatch.prescribe(Likelihood, batches=data(), seeds=1, budget_seconds=5)
    assert any(trial.remedy == "safe-log" and not trial.findings for trial in found.ranking), str(found)


def test_raw_inputs_of_a_step_are_scaled_and_targets_that_stay_as_they_are_are_told():
    class Prices(Plain):
        def training_step(self, batch, batch_idx):
            return F.mse_loss(self.layer(batch["x"]).sum(1), batch["price"])

    x = 100 * torch.randn(640, 16, generator=torch.Generator().manual_seed(1))
    items = [{"price": 50 * row.sum(), "x": row} for row in x]
    found = gradwatch.prescribe(Prices, batches=DataLoader(items, batch_size=32), seeds=1, budget_seconds=4)
    assert any(trial.remedy == "scaled-inputs" for trial in found.ranking), str(found)
    assert "only the inputs were scaled; targets have a deviation of" in found.not_applicable["scaled-inputs"]
    assert "compute the loss itself" in found.not_applicable["scaled-inputs"]


def test_a_broken_row_in_every_batch_is_left_out():
    loader = data()
    loader.dataset.tensors[0][::50, 3] = torch.nan
    found = gradwatch.prescribe(Plain, batches=loader, seeds=1, budget_seconds=4)
    assert any(trial.remedy == "clean-data" and trial.cured for trial in found.ranking), str(found)


def test_a_batch_keeps_its_type():
    class Named(Plain):
        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch.features), batch.labels)

    batches = [BatchEncoding({"features": x, "labels": y}) for x, y in data()]
    _, losses, _ = train(Named, batches)
    assert losses == train(Plain, [(batch["features"], batch["labels"]) for batch in batches])[1]


def test_layers_made_by_the_hooks_of_a_trainer_are_there():
    class Late(Plain):
        def __init__(self):
            lightning.pytorch.LightningModule.__init__(self)

        def setup(self, stage):
            assert stage == "fit"
            self.width = 4

        def configure_model(self):
            self.layer = nn.Linear(16, self.width)

    batches = list(data())
    assert train(Late, batches)[1] == train(Plain, batches)[1]


def test_what_is_given_wins_over_the_module():
    def refuse(*_):
        raise AssertionError("was called")

    class Silent(Plain):
        training_step = configure_optimizers = refuse

    def descent(parameters):
        return torch.optim.SGD(parameters, lr=0.05)

    _, losses, rates = train(Silent, data(), make_optimizer=descent, loss_fn=F.cross_entropy)
    assert len(losses) == 6
    assert set(rates) == {0.05}


class Manual(Plain):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class Two(Plain):
    def configure_optimizers(self):
        return [torch.optim.SGD(self.parameters(), lr=0.1), torch.optim.Adam(self.parameters())], []


class Without(Plain):
    def configure_optimizers(self):
        return None


class Asking(Plain):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1 / self.trainer.datamodule_of_mine)


class Lossless(Plain):
    def training_step(self, batch, batch_idx):
        return {"logits": self(batch[0])}


class Scaled(nn.Module):
    """A layer that does not know how its weight was drawn."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(16))


@pytest.mark.parametrize(
    ("make_module", "error", "said"),
    [
        (Manual, ValueError, r"make_model: expected .* automatic_optimization=False.* Give make_optimizer and loss_fn"),
        (Two, ValueError, r"return one optimizer, found SGD, Adam\. Give make_optimizer"),
        (Without, ValueError, r"return one optimizer, found none\. Give make_optimizer"),
        (
            Asking,
            TypeError,
            r"its configure_optimizers\(\) raised AttributeError: .*self\.trainer\.datamodule_of_mine is",
        ),
        (Lossless, TypeError, r"loss_fn: it is None, .* found dict without one"),
        (Scaled(), TypeError, r"Scaled holds parameters and has no reset_parameters\(\)\. Give a function"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_module_that_cannot_be_trained_so_is_refused(make_module, error, said):
    with pytest.raises(error, match=said):
        gradwatch.prescribe(make_module, batches=data(), budget_seconds=3)


def test_an_error_of_the_step_names_what_has_to_run():
    class Broken(Plain):
        def training_step(self, batch, batch_idx):
            return self(batch[0][:, :3]).mean()

    with pytest.raises(RuntimeError, match=r"Check that make_model\(\)\.training_step\(batch, 0\) returns a loss"):
        gradwatch.prescribe(Broken, batches=data(), budget_seconds=3)
