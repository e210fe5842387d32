"""GradWatch on an Ignite engine, on scikit-learn's handwritten digits: a network that clips by itself, and learns."""

import torch
from ignite.engine import Engine, Events, create_supervised_trainer
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from gradwatch.ignite import GradWatch


def main() -> None:
    torch.manual_seed(0)
    digits = load_digits()
    pixels, classes = torch.tensor(digits.data / 16, dtype=torch.float32), torch.tensor(digits.target)
    batches = DataLoader(TensorDataset(pixels, classes), batch_size=64, shuffle=True)

    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = create_supervised_trainer(model, optimizer, nn.functional.cross_entropy)
    watch = GradWatch(log_dir="runs/ignite", clip="auto", log_every_n_steps=10).attach(trainer, model, optimizer)

    @trainer.on(Events.EPOCH_COMPLETED(every=5))
    def tell(engine: Engine) -> None:
        print(f"epoch {engine.state.epoch}: loss {engine.state.output:.3f}")

    trainer.run(batches, max_epochs=10)
    print(f"{len(watch.watcher.history)} steps, {len(watch.findings)} findings")


if __name__ == "__main__":
    main()
