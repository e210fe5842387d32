import math

import pytest
import torch
from hypothesis import given, settings, strategies
from torch import nn

from gradwatch import clip
from gradwatch.measure import statistics
from tests import reference
from tests.reference import DTYPES, finite_cases, randn, sparse, values

deterministic = settings(deadline=None, derandomize=True, max_examples=50)
TOLERANCE = {torch.float16: 2e-3, torch.bfloat16: 2e-2}
UNLIKE_TORCH = {"sparse", "sparse, coalesced", "conjugated", "largest of float16"}  # refused there, or clipped to 0
TWINS = {
    clip.by_norm: reference.clip_by_norm,
    clip.by_value: reference.clip_by_value,
    clip.by_layer_norm: reference.clip_by_layer_norm,
}
twins = pytest.mark.parametrize(("policy", "twin"), TWINS.items(), ids=[policy.__name__ for policy in TWINS])
every_policy = pytest.mark.parametrize(
    "policy",
    [clip.by_norm(0.1), clip.by_value(0.1), clip.by_layer_norm(0.1), clip.auto()],
    ids=lambda policy: policy.description,
)


def apply(policy, gradients):
    magnitudes = statistics.without_overflow(gradients, statistics.measure(gradients))
    return policy.clip_(gradients, magnitudes, (), None).item()


def totals_after(policy, totals):
    """The totals that ``policy`` makes of a series of them."""
    return [apply(policy, [torch.tensor([total], dtype=torch.float64)]) for total in totals]


def bits(tensor):
    return tensor.reshape(-1).view(torch.uint8).tolist()


def assert_close(gradients, expected):
    tolerance = max(TOLERANCE.get(gradient.dtype, 1e-5) for gradient in gradients)  # torch's total is as coarse
    for gradient, entries in zip(gradients, expected, strict=True):
        assert values(gradient) == pytest.approx(entries, rel=tolerance, abs=1e-7)


@twins
@pytest.mark.parametrize("limit", [0.1, 1.0, 1e6])
@pytest.mark.parametrize("case", finite_cases())
def test_policies_agree_with_the_loop(policy, twin, limit, case):
    gradients = finite_cases()[case]
    expected = twin([values(gradient) for gradient in gradients], limit)
    total = apply(policy(limit), gradients)
    assert_close(gradients, expected)
    assert total == pytest.approx(reference.total_norm(expected), rel=5e-3)


@pytest.mark.parametrize("limit", [0.1, 1.0, 1e4])
@pytest.mark.parametrize(
    ("policy", "torchs", "case"),
    [
        *((clip.by_norm, nn.utils.clip_grad_norm_, case) for case in finite_cases() if case not in UNLIKE_TORCH),
        *(
            (clip.by_value, nn.utils.clip_grad_value_, case)
            for case in finite_cases()
            if case not in {*UNLIKE_TORCH, "complex64"}
        ),
    ],
)
def test_policies_agree_with_torch(policy, torchs, case, limit):
    gradients, twins_ = finite_cases()[case], finite_cases()[case]
    weights = [torch.empty_like(gradient) for gradient in gradients]
    for weight, gradient in zip(weights, twins_, strict=True):
        weight.grad = gradient
    apply(policy(limit), gradients)
    torchs(weights, limit)
    assert_close(gradients, [values(gradient) for gradient in twins_])


@twins
@deterministic
@given(
    strategies.lists(strategies.lists(strategies.floats(-1e6, 1e6), max_size=5), min_size=1, max_size=4),
    strategies.floats(1e-3, 1e3),
)
def test_policies_agree_with_the_loop_on_any_finite_gradients(policy, twin, entries, limit):
    gradients = [torch.tensor(part, dtype=torch.float64) for part in entries]
    total = apply(policy(limit), gradients)
    expected = twin(entries, limit)
    assert total == pytest.approx(reference.total_norm(expected), rel=1e-9)
    assert [values(gradient) for gradient in gradients] == [pytest.approx(part, rel=1e-9) for part in expected]


