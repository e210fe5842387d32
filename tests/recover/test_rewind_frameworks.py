"""A run that goes back inside the loops of Lightning and Hugging Face, and on two ranks: against a loop by hand."""

import json
import subprocess
import sys
import textwrap

import lightning.pytorch as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

import gradwatch
from gradwatch import Rewind
from gradwatch.huggingface import GradWatch as HuggingFaceGradWatch
from gradwatch.lightning import GradWatch as LightningGradWatch

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
STEPS, FAULT = 40, 27
SEEN = [*range(20), *range(FAULT + 3, STEPS)]  # the run goes back to the snapshot after step 19


def rows():
    inputs = torch.randn(STEPS * 8, 4, generator=torch.Generator().manual_seed(2))
    return [{"x": x, "y": x.sum(dim=0, keepdim=True)} for x in inputs]


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.1), nn.Tanh(), nn.Linear(8, 1))


def loss_of(net, x, y):
    return (net(x) - y).square().mean()


def flip_a_bit(net):
    with torch.no_grad():
        net[3].weight[0, 0] = 1e38


def by_hand(rate_at):
    """Return the network after a plain loop over the batches in ``SEEN``, with a rate for each."""
    net = network()
    optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.0)
    batches = list(DataLoader(rows(), batch_size=8))
    torch.manual_seed(1)
    for step, number in enumerate(SEEN):
        optimizer.param_groups[0]["lr"] = rate_at(step)
        optimizer.zero_grad()
        loss_of(net, **batches[number]).backward()
        optimizer.step()
    return net


def recover():
    return Rewind(every=10, confirm=5, lr_factor=1.0)


def assert_same(net, expected):
    assert all(torch.equal(one, other) for one, other in zip(net.parameters(), expected.parameters(), strict=True))


class Module(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = network()

    def on_train_start(self):
        torch.manual_seed(1)

    def training_step(self, batch, number):
        if number == FAULT:
            flip_a_bit(self.net)
        return loss_of(self.net, **batch)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.02, weight_decay=0.0)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=10, gamma=0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def test_a_fit_of_lightning_goes_back_with_its_scheduler(tmp_path):
    module, watch = Module(), LightningGradWatch(recover=recover())
    trainer = L.Trainer(
        max_epochs=1, accelerator="cpu", logger=False, callbacks=[watch], default_root_dir=tmp_path,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(rows(), batch_size=8))
    assert "went back to the snapshot after step 19" in watch.findings[0].actions[-1]
    assert_same(module.net, by_hand(lambda step: 0.02 * 0.5 ** (step // 10)))


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network()
        self.calls = 0

    def forward(self, x, y):
        if self.calls == 0:
            torch.manual_seed(1)
        if self.calls == FAULT:
            flip_a_bit(self.net)
        self.calls += 1
        return {"loss": loss_of(self.net, x, y)}


class OrderedTrainer(Trainer):
    """A Trainer that does not shuffle, so that the loop by hand knows the batches."""

    def get_train_dataloader(self):
        return DataLoader(rows(), batch_size=8)


def test_a_training_of_hugging_face_goes_back_with_its_scheduler(tmp_path):
    model, watch = Model(), HuggingFaceGradWatch(recover=recover())
    arguments = TrainingArguments(
        str(tmp_path), max_steps=STEPS, per_device_train_batch_size=8, learning_rate=0.02, max_grad_norm=0,
        lr_scheduler_type="linear", use_cpu=True, report_to="none", save_strategy="no", logging_strategy="no",
        disable_tqdm=True, optim="adamw_torch",
    )  # fmt: skip
    OrderedTrainer(model, arguments, train_dataset=rows(), callbacks=[watch]).train()
    assert "went back to the snapshot after step 19" in watch.findings[0].actions[-1]
    assert_same(model.net, by_hand(lambda step: 0.02 * (STEPS - step) / STEPS))


@pytest.mark.process
def test_two_ranks_go_back_together_though_one_alone_is_sick(tmp_path):
    """The weight of one replica flips: its own loss shows that, and the averaged gradients show it on both."""
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            import json, sys
            import torch
            from torch import distributed, nn
            from torch.nn.parallel import DistributedDataParallel
            import gradwatch

            distributed.init_process_group("gloo")
            rank = distributed.get_rank()
            torch.manual_seed(0)
            model = DistributedDataParallel(nn.Linear(4, 1))
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
            generator = torch.Generator().manual_seed(rank)
            recover = gradwatch.Rewind(every=10, confirm=5)
            with gradwatch.watch(model, optimizer, recover=recover) as watcher:
                for step in range(40):
                    x = torch.randn(8, 4, generator=generator)
                    if step == 27 and rank == 1:
                        with torch.no_grad():
                            model.module.weight.fill_(1e38)
                    (model(x) - x.sum(dim=1, keepdim=True)).square().mean().backward()
                    optimizer.step()
                    optimizer.zero_grad()
            actions = [action for finding in watcher.findings for action in finding.actions]
            with open(f"{sys.argv[1]}/{rank}.json", "w") as file:
                json.dump([actions, model.module.weight.tolist()], file)
            distributed.destroy_process_group()
            """
        )
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(program)]
    done = subprocess.run([*command, str(tmp_path)], check=False, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    (actions, weights), (others, other_weights) = (
        json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)
    )
    assert [action for action in actions if "went back to the snapshot after step 19" in action]
    assert [action for action in others if "went back to the snapshot after step 19" in action]
    assert weights == other_weights


def test_what_a_framework_knows_joins_the_state_once():
    scheduler = torch.optim.lr_scheduler.StepLR(torch.optim.SGD([torch.ones(1)], lr=0.1), 1)
    from gradwatch.recover.rewind import with_state

    assert with_state(None, [scheduler]) is None
    assert with_state(Rewind(state=[scheduler]), [scheduler]).state == (scheduler,)
    assert with_state(Rewind(), [scheduler, None]).state == (scheduler,)
    assert gradwatch.Rewind is Rewind
