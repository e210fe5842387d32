"""A model that computes its loss itself is given whole batches, as models of transformers are."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    GPT2Config,
    GPT2LMHeadModel,
    PreTrainedTokenizerFast,
    default_data_collator,
)

import gradwatch
from gradwatch.prescription.model_copies import ModelCopies
from gradwatch.prescription.problem import Problem

pytestmark = pytest.mark.usefixtures("clock")


def language_model():
    config = GPT2Config(
        vocab_size=16, n_positions=16, n_embd=32, n_layer=2, n_head=2, bos_token_id=None, eos_token_id=None
    )
    return GPT2LMHeadModel(config)


def sentences(count=256):
    """Return sequences of 16 numbers that count upwards from anywhere, and start again at 16."""
    starts = torch.randint(16, (count,), generator=torch.Generator().manual_seed(0))
    tokens = (starts[:, None] + torch.arange(16)) % 16
    items = [{"input_ids": row, "labels": row} for row in tokens]
    return DataLoader(items, batch_size=16, collate_fn=default_data_collator)


def classifier():
    config = BertConfig(
        vocab_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=16, num_labels=2,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def tokenizer():
    words = {"[PAD]": 0, **{f"word{number}": number for number in range(1, 16)}}
    made = Tokenizer(models.WordLevel(words, unk_token="[PAD]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token="[PAD]")


def reviews(count=256):
    """Return sentences of several lengths, whose class says whether their first word is above 8."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(4, 13, (count,), generator=generator).tolist()
    rows = [torch.randint(1, 16, (length,), generator=generator).tolist() for length in lengths]
    tokenise = tokenizer()
    texts = [" ".join(f"word{number}" for number in row) for row in rows]
    items = [{**tokenise(text), "label": int(row[0] > 8)} for text, row in zip(texts, rows, strict=True)]
    return DataLoader(items, batch_size=16, collate_fn=DataCollatorWithPadding(tokenise))


def adam(rate):
    return lambda parameters: torch.optim.AdamW(parameters, lr=rate)


@pytest.mark.slow
def test_a_language_model_far_too_fast_is_cured():
    found = gradwatch.prescribe(language_model, adam(3.0), sentences(), seeds=1, budget_seconds=5)
    assert found.best is not None, str(found)
    assert "lower-learning-rate" in found.best.remedy
    assert found.not_applicable["scaled-inputs"] == "not applicable: the inputs are no finite real numbers"
    assert "smaller-batches" not in found.not_applicable  # 16 sentences of 16 words can be cut


@pytest.mark.slow
def test_a_classifier_far_too_fast_is_cured():
    found = gradwatch.prescribe(classifier, adam(1.0), reviews(), seeds=1, budget_seconds=5)
    assert found.best is not None, str(found)
    assert "lower-learning-rate" in found.best.remedy


def test_the_loss_of_the_model_is_used_and_the_optimizer_of_its_trainer():
    problem = Problem.of(language_model, None, sentences(), None)
    model = problem.fresh_model().eval()
    inputs, targets = problem.training[0]
    assert torch.equal(problem.loss_fn(model(**inputs), targets), model(**inputs).loss)
    group = problem.fresh_optimizer(model, problem.loss_fn).param_groups[0]
    assert (group["lr"], group["betas"], group["weight_decay"]) == (5e-5, (0.9, 0.999), 0.0)


def test_labels_go_to_a_loss_that_is_given():
    problem = Problem.of(classifier, adam(1e-3), reviews(), lambda outputs, y: F.cross_entropy(outputs.logits, y))
    inputs, labels = problem.training[0]
    assert {"attention_mask", "input_ids"} <= set(inputs)
    assert "labels" not in inputs
    assert labels.shape == (16,)
    assert problem.loss_fn(problem.fresh_model()(**inputs), labels).ndim == 0


def test_a_model_of_transformers_keeps_its_weights_under_every_seed():
    model = classifier()
    make = ModelCopies.of(model)
    torch.manual_seed(3)
    copied = make()
    assert copied is not model
    assert all(torch.equal(mine, its) for mine, its in zip(copied.parameters(), model.parameters(), strict=True))


def test_another_model_keeps_its_weights_under_the_first_seed_alone():
    make = ModelCopies.of(nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)))
    copies = {}
    for seed in (0, 1, 1, 2):
        torch.manual_seed(seed)
        copies.setdefault(seed, []).append(make()[0].weight)
    original = make.original[0].weight
    assert torch.equal(copies[0][0], original)
    assert torch.equal(*copies[1])
    assert not torch.equal(copies[1][0], original)
    assert not torch.equal(copies[1][0], copies[2][0])


class Own(nn.Module):
    """A model whose output for a batch (x, y) is made by a function of (scores, loss)."""

    def __init__(self, output):
        super().__init__()
        self.layer, self.output = nn.Linear(16, 4), output

    def forward(self, x, y):
        scores = self.layer(x)
        return self.output(scores, F.cross_entropy(scores, y))


def batches(count=10):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(8, 16, generator=generator), torch.randint(4, (8,), generator=generator)) for _ in range(count)
    ]


@pytest.mark.parametrize(
    "output",
    [
        lambda scores, loss: loss,
        lambda scores, loss: (scores, loss),
        lambda scores, loss: {"scores": scores, "loss": loss},
    ],
    ids=["scalar", "tuple", "mapping"],
)
def test_a_plain_module_may_compute_its_loss_too(output):
    found = gradwatch.prescribe(lambda: Own(output), adam(1e-3), batches(), seeds=1, budget_seconds=4)
    assert found.note.startswith("Nothing was sick")


class Headless(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 4)

    def forward(self, x, y):
        return self.layer(x), y.float()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"make_optimizer": adam(1e-3)}, "loss_fn: it is None, so .* found tuple without one. Put the labels into"),
        ({}, r"make_optimizer: expected a function, found None, and Headless is neither a LightningModule"),
        ({"make_optimizer": batches()}, r"make_optimizer: .* found list\..* If these are the batches, write batches="),
        ({"make_optimizer": adam(1e-3), "loss_fn": 3}, "loss_fn: expected something to call, found int"),
    ],
)
def test_what_is_missing_is_named(arguments, said):
    with pytest.raises(TypeError, match=said):
        gradwatch.prescribe(**{"make_model": Headless, "batches": batches(), "budget_seconds": 2, **arguments})


def test_a_batch_that_the_model_cannot_take_is_named_with_what_has_to_run():
    items = [{"input_ids": torch.full((4,), 99), "labels": torch.zeros(4, dtype=torch.int64)}] * 32
    loader = DataLoader(items, batch_size=8, collate_fn=default_data_collator)
    with pytest.raises(RuntimeError, match=r"Check that make_model\(\)\(\*\*batch\)\.loss\.backward\(\) runs"):
        gradwatch.prescribe(language_model, batches=loader, budget_seconds=3)