@every_policy
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_gradients_with_a_nonfinite_total_stay_as_they_are_bit_for_bit(policy, dtype, poison):
    gradients = [torch.tensor([5.0, -0.0, poison], dtype=dtype), torch.tensor(7.0, dtype=dtype), randn(3, 2).T]
    before = [bits(gradient) for gradient in gradients]
    assert not math.isfinite(apply(policy, gradients))
    assert [bits(gradient) for gradient in gradients] == before


@every_policy
@pytest.mark.parametrize("largest", [3e19, 3e38])
@pytest.mark.parametrize("is_plain", [False, True], ids=["fast", "plain"])
def test_gradients_whose_squares_overflow_are_clipped_as_in_float64(policy, largest, is_plain):
    gradients = [torch.full((4,), largest), torch.ones(2)]
    wide = [gradient.double() for gradient in gradients]
    if is_plain:
        clip.clip_plainly_(policy.renew(), gradients, None)
    else:
        assert apply(policy.renew(), gradients) == pytest.approx(apply(policy.renew(), wide), rel=1e-6)
        assert_close(gradients, [values(gradient) for gradient in wide])
    if policy.description != "auto":  # which has no history yet
        assert statistics.measure(gradients).total.item() < 1


@every_policy
def test_a_nonfinite_sparse_gradient_stays_as_it_is(policy):
    gradient = sparse() * torch.tensor(math.inf)
    apply(policy, [gradient, torch.tensor([5.0])])
    assert values(gradient) == [math.inf, math.inf]


@every_policy
def test_no_gradients_at_all_have_a_total_of_0(policy):
    assert apply(policy, []) == 0


def test_by_value_keeps_the_precision_of_float64():
    gradient = torch.tensor([3.0, -3.0], dtype=torch.float64)
    apply(clip.by_value(0.1), [gradient])
    assert gradient.tolist() == [0.1, -0.1]


def test_by_layer_norm_leaves_small_layers_alone():
    small, large = torch.tensor([0.5]), torch.tensor([30.0, 40.0])
    total = apply(clip.by_layer_norm(1.0), [small, large])
    assert small.item() == 0.5
    assert large.tolist() == pytest.approx([0.6, 0.8])
    assert total == pytest.approx(math.hypot(0.5, 1.0))


def test_auto_agrees_with_its_twin_over_a_random_series():
    generator = torch.Generator().manual_seed(0)
    totals = torch.randn(300, generator=generator, dtype=torch.float64).mul(0.5).exp()
    totals[torch.randint(300, (20,), generator=generator)] *= 100
    totals[50], totals[70] = math.nan, math.inf
    twin = reference.Auto()
    expected = [twin.clip(total) for total in totals.tolist()]
    assert sum(a < b for a, b in zip(expected, totals.tolist(), strict=True)) >= 20
    assert totals_after(clip.auto(), totals.tolist()) == pytest.approx(expected, rel=1e-6, nan_ok=True)


@deterministic
@given(
    strategies.lists(strategies.sampled_from([0.0, math.nan, math.inf]) | strategies.floats(1e-3, 1e6), max_size=30),
    strategies.floats(0.5, 4.0),
    strategies.floats(0.5, 0.99),
    strategies.floats(0.05, 1.0),
)
def test_auto_agrees_with_its_twin_over_any_series(totals, z_threshold, smoothing, lowest_spread):
    settings_ = {"z_threshold": z_threshold, "smoothing": smoothing, "lowest_spread": lowest_spread}
    twin = reference.Auto(**settings_)
    expected = [twin.clip(total) for total in totals]
    assert totals_after(clip.auto(**settings_), totals) == pytest.approx(expected, rel=1e-6, nan_ok=True)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 1, 20])
def test_auto_survives_a_nonfinite_step(poison, at):
    healthy = [1.0] * 30
    policy = clip.auto()
    totals_after(policy, [*healthy[:at], poison, *healthy[at:]])
    assert totals_after(policy, [1.0, 1e3]) == pytest.approx(totals_after(_fed(healthy), [1.0, 1e3]))


def _fed(totals):
    policy = clip.auto()
    totals_after(policy, totals)
    return policy


