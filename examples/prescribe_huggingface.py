"""Find the remedy for a language model of Hugging Face that is trained far too fast.

    python examples/prescribe_huggingface.py [seconds]

The model computes its loss itself, since the collator puts labels into each batch. So a function that makes the model,
one that makes the optimizer and the loader are all that ``prescribe`` needs.
"""

import logging
import sys

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import GPT2Config, GPT2LMHeadModel, default_data_collator

import gradwatch

logging.getLogger("transformers").setLevel(logging.ERROR)  # its hints about settings that this example does not need


def make_model() -> GPT2LMHeadModel:
    """Make a GPT-2 of two layers with random weights; nothing is downloaded."""
    config = GPT2Config(
        vocab_size=16, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None
    )
    return GPT2LMHeadModel(config)


def loader() -> DataLoader[dict[str, Tensor]]:
    """Return batches of 16 sequences of 16 numbers that count upwards from anywhere, and start again at 16."""
    starts = torch.randint(16, (512,), generator=torch.Generator().manual_seed(0))
    tokens = (starts[:, None] + torch.arange(16)) % 16
    dataset = [{"input_ids": row, "labels": row} for row in tokens]
    return DataLoader(dataset, batch_size=16, collate_fn=default_data_collator)  # type: ignore[arg-type]


def main(seconds: float) -> None:
    """Prescribe, and print the result."""
    prescription = gradwatch.prescribe(
        make_model,
        lambda parameters: torch.optim.AdamW(parameters, lr=1.0),
        loader(),
        budget_seconds=seconds,
    )
    print(prescription)


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 15.0)
