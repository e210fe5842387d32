"""Published architectures at a small size, from ``transformers``, randomly initialised, on real data.

``transformers`` is imported where a program is made: whoever only lists the programs need not have it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.detection.data import digits, windows
from benchmarks.detection.program import Training, healthy, plain

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
VOCABULARY = {
    "vocab_size": 128,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": 0,
    "eos_token_id": 0,
}


def built(family: str, model: str, **options) -> nn.Module:
    """A model of ``transformers.models.<family>`` of a small size."""
    package = importlib.import_module("transformers")
    config = getattr(package, model.partition("For")[0].removesuffix("Model").removesuffix("LMHead") + "Config")
    return getattr(package, model)(config(**options))


def adam(model: nn.Module, rate: float = 3e-3) -> torch.optim.AdamW:
    return torch.optim.AdamW(model.parameters(), lr=rate)


def warm(optimizer: torch.optim.Optimizer, steps: int, rate: float) -> Callable[[int], None]:
    """A linear warm-up over ``steps``."""

    def before(step: int) -> None:
        optimizer.param_groups[0]["lr"] = rate * min(1.0, (step + 1) / steps)

    return before


def causal(model: nn.Module, steps: int = 100, rate: float = 3e-3, clip: float | None = None) -> Training:
    """The next character of the standard library's text."""
    optimizer = adam(model, rate)
    warmed = warm(optimizer, 20, rate)

    def before(step: int) -> None:
        warmed(step)
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)

    def loss_of(step: int) -> Tensor:
        inputs, targets = windows(8, 32)
        return F.cross_entropy(model(input_ids=inputs).logits.flatten(0, 1), targets.flatten())

    return plain(model, optimizer, loss_of, steps, before_update=before)


def masked(model: nn.Module, steps: int = 120, rate: float = 3e-3) -> Training:
    """Every fifth character is hidden and must be told from its neighbours."""
    optimizer = adam(model, rate)

    def loss_of(step: int) -> Tensor:
        inputs, _ = windows(8, 32)
        hidden = torch.rand(inputs.shape) < 0.2
        logits = model(input_ids=inputs.masked_fill(hidden, 1)).logits
        return F.cross_entropy(logits[hidden], inputs[hidden])

    return plain(model, optimizer, loss_of, steps, before_update=warm(optimizer, 20, rate))


def translated(model: nn.Module, steps: int = 100, rate: float = 3e-3) -> Training:
    """An encoder and a decoder that copy text."""
    optimizer = adam(model, rate)

    def loss_of(step: int) -> Tensor:
        inputs, _ = windows(8, 16)
        shifted = torch.cat([torch.zeros(8, 1, dtype=torch.long), inputs[:, :-1]], 1)
        logits = model(input_ids=inputs, decoder_input_ids=shifted).logits
        return F.cross_entropy(logits.flatten(0, 1), inputs.flatten())

    return plain(model, optimizer, loss_of, steps, before_update=warm(optimizer, 20, rate))


def seen(model: nn.Module, steps: int = 120, rate: float = 3e-3, size: int = 8) -> Training:
    """Digits as images of one channel, enlarged where the architecture asks for it."""
    x, y = digits()
    optimizer = adam(model, rate)

    def loss_of(step: int) -> Tensor:
        chosen = torch.randint(len(x), (32,))
        images = F.interpolate(x[chosen].reshape(-1, 1, 8, 8), size=size)
        return F.cross_entropy(model(pixel_values=images).logits, y[chosen])

    return plain(model, optimizer, loss_of, steps, before_update=warm(optimizer, 20, rate))


IMAGES = {"image_size": 8, "patch_size": 2, "num_channels": 1, "num_labels": 10}


@healthy(falls_to=0.85)
def gpt2_family(seed: int) -> Training:
    """GPT-2, tied head, clipped by the loop as published."""
    model = built(
        "gpt2",
        "GPT2LMHeadModel",
        n_embd=32,
        n_layer=3,
        n_head=2,
        vocab_size=128,
        n_positions=64,
        bos_token_id=0,
        eos_token_id=0,
    )
    return causal(model, clip=1.0)


@healthy(falls_to=0.85)
def llama_family(seed: int) -> Training:
    """Llama: RMSNorm, gated feed-forward, no biases."""
    return causal(built("llama", "LlamaForCausalLM", **SMALL, **VOCABULARY))


@healthy(falls_to=0.85)
def mistral_family(seed: int) -> Training:
    """Mistral: grouped keys, a sliding window."""
    options = {**SMALL, **VOCABULARY, "num_key_value_heads": 1, "sliding_window": 8}
    return causal(built("mistral", "MistralForCausalLM", **options))


@healthy(falls_to=0.85)
def mixtral_family(seed: int) -> Training:
    """Mixtral: experts, two of four for each character."""
    options = {**SMALL, **VOCABULARY, "num_key_value_heads": 1, "num_local_experts": 4}
    return causal(built("mixtral", "MixtralForCausalLM", **options), steps=80)


