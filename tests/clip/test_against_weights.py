"""Policies that go by the size of the weights, against their slow twins."""

import math

import pytest
import torch
from hypothesis import given, settings, strategies

from gradwatch import clip
from gradwatch.measure import statistics
from tests import reference
from tests.reference import randn, values

deterministic = settings(deadline=None, derandomize=True, max_examples=50)
numbers = strategies.floats(-1e3, 1e3)


def apply(policy, gradients, parameters, scale=None):
    return policy.clip_(gradients, statistics.measure(gradients, scale), parameters, None).item()


def matrices(rows):
    return strategies.lists(strategies.lists(numbers, min_size=3, max_size=3), min_size=rows, max_size=rows)


@deterministic
@given(matrices(4), matrices(4), strategies.floats(1e-3, 1.0))
def test_adaptive_agrees_with_the_loop(rows, weights, clipping):
    gradient, weight = (torch.tensor(each, dtype=torch.float64) for each in (rows, weights))
    total = apply(clip.adaptive(clipping), [gradient], [weight])
    expected = reference.clip_units(rows, weights, clipping)
    assert gradient.tolist() == [pytest.approx(row, rel=1e-9, abs=1e-12) for row in expected]
    assert total == pytest.approx(reference.total_norm(expected), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("dtype", "rel"), [(torch.float16, 2e-3), (torch.bfloat16, 2e-2), (torch.float32, 1e-5), (torch.float64, 1e-9)]
)
def test_adaptive_clips_kernels_by_output_and_biases_as_a_whole(dtype, rel):
    kernel, bias = randn(4, 3, 2, 2, dtype=dtype), randn(4, dtype=dtype) * 10
    weights = [randn(4, 3, 2, 2, dtype=dtype) * 5, torch.zeros(4, dtype=dtype)]
    expected = reference.clip_units(*([values(row) for row in each] for each in (kernel, weights[0])), 0.02)
    (short,) = reference.clip_units([values(bias)], [[0.0]], 0.02)
    apply(clip.adaptive(0.02), [kernel, bias], weights)
    assert [values(row) for row in kernel] == [pytest.approx(row, rel=rel) for row in expected]
    assert values(bias) == pytest.approx(short, rel=rel, abs=6e-8)  # the least step of float16


def test_adaptive_clips_views_in_place():
    gradient, weight = randn(6, 4).T, randn(4, 6)
    expected = reference.clip_units([values(row) for row in gradient], [values(row) for row in weight], 0.01)
    apply(clip.adaptive(0.01), [gradient], [weight])
    assert [values(row) for row in gradient] == [pytest.approx(row, rel=1e-5) for row in expected]


def test_adaptive_clips_the_rows_that_a_sparse_gradient_has():
    weight = torch.nn.Parameter(torch.ones(6, 2))
    rows = torch.tensor([1, 4, 1])
    torch.nn.functional.embedding(rows, weight, sparse=True).mul(torch.tensor([3.0, 4.0])).sum().backward()
    apply(clip.adaptive(0.1), [weight.grad], [weight])
    dense = weight.grad.to_dense()
    assert dense.norm(dim=1).tolist() == pytest.approx([0, 0.1 * math.sqrt(2), 0, 0, 0.1 * math.sqrt(2), 0])


def test_adaptive_leaves_a_loss_scale_where_it_is():
    plain, scaled, weight = randn(3, 2), randn(3, 2) * 1024, randn(3, 2)
    without = apply(clip.adaptive(), [plain], [weight])
    assert apply(clip.adaptive(), [scaled], [weight], torch.tensor(1024.0)) == pytest.approx(without)
    assert values(scaled / 1024) == pytest.approx(values(plain))


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("is_plain", [False, True], ids=["fast", "plain"])
def test_adaptive_leaves_gradients_whose_total_is_not_finite(poison, is_plain):
    gradients, weights = [torch.tensor([[poison, 1.0]]), torch.tensor([100.0])], [torch.ones(1, 2), torch.ones(1)]
    if is_plain:
        clip.clip_plainly_(clip.adaptive(), gradients, None, parameters=weights)
    else:
        apply(clip.adaptive(), gradients, weights)
    assert gradients[1].item() == 100
    assert gradients[0][0, 1].item() == 1


def test_adaptive_clips_alike_where_measuring_has_failed():
    fast, plain, weight = randn(3, 2), randn(3, 2), randn(3, 2)
    apply(clip.adaptive(), [fast], [weight])
    clip.clip_plainly_(clip.adaptive(), [plain], None, parameters=[weight])
    assert torch.equal(fast, plain)


@deterministic
@given(
    strategies.lists(numbers, min_size=3, max_size=3),
    strategies.lists(numbers, min_size=3, max_size=3),
    strategies.floats(1e-3, 1.0),
)
def test_by_update_agrees_with_the_loop(before, after, max_ratio):
    parameter = torch.tensor(after, dtype=torch.float64, requires_grad=True)
    clip.by_update(max_ratio).limit_update_([parameter], [torch.tensor(before, dtype=torch.float64)])
    assert parameter.tolist() == pytest.approx(reference.shorten_update(before, after, max_ratio), rel=1e-9, abs=1e-9)


def test_by_update_leaves_a_short_update_bit_for_bit():
    before, after = randn(50), randn(50) * 1.001
    now = after.clone()
    clip.by_update(0.1).limit_update_([now], [before])
    assert torch.equal(now, after)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_by_update_leaves_an_update_that_is_not_finite(poison):
    now = torch.tensor([poison, 2.0])
    clip.by_update(0.1).limit_update_([now], [torch.ones(2)])
    assert now[1].item() == 2


@pytest.mark.parametrize(
    "make",
    [
        lambda: clip.adaptive(0),
        lambda: clip.adaptive(0.1, least_weight_norm=-1),
        lambda: clip.by_update(math.nan),
        lambda: clip.by_update(0.1, least_weight_rms=0),
    ],
)
def test_what_is_no_positive_number_is_refused(make):
    with pytest.raises(ValueError, match=r"=.*: expected a positive, finite number"):
        make()


@pytest.mark.parametrize("policy", [clip.adaptive(0.02), clip.by_update(0.5)], ids=["adaptive", "by_update"])
def test_a_renewed_policy_is_described_alike(policy):
    assert policy.renew().description == policy.description
