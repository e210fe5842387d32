"""GradWatch in a Lightning Trainer, on scikit-learn's handwritten digits: a healthy network and one that vanishes."""

import logging
import warnings

import lightning.pytorch as L
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from gradwatch.lightning import GradWatch

warnings.filterwarnings("ignore", module="lightning")  # its hints about workers and logging intervals
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Classifier(L.LightningModule):
    """A stack of linear layers with the given activation between them."""

    def __init__(self, activation: type[nn.Module], depth: int, width: int = 64) -> None:
        super().__init__()
        hidden = [layer for _ in range(depth) for layer in (nn.Linear(width, width), activation())]
        self.net = nn.Sequential(*hidden, nn.Linear(width, 10))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> Tensor:
        pixels, classes = batch
        loss = F.cross_entropy(self.net(pixels), classes)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def batches() -> DataLoader[tuple[Tensor, ...]]:
    """Return 1,797 images of 8 × 8, in batches of 64."""
    data = load_digits()
    pixels = torch.tensor(data.data, dtype=torch.float32) / 16
    return DataLoader(TensorDataset(pixels, torch.tensor(data.target)), batch_size=64, shuffle=True)


def train(name: str, model: L.LightningModule) -> GradWatch:
    """Train for ten epochs; TensorBoard files go where the Trainer's logger writes."""
    watch = GradWatch(clip="auto", log_every_n_steps=10)
    trainer = L.Trainer(
        max_epochs=10,
        callbacks=[watch],
        logger=TensorBoardLogger("runs", name=f"lightning_{name}"),
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, batches())
    print(f"{name}: train_loss {trainer.callback_metrics['train_loss']:.3f}, {len(watch.findings)} findings")
    return watch


def main() -> None:
    L.seed_everything(0)
    for name, model in (("healthy", Classifier(nn.ReLU, depth=2)), ("vanishing", Classifier(nn.Sigmoid, depth=10))):
        for finding in train(name, model).findings:
            print(f"  {finding.kind} in {finding.layer} since step {finding.step}: {finding.message}")


if __name__ == "__main__":
    main()