@healthy(falls_to=0.85)
def qwen2_family(seed: int) -> Training:
    """Qwen2: biases at query, key and value alone."""
    return causal(built("qwen2", "Qwen2ForCausalLM", **SMALL, **VOCABULARY, num_key_value_heads=2))


@healthy(falls_to=0.85)
def gemma_family(seed: int) -> Training:
    """Gemma: scaled embeddings, tied head."""
    return causal(built("gemma", "GemmaForCausalLM", **SMALL, **VOCABULARY, num_key_value_heads=2, head_dim=16))


@healthy(falls_to=0.85)
def neox_family(seed: int) -> Training:
    """GPT-NeoX: attention and feed-forward in parallel."""
    return causal(built("gpt_neox", "GPTNeoXForCausalLM", **SMALL, **VOCABULARY))


@healthy(falls_to=0.85)
def opt_family(seed: int) -> Training:
    """OPT: ReLU, positions that no sequence reaches."""
    options = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "ffn_dim": 64, "word_embed_proj_dim": 32,
        "vocab_size": 128, "max_position_embeddings": 512, "pad_token_id": None,
    }  # fmt: skip
    return causal(built("opt", "OPTForCausalLM", **options))


@healthy(falls_to=0.85)
def bloom_family(seed: int) -> Training:
    """Bloom: positions as a slope on the attention."""
    return causal(built("bloom", "BloomForCausalLM", vocab_size=128, hidden_size=32, n_layer=2, n_head=2))


@healthy(falls_to=0.9)
def bert_family(seed: int) -> Training:
    """BERT: post-norm, key bias, token types that never occur."""
    return masked(built("bert", "BertForMaskedLM", **SMALL, **{**VOCABULARY, "pad_token_id": 0}))


@healthy(falls_to=0.9)
def roberta_family(seed: int) -> Training:
    """RoBERTa: the head's bias is tied."""
    options = {**SMALL, **VOCABULARY, "pad_token_id": 1, "max_position_embeddings": 66}
    return masked(built("roberta", "RobertaForMaskedLM", **options))


@healthy(falls_to=0.9)
def albert_family(seed: int) -> Training:
    """ALBERT: one block, used three times."""
    options = {**SMALL, **VOCABULARY, "pad_token_id": 0, "embedding_size": 16, "num_hidden_layers": 3}
    return masked(built("albert", "AlbertForMaskedLM", **options))


@healthy(falls_to=0.9)
def electra_family(seed: int) -> Training:
    """ELECTRA's encoder, trained to fill in."""
    options = {**SMALL, **VOCABULARY, "pad_token_id": 0, "embedding_size": 16}
    return masked(built("electra", "ElectraForMaskedLM", **options))


@healthy(falls_to=0.9)
def distilbert_family(seed: int) -> Training:
    """DistilBERT."""
    options = {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 64, "vocab_size": 128, "pad_token_id": 0}
    return masked(built("distilbert", "DistilBertForMaskedLM", **options))


@healthy(falls_to=0.9)
def t5_family(seed: int) -> Training:
    """T5: relative positions, RMSNorm, no biases."""
    options = {
        "vocab_size": 128, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 2, "num_heads": 2,
        "decoder_start_token_id": 0,
    }  # fmt: skip
    return translated(built("t5", "T5ForConditionalGeneration", **options))


@healthy(falls_to=0.9)
def bart_family(seed: int) -> Training:
    """BART: post-norm encoder and decoder."""
    options = {
        "vocab_size": 128, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2,
        "decoder_attention_heads": 2, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 64,
        "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": 2,
    }  # fmt: skip
    return translated(built("bart", "BartForConditionalGeneration", **options))


@healthy(falls_to=0.8)
def vit_family(seed: int) -> Training:
    """ViT: a class token, positions learned."""
    return seen(built("vit", "ViTForImageClassification", **SMALL, **IMAGES))


@healthy(falls_to=0.8)
def deit_family(seed: int) -> Training:
    """DeiT: a distillation token that nothing is learned from."""
    return seen(built("deit", "DeiTForImageClassification", **SMALL, **IMAGES))


@healthy(falls_to=0.8)
def residual_network_family(seed: int) -> Training:
    """ResNet with batch normalisation."""
    options = {"num_channels": 1, "embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 2], "num_labels": 10}
    return seen(built("resnet", "ResNetForImageClassification", **options, layer_type="basic"), size=16)


@healthy(falls_to=0.85)
def convnext_family(seed: int) -> Training:
    """ConvNeXt: branches scaled from 1e-6."""
    options = {"num_channels": 1, "patch_size": 2, "hidden_sizes": [16, 32], "depths": [2, 2], "num_stages": 2}
    return seen(built("convnext", "ConvNextForImageClassification", **options, num_labels=10))


@healthy(falls_to=0.85)
def regnet_family(seed: int) -> Training:
    """RegNet: grouped convolutions, squeeze and excitation."""
    options = {"num_channels": 1, "embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 2], "groups_width": 8}
    return seen(built("regnet", "RegNetForImageClassification", **options, num_labels=10), size=16)
