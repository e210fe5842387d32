"""A file that a run of a framework has written is replayed."""

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradwatch.recover.black_box_file import read_black_box
from gradwatch.recover.failed_step import step_in
from gradwatch.recover.step_replay import replay

pytestmark = [
    pytest.mark.filterwarnings("ignore::UserWarning:lightning"),
    pytest.mark.filterwarnings("ignore::UserWarning:lightning.pytorch"),
    pytest.mark.filterwarnings("ignore:.*LeafSpec"),
    pytest.mark.filterwarnings("ignore::UserWarning:accelerate"),
    pytest.mark.filterwarnings("ignore::FutureWarning:accelerate"),
    pytest.mark.filterwarnings("ignore::FutureWarning:transformers"),
    pytest.mark.filterwarnings("ignore:.*pin_memory.*:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*CUDA is not available"),
]


def data_with_a_bad_row():
    torch.manual_seed(1)
    x, y = torch.randn(64, 4), torch.randn(64, 2)
    x[35, 2] = float("nan")  # row 3 of the third batch of 16
    return TensorDataset(x, y)


def layers():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))


@pytest.mark.slow
@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_file_of_a_lightning_run_is_replayed_bit_for_bit(tmp_path, accumulated):
    import lightning

    from gradwatch.lightning import GradWatch

    class Lit(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = layers()

        def training_step(self, batch, batch_idx):
            x, y = batch
            x = x + 0.1 * torch.randn_like(x)  # drawn before any module is called
            loss = (self.net(x) - y).square().mean()
            self.log("train_loss", loss)
            return loss

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    torch.manual_seed(0)
    watch = GradWatch(black_box=tmp_path / "box.pt")
    trainer = lightning.Trainer(
        callbacks=[watch],
        accelerator="cpu",
        max_epochs=1,
        accumulate_grad_batches=accumulated,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
    )
    trainer.fit(Lit(), DataLoader(data_with_a_bad_row(), batch_size=16))
    content = read_black_box(tmp_path / "box.pt")
    assert content["target"] == (2 if accumulated == 1 else 1)
    step = step_in(content)
    assert len(step.record["batches"]) == accumulated
    shown = replay({"": Lit()}, step)
    assert (shown.verdict, shown.is_bitwise) == ("reproducible", True)
    assert shown.rows[0].row == 3


@pytest.mark.slow
def test_a_file_of_a_hugging_face_run_is_replayed_bit_for_bit(tmp_path):
    from transformers import Trainer, TrainingArguments

    from gradwatch.huggingface import GradWatch

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = layers()

        def forward(self, x, labels):
            return {"loss": (self.net(x) - labels).square().mean()}

    data = [{"x": x, "labels": y} for x, y in data_with_a_bad_row()]
    torch.manual_seed(0)
    watch = GradWatch(black_box=tmp_path / "box.pt")
    arguments = TrainingArguments(
        str(tmp_path / "out"),
        per_device_train_batch_size=16,
        num_train_epochs=1,
        report_to="none",
        use_cpu=True,
        save_strategy="no",
        disable_tqdm=True,
        max_grad_norm=0,
    )
    Trainer(Net(), arguments, train_dataset=data, callbacks=[watch]).train()
    shown = replay({"": Net()}, step_in(read_black_box(tmp_path / "box.pt")))
    assert (shown.verdict, shown.is_bitwise) == ("reproducible", True)
    assert not shown.rows[0].is_finite


def test_a_file_of_an_ignite_run_is_replayed_bit_for_bit(tmp_path):
    from ignite.engine import create_supervised_trainer

    from gradwatch.ignite import GradWatch

    torch.manual_seed(0)
    model = layers()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.mse_loss)
    GradWatch(black_box=tmp_path / "box.pt").attach(trainer, model, optimizer)
    trainer.run(DataLoader(data_with_a_bad_row(), batch_size=16), max_epochs=1)
    shown = replay({"": layers()}, step_in(read_black_box(tmp_path / "box.pt")))
    assert (shown.verdict, shown.is_bitwise) == ("reproducible", True)
    assert shown.rows[0].row == 3
