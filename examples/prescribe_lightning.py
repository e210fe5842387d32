"""Find the remedy that makes a LightningModule learn, in one call.

    python examples/prescribe_lightning.py [seconds]

The module brings its loss (``training_step``), its optimizer and its schedule (``configure_optimizers``), so the loader
is all that ``prescribe`` needs besides. No Trainer is made.
"""

import sys

import lightning.pytorch
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import gradwatch


class Classifier(lightning.pytorch.LightningModule):
    """Ten sigmoid layers, each of which passes on at most a quarter of the gradient."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Linear(16, 32), nn.Sigmoid()]
        for _ in range(9):
            layers += [nn.Linear(32, 32), nn.Sigmoid()]
        self.body = nn.Sequential(*layers, nn.Linear(32, 4))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        x, y = batch
        loss = nn.functional.cross_entropy(self.body(x), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> dict[str, object]:
        """Return an optimizer whose rate warms up, and then falls."""
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        steps = self.trainer.estimated_stepping_batches
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def loader() -> DataLoader[tuple[Tensor, ...]]:
    """Return batches of 16 numbers, and of each row the one of four directions in which it lies furthest."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1280, 16, generator=generator)
    y = (x @ torch.randn(16, 4, generator=generator)).argmax(1)
    return DataLoader(TensorDataset(x, y), batch_size=64, shuffle=True)


def main(seconds: float) -> None:
    """Prescribe, and print the result."""
    print(gradwatch.prescribe(Classifier, batches=loader(), budget_seconds=seconds))


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 15.0)
