"""GradWatch in a Hugging Face Trainer: a tiny language model, healthy at one learning rate and exploding at another."""

import logging

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from gradwatch.huggingface import GradWatch

logging.getLogger("transformers").setLevel(logging.ERROR)  # its hints about settings that this example does not need


def sentences(count: int = 256) -> list[dict[str, Tensor]]:
    """Return sequences of 16 numbers that count upwards from anywhere, and start again at 16."""
    starts = torch.randint(16, (count,), generator=torch.Generator().manual_seed(0))
    tokens = (starts[:, None] + torch.arange(16)) % 16
    return [{"input_ids": row, "labels": row} for row in tokens]


def model() -> GPT2LMHeadModel:
    """Return a GPT-2 of two layers with random weights; nothing is downloaded."""
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=16, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None
    )
    return GPT2LMHeadModel(config)


def train(name: str, learning_rate: float) -> GradWatch:
    """Train for 60 steps of two accumulated batches; gradwatch clips, so the Trainer must not."""
    watch = GradWatch(log_dir=f"runs/huggingface_{name}", clip="auto")
    arguments = TrainingArguments(
        f"runs/huggingface_{name}/checkpoints",
        learning_rate=learning_rate,
        max_steps=60,
        per_device_train_batch_size=16,
        gradient_accumulation_steps=2,
        max_grad_norm=0.0,
        logging_steps=10,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        use_cpu=True,
    )
    trainer = Trainer(model(), arguments, train_dataset=sentences(), callbacks=[watch])
    result = trainer.train()
    print(f"{name}: train_loss {result.training_loss:.3f}, {len(watch.findings)} findings")
    return watch


def main() -> None:
    for name, learning_rate in (("healthy", 3e-3), ("too_fast", 3.0)):
        for finding in train(name, learning_rate).findings:
            print(f"  {finding.message}")


if __name__ == "__main__":
    main()