def test_auto_clips_nothing_at_the_first_step():
    assert totals_after(clip.auto(), [1e9]) == [1e9]


def test_auto_brings_down_a_spike_at_the_second_step():
    _, second = totals_after(clip.auto(), [1.0, 1e4])
    assert 1 < second < 2


def test_auto_scales_every_gradient_alike():
    policy = _fed([5.0] * 10)
    gradients = [torch.tensor([300.0, 0.0]), torch.tensor(400.0, dtype=torch.float16)]
    total = apply(policy, gradients)
    assert statistics.measure(gradients).total.item() == pytest.approx(total, rel=1e-3)
    assert gradients[0].tolist() == pytest.approx([0.6 * total, 0], rel=1e-3)


def test_auto_keeps_less_of_a_wilder_spike():
    wild, wilder = (totals_after(_fed([1.0] * 20), [spike])[0] for spike in (10.0, 1000.0))
    assert 1 < wilder < wild < 10


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_auto_clips_neither_a_constant_nor_a_gently_noisy_series(scale):
    noise = torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64).tolist()
    constant, noisy = [scale] * 200, [scale * (1 + 0.4 * (x - 0.5)) for x in noise]
    assert totals_after(clip.auto(), constant) == constant
    assert totals_after(clip.auto(), noisy) == noisy


def test_auto_clips_no_falling_series():
    falling = [10 * 0.95**step for step in range(200)]
    assert totals_after(clip.auto(), falling) == falling


def test_a_spike_does_not_lift_the_history_of_auto():
    with_spikes = _fed([*[1.0] * 20, *[1e6] * 3])
    assert totals_after(with_spikes, [1e6])[0] < 1.2


def test_auto_lets_the_first_gradient_after_zeros_pass():
    assert totals_after(clip.auto(), [0.0, 0.0, 1.0, 1.0]) == [0, 0, 1, 1]


def test_renewed_policies_share_no_history():
    used = _fed([1.0] * 10)
    assert totals_after(used.renew(), [1e4]) == [1e4]
    assert totals_after(used, [1e4])[0] < 2


def test_a_saved_state_goes_on_as_the_original():
    original, restored = _fed([1.0, 2.0, 1.5]), clip.auto()
    restored.memory.restore(original.memory.state())
    totals = [1.0, 50.0, 2.0]
    assert totals_after(restored, totals) == totals_after(original, totals)


@every_policy
def test_a_renewed_policy_is_described_alike(policy):
    assert policy.renew().description == policy.description


def test_clip_is_understood_as_users_write_it():
    own = clip.by_value(2.0)
    assert clip.policy_of(None) is None
    assert clip.policy_of(own) is own
    assert clip.policy_of("auto").description == "auto"
    assert clip.policy_of(1).description == clip.policy_of(1.0).description == "by_norm(1.0)"


@pytest.mark.parametrize(
    ("clip_", "error"),
    [
        (0, ValueError),
        (-1.0, ValueError),
        (math.nan, ValueError),
        (math.inf, ValueError),
        ("always", ValueError),
        (True, TypeError),
        ([1.0], TypeError),
        (clip.auto, TypeError),
    ],
)
def test_a_clip_that_means_nothing_is_refused_by_name(clip_, error):
    with pytest.raises(error, match=r"^clip=.*: expected"):
        clip.policy_of(clip_)


@pytest.mark.parametrize("limit", [0, -1.0, math.nan, math.inf, True, "1"])
@pytest.mark.parametrize("policy", TWINS)
def test_a_limit_that_is_no_positive_number_is_refused_by_name(policy, limit):
    with pytest.raises(ValueError, match=r"^(max_norm|limit)=.*: expected a positive, finite number"):
        policy(limit)


