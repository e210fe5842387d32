"""Programs of frameworks on two ranks: Lightning, Fabric, Accelerate and Hugging Face's Trainer.

Each trains the network of ``settings`` on the same batches, so that one reference serves all of them. Their loaders are
lists of the batches of this rank: how a framework divides data is not what is tested.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import SGD, Optimizer
from torch.utils.data import DataLoader

import gradwatch
from tests.distributed.settings import (
    NORM,
    STEPS,
    batch,
    full,
    loss_of,
    net,
    rank_part,
    sgd,
    shard,
    shown,
    targets,
)

Fields = dict[str, Any]


def batches() -> list[Tensor]:
    return [batch(step, rank_part()) for step in range(STEPS)]


def result(watcher: gradwatch.Watcher, model: nn.Module) -> Fields:
    """Figures and whole weights; of names only the end is that of the network."""
    weights = {name[name.index(next(filter(str.isdigit, name))) :]: full(p.detach()) for name, p in named(model)}
    labels = watcher.history["already_clipped"].tolist()
    return {
        **shown(watcher),
        "already_clipped": labels,
        "weights": {n: weight.tolist() for n, weight in weights.items()},
    }


def named(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    yield from ((name, p) for name, p in model.named_parameters() if any(letter.isdigit() for letter in name))


# --- Lightning


def lightning(sharded: bool) -> Callable[[], Fields]:
    def run() -> Fields:
        import lightning.pytorch as L
        from lightning.pytorch import strategies

        from gradwatch.lightning import GradWatch

        class Module(L.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.net = net()

            def configure_model(self) -> None:
                if sharded and not self.is_sharded:
                    shard(self.net, mesh=self.device_mesh["data_parallel"])
                    self.is_sharded = True

            is_sharded = False

            def training_step(self, rows: Tensor, index: int) -> Tensor:
                return loss_of(self.net, rows, 0)

            def configure_optimizers(self) -> Optimizer:
                return sgd(self)

        watch = GradWatch(clip=NORM)
        sizes = {"data_parallel_size": 2, "tensor_parallel_size": 1}
        strategy = strategies.ModelParallelStrategy(**sizes) if sharded else "ddp"  # which Lightning 2.2 does not have
        module = Module()
        trainer = L.Trainer(
            accelerator="cpu",
            devices=2,
            strategy=strategy,
            max_epochs=1,
            callbacks=[watch],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
            default_root_dir=tempfile.mkdtemp(),
        )
        weights: Fields = {}
        module.on_train_end = lambda: weights.update(result(watch.watcher, module.net))
        trainer.fit(module, DataLoader(batches(), batch_size=None))
        return {**weights, **shown(watch.watcher)}

    return run


# --- Fabric


def fabric(sharded: bool) -> Callable[[], Fields]:
    def run() -> Fields:
        from lightning.fabric import Fabric, strategies

        def parallelize(model: nn.Module, mesh: Any) -> nn.Module:
            return shard(model, mesh=mesh["data_parallel"])

        sizes = {"data_parallel_size": 2, "tensor_parallel_size": 1}
        strategy = strategies.ModelParallelStrategy(parallelize, **sizes) if sharded else "ddp"
        runner = Fabric(accelerator="cpu", devices=2, strategy=strategy)
        runner.launch()
        model = runner.setup_module(net())
        optimizer = runner.setup_optimizers(sgd(model))
        with gradwatch.watch(model, optimizer, clip=NORM) as watcher:
            for rows in batches():
                runner.backward(loss_of(model, rows, 0))
                optimizer.step()
                optimizer.zero_grad()
        return result(watcher, model)

    return run


# --- Accelerate, and Hugging Face's Trainer


def accelerate() -> Fields:
    from accelerate import Accelerator

    runner = Accelerator(cpu=True)
    model = net()
    model, optimizer = runner.prepare(model, sgd(model))
    with gradwatch.watch(model, optimizer, clip=NORM) as watcher:
        for rows in batches():
            runner.backward(loss_of(model, rows, 0))
            optimizer.step()
            optimizer.zero_grad()
    return {**result(watcher, model), "distributed": str(runner.distributed_type)}


class WithLoss(nn.Module):
    """A model as Hugging Face's Trainer wants it: it returns its loss."""

    def __init__(self) -> None:
        super().__init__()
        self.net = net()

    def forward(self, rows: Tensor) -> dict[str, Tensor]:
        outputs = self.net(rows)
        return {"loss": nn.functional.mse_loss(outputs, targets(rows)), "logits": outputs}


def huggingface(clips_by_itself: bool, by_callback: bool = False) -> Callable[[], Fields]:
    def run() -> Fields:
        from transformers import Trainer, TrainingArguments

        from gradwatch.huggingface import GradWatch

        class Loop(Trainer):
            def get_train_dataloader(self) -> DataLoader:
                return DataLoader([{"rows": rows} for rows in batches()], batch_size=None)

        model = WithLoss()
        optimizer: SGD = sgd(model)
        arguments = TrainingArguments(
            output_dir=tempfile.mkdtemp(),
            use_cpu=True,
            max_steps=STEPS,
            report_to=[],
            save_strategy="steps" if by_callback else "no",  # the first rank alone asks for the state
            save_steps=2,
            lr_scheduler_type="constant",
            max_grad_norm=NORM if clips_by_itself else 0.0,
            disable_tqdm=True,
        )
        constant = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
        trainer = Loop(model, arguments, train_dataset=batches(), optimizers=(optimizer, constant))
        clip = None if clips_by_itself else NORM
        if by_callback:
            watch = GradWatch(clip=clip)
            trainer.add_callback(watch)
            trainer.train()
            return result(watch.watcher, model)
        with gradwatch.watch(model, optimizer, clip=clip) as watcher:
            trainer.train()
        return result(watcher, model)

    return run


PROGRAMS: dict[str, Callable[[], Fields]] = {
    "Lightning, ddp": lightning(sharded=False),
    "Lightning, ModelParallelStrategy": lightning(sharded=True),
    "Fabric, ddp": fabric(sharded=False),
    "Fabric, ModelParallelStrategy": fabric(sharded=True),
    "Hugging Face": huggingface(clips_by_itself=False),
    "Hugging Face, clips by itself": huggingface(clips_by_itself=True),
    "Hugging Face, the callback": huggingface(clips_by_itself=False, by_callback=True),
}
