"""Safe forms: the plain function inside its domain, finite at its edge."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradwatch.remedies import (
    SafeDivision,
    SafeLog,
    SafeSoftmax,
    SafeSqrt,
    masked_softmax,
    safe_divide,
    safe_exp,
    safe_log,
    safe_norm,
    safe_sqrt,
    unmask_full_rows,
)


@pytest.mark.parametrize(
    ("mode", "formula", "inside", "edge"),
    [
        (SafeLog, torch.log, 0.5, 0.0),
        (SafeLog, lambda x: x.log(), 0.5, -1.0),
        (SafeLog, torch.log1p, 0.5, -1.0),
        (SafeLog, lambda x: torch.xlogy(x, x), 0.5, 0.0),
        (SafeLog, lambda x: x.exp() / x.exp().sum(), 0.5, 1000.0),
        (SafeSqrt, torch.sqrt, 0.5, 0.0),
        (SafeSqrt, lambda x: (x * torch.arange(3)).std(0, correction=0), 0.5, 0.0),
        (SafeSqrt, lambda x: torch.cdist(x.unsqueeze(0), 2 * x.unsqueeze(0)), 0.5, 0.0),
        (SafeSqrt, torch.linalg.norm, 0.5, 0.0),
        (SafeSqrt, lambda x: x.norm(dim=0), 0.5, 0.0),
        (SafeSqrt, lambda x: x**0.5, 0.5, 0.0),
        (SafeSqrt, torch.acos, 0.5, 1.0),
        (SafeDivision, lambda x: 1 / x, 0.5, 0.0),
        (SafeDivision, lambda x: x / x, 0.5, 0.0),
        (SafeDivision, lambda x: torch.div(x, x), 0.5, 0.0),
        (SafeSoftmax, lambda x: x.softmax(-1), 0.5, -math.inf),
        (SafeSoftmax, lambda x: F.softmax(x, dim=-1), 0.5, -math.inf),
    ],
)
def test_a_safe_formula_is_the_formula_inside_its_domain_and_finite_at_its_edge(mode, formula, inside, edge):
    x = torch.full((3,), inside, dtype=torch.float64)
    with mode():
        safe = formula(x)
    torch.testing.assert_close(safe, formula(x))
    x = torch.full((3,), edge, requires_grad=True)
    with mode():
        value = formula(x)
    value.sum().backward()
    assert value.isfinite().all()
    assert x.grad.isfinite().all()


def test_a_division_by_a_count_of_zero_is_finite():
    total, count = torch.zeros(3, requires_grad=True), torch.tensor([0, 1, 2])
    with SafeDivision():
        mean = torch.where(count == 0, 0.0, total / count)
    mean.sum().backward()
    assert total.grad[1:].tolist() == [1.0, 0.5]
    assert total.grad.isfinite().all()


def test_attention_to_nothing_gives_zeros():
    mask = torch.tensor([[True, False], [False, False]])
    q, k, v = torch.randn(3, 1, 2, 4)
    with SafeSoftmax():
        safe = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    assert torch.equal(safe[:, 0], F.scaled_dot_product_attention(q, k, v, attn_mask=mask)[:, 0])
    assert not safe[:, 1].any()


@pytest.mark.parametrize("needs_weights", [True, False])
@pytest.mark.parametrize("is_boolean", [True, False])
@pytest.mark.parametrize("masks", ["padding", "rows", "both"])
def test_heads_that_attend_to_nothing_make_no_nan_and_others_stay_as_they_were(masks, is_boolean, needs_weights):
    """Padding on the left under a causal mask: the first position sees itself alone, which is padding."""
    attend, x = nn.MultiheadAttention(6, 2, batch_first=True), torch.randn(3, 4, 6, requires_grad=True)
    padding, rows = torch.zeros(3, 4, dtype=torch.bool), torch.ones(4, 4, dtype=torch.bool).triu(1)
    padding[1, :2], rows[0, 0] = True, masks == "rows"
    padding[2] = masks == "padding"
    hidden = {"padding": {"key_padding_mask": padding}, "rows": {"attn_mask": rows}}
    named = {**hidden["padding"], **hidden["rows"]} if masks == "both" else hidden[masks]
    if not is_boolean:
        named = {name: torch.zeros(mask.shape).masked_fill(mask, -math.inf) for name, mask in named.items()}
    plain = attend(x, x, x, need_weights=needs_weights, **named)[0]
    with SafeSoftmax():
        safe = attend(x, x, x, need_weights=needs_weights, **named)[0]
    seen = torch.ones(3, 4, dtype=torch.bool)
    seen[{"padding": (2,), "rows": (slice(None), 0), "both": (1, slice(2))}[masks]] = False
    assert torch.equal(plain.isnan().any(-1), ~seen) or not needs_weights  # the fused kernel makes zeros of them
    torch.testing.assert_close(safe[seen], plain[seen])
    safe.sum().backward()
    assert safe.isfinite().all()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("rows", [None, torch.zeros(4, 4, dtype=torch.bool)])
def test_heads_may_be_given_a_sequence_by_itself(rows):
    attend, x = nn.MultiheadAttention(6, 2), torch.randn(4, 6)
    padding = torch.tensor([True, False, False, False])
    with SafeSoftmax():
        safe = attend(x, x, x, key_padding_mask=padding, attn_mask=rows)[0]
        nothing = attend(x, x, x, key_padding_mask=padding | True, attn_mask=rows)[0]
    torch.testing.assert_close(safe, attend(x, x, x, key_padding_mask=padding, attn_mask=rows)[0])
    assert nothing.isfinite().all()


def test_a_pasted_mask_hides_what_it_hid_but_for_whole_rows():
    mask = torch.tensor([[0.0, -math.inf], [-math.inf, -math.inf]])
    assert unmask_full_rows(mask).tolist() == [[0.0, -math.inf], [0.0, 0.0]]


OVER = torch.tensor([[2.0, 0.5, 1e-8, 0.0], [-1.0, -1e-8, 0.25, 3.0]])
MASKED = torch.tensor([[1.0, -math.inf, 0.5], [-math.inf, -math.inf, -math.inf]])


@pytest.mark.parametrize(
    ("mode", "plain", "safe"),
    [
        (SafeLog, torch.log, safe_log),
        (SafeLog, lambda x: (200 * x).exp(), lambda x: safe_exp(200 * x)),
        (SafeSqrt, torch.sqrt, safe_sqrt),
        (SafeSqrt, lambda x: x.norm(dim=-1), lambda x: safe_norm(x, dim=-1)),
        (SafeDivision, lambda x: x.flip(1) / x, lambda x: safe_divide(x.flip(1), x)),
        (SafeDivision, lambda x: 1 / x, lambda x: safe_divide(1, x)),
        (SafeSoftmax, lambda x: x.softmax(-1), masked_softmax),
    ],
)
def test_what_is_written_by_hand_is_what_the_mode_answers(mode, plain, safe):
    values = MASKED if mode is SafeSoftmax else OVER
    ours, theirs = (values.clone().requires_grad_() for _ in range(2))
    with mode():
        expected = plain(ours)
    found = safe(theirs)
    weights = torch.arange(1.0, 1 + found.numel()).view_as(found)
    (expected * weights).sum().backward()
    (found * weights).sum().backward()
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(theirs.grad, ours.grad)
    assert found.isfinite().all()
    assert theirs.grad.isfinite().all()


def test_a_mode_around_a_model_holds_in_its_copies_and_ends_where_forward_raises():
    class Rooted(nn.Linear):
        def forward(self, x):
            return super().forward(x.sqrt())

    model, zeros = Rooted(4, 2), torch.zeros(3, 4, requires_grad=True)
    mode = SafeSqrt()
    loss_fn = mode.around_(model, lambda outputs, y: outputs.sum())
    for each in (model, copy.deepcopy(model)):
        zeros.grad = None
        loss_fn(each(zeros), None).backward()
        assert zeros.grad.isfinite().all()
    with pytest.raises(RuntimeError, match="shapes"):
        model(torch.zeros(3, 5))
    model.register_forward_pre_hook(lambda *_: 1 / 0, prepend=True)  # before the mode is entered
    with SafeLog(), pytest.raises(ZeroDivisionError):
        model(torch.zeros(3, 4))
    assert mode.called
    assert torch.zeros(1).sqrt().item() == 0.0