@pytest.mark.parametrize(
    "wrong", [{"z_threshold": 0}, {"lowest_spread": -1}, {"smoothing": 0}, {"smoothing": 1}, {"smoothing": math.nan}]
)
def test_an_auto_out_of_range_is_refused_by_name(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^{name}=.*: expected"):
        clip.auto(**wrong)


# plain ways: what clips where measuring, or the policy itself, has failed


def with_gradients(gradients):
    """Weights that carry copies of ``gradients``, as torch's own functions take them."""
    weights = [torch.empty_like(gradient) for gradient in gradients]
    for weight, gradient in zip(weights, gradients, strict=True):
        weight.grad = gradient.clone()
    return weights


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("limit", [1e-3, 0.1, 1.0, 1e4])
@pytest.mark.parametrize("is_plain", [False, True], ids=["fast", "plain"])
def test_by_norm_clips_bit_for_bit_as_torch_does(is_plain, limit, dtype):
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        gradients = [
            torch.randn(shape, generator=generator, dtype=dtype) * 10.0 ** (seed % 7 - 3)
            for shape in ((7, 5), (3,), (), (0, 4), (64, 33))
        ]
        weights = with_gradients(gradients)
        nn.utils.clip_grad_norm_(weights, limit)
        if is_plain:
            clip.clip_plainly_(clip.by_norm(limit), gradients, None)
        else:
            apply(clip.by_norm(limit), gradients)
        assert [bits(gradient) for gradient in gradients] == [bits(weight.grad) for weight in weights]


@pytest.mark.parametrize("offset", range(-12, 13))
def test_by_norm_rounds_at_its_very_limit_as_torch_does(offset):
    gradients = [torch.tensor([0.6, 0.0]), torch.tensor([0.8])]
    limit = torch.stack([g.norm() for g in gradients]).norm().item() * (1 + offset * 2e-7)
    weights = with_gradients(gradients)
    nn.utils.clip_grad_norm_(weights, limit)
    apply(clip.by_norm(limit), gradients)
    assert [bits(gradient) for gradient in gradients] == [bits(weight.grad) for weight in weights]


@twins
@pytest.mark.parametrize("limit", [0.1, 1.0, 1e6])
@pytest.mark.parametrize("case", finite_cases())
def test_plain_ways_agree_with_the_loop(policy, twin, limit, case):
    gradients = finite_cases()[case]
    expected = twin([values(gradient) for gradient in gradients], limit)
    clip.clip_plainly_(policy(limit), gradients, None)
    assert_close(gradients, expected)


@every_policy
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
def test_plain_ways_never_scale_by_a_total_that_is_not_finite(policy, poison):
    gradients = [torch.tensor([5.0, -0.0, poison]), torch.tensor(7.0), randn(3, 2).T]
    before = [bits(gradient) for gradient in gradients]
    clip.clip_plainly_(policy, gradients, None)
    assert [bits(gradient) for gradient in gradients] == before


@pytest.mark.parametrize(("policy", "clipped"), [(clip.by_norm(1.0), [4.8, 6.4]), (clip.by_value(0.5), [4.0, 4.0])])
def test_plain_ways_leave_a_loss_scale_where_it_is(policy, clipped):
    gradient = torch.tensor([24.0, 32.0])  # of 3 and 4, at a scale of 8
    clip.clip_plainly_(policy, [gradient], torch.tensor(8.0))
    assert gradient.tolist() == pytest.approx(clipped)


def test_auto_clips_plainly_by_the_level_that_it_knew_last():
    policy = clip.auto()
    gradient = torch.tensor([1e4])
    clip.clip_plainly_(policy, [gradient], None)
    assert gradient.item() == 1e4  # nothing is known yet
    totals_after(policy, [1.0] * 20)
    known = policy.memory.state()
    clip.clip_plainly_(policy, [gradient], None)
    assert 0.5 < gradient.item() < 2
    assert policy.memory.state() == known  # and it learns nothing


def test_a_policy_of_the_users_own_is_given_plain_magnitudes():
    seen = []

    def clip_(gradients, magnitudes, parameters, optimizer):
        seen.append((magnitudes.l2.tolist(), magnitudes.nonfinite.tolist(), magnitudes.total.item()))
        return magnitudes.total

    clip.clip_plainly_(clip.Policy(clip_, "own", lambda: None), [torch.tensor([3.0, 4.0]), torch.zeros(2)], None)
    assert seen == [([5.0, 0.0], [0, 0], 5.0)]
