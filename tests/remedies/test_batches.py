"""Changes of batches: scaled, cleaned, cut into smaller ones."""

import math
import warnings
from typing import NamedTuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from gradwatch.remedies import (
    NotApplicableError,
    PartlyAppliedWarning,
    clean_batches,
    scale_batches,
    split_batches,
)


def inputs():
    return torch.randn(8, 6)


def test_scaled_inputs_keep_the_unit_of_the_held_out_loss():
    torch.manual_seed(0)
    x, y = 1000 + 50 * torch.randn(64, 6), 1e4 * torch.randn(64, 3)
    batches, scaling = scale_batches([(x, y)] * 3, nn.Linear(6, 3))
    assert batches[0][0].std().item() == pytest.approx(1.0, rel=0.05)
    assert batches[0][1].std().item() == pytest.approx(1.0, rel=0.05)
    torch.testing.assert_close(scaling.inputs(x), batches[0][0])
    torch.testing.assert_close(scaling.outputs(batches[0][1]), y, rtol=1e-3, atol=1.0)


@pytest.mark.parametrize("shape", [(64,), (64, 1, 1)])
def test_targets_are_scaled_where_the_loss_gives_the_outputs_their_shape(shape):
    x, y = torch.randn(64, 6), 3e5 + 1e5 * torch.randn(64)
    batches, scaling = scale_batches([(x, y.reshape(shape))] * 3, nn.Linear(6, 1))
    _, targets = batches[0]
    assert targets.shape == shape
    assert abs(targets.mean().item()) < 1e-3
    outputs = scaling.outputs(torch.zeros(64, 1))
    torch.testing.assert_close(outputs, y.mean().expand(64, 1))


def test_targets_are_scaled_where_inputs_are_names_of_things():
    batches, _ = scale_batches([(torch.arange(9), 1e4 * torch.randn(9, 1))] * 3, nn.Embedding(9, 1))
    assert torch.equal(batches[0][0], torch.arange(9))
    assert batches[0][1].std(correction=0).item() == pytest.approx(1.0)


class Pair(NamedTuple):
    x: torch.Tensor
    y: torch.Tensor


@pytest.mark.parametrize(
    "whole",
    [
        lambda x, y: (x, y),
        lambda x, y: [x, y],
        Pair,
        lambda x, y: {"labels": 1e4 * x, "ids": y, "pixel_values": x},
        lambda x, y: ({"nested": x, "y": y},),
    ],
    ids=["tuple", "list", "named", "mapping", "nested"],
)
def test_of_inputs_with_several_parts_the_first_numbers_are_scaled(whole):
    x, y = 1000 + 50 * torch.randn(64, 6), torch.arange(64)
    given = whole(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PartlyAppliedWarning)  # about labels that are large
        batches, scaling = scale_batches([(given, ())] * 3, nn.Linear(6, 3))
    (scaled, _), *_ = batches
    wanted, _ = scale_batches([(x, y)] * 3, nn.Linear(6, 3))
    expected = whole(wanted[0][0], y)
    if isinstance(given, dict):
        expected["labels"] = given["labels"]
    assert type(scaled) is type(given)
    torch.testing.assert_close(scaled, expected)
    torch.testing.assert_close(scaling.inputs(given), expected)


def test_large_targets_within_the_inputs_are_said_to_stay():
    x, y = 1000 + 50 * torch.randn(64, 6), 1e4 * torch.randn(64)
    with pytest.warns(PartlyAppliedWarning, match=r"only the inputs.* deviation of \S+, but the model is given them"):
        batches, _ = scale_batches([((x, y), ())] * 3, nn.Linear(6, 3))
    assert torch.equal(batches[0][0][1], y)


def test_targets_that_cannot_be_scaled_are_said_to_be_large():
    class Two(nn.Module):
        def forward(self, x):
            return x, x.exp()

    batches = [(torch.randn(512, 6), 1e5 * torch.randn(512, 6))] * 3
    with pytest.raises(
        NotApplicableError, match=r"unit variance already; targets have a deviation of \S+e\+05, but the"
    ):
        scale_batches(batches, Two())


def test_inputs_that_are_scaled_without_their_large_targets_are_said_to_be():
    class Two(nn.Module):
        def forward(self, x):
            return x, x.exp()

    targets = 1e5 * torch.randn(512, 6)
    with pytest.warns(PartlyAppliedWarning, match="^only the inputs were scaled; targets have a deviation of"):
        batches, _ = scale_batches([(50 * torch.randn(512, 6), targets)] * 3, Two())
    assert batches[0][0].std().item() == pytest.approx(1.0, rel=0.05)
    assert batches[0][1] is targets


def test_sequences_of_several_lengths_share_one_scale():
    batches = [(5000 + 2000 * torch.randn(32, length, 1), torch.zeros(32, 1)) for length in (10, 12, 11)]
    scaled, _ = scale_batches(batches, nn.Identity())
    everything = torch.cat([x.flatten() for x, _ in scaled])
    assert abs(everything.mean().item()) < 1e-3
    assert everything.std().item() == pytest.approx(1.0, rel=1e-2)


def test_small_targets_and_classes_are_not_scaled():
    targets = torch.rand(64, 3)
    batches, _ = scale_batches([(100 * torch.randn(64, 6), targets)] * 3, nn.Linear(6, 3))
    assert torch.equal(batches[0][1], targets)
    with pytest.raises(NotApplicableError, match=r"unit variance already$"):
        scale_batches([(torch.randn(512, 6), torch.randint(3, (512,)))] * 3, nn.Linear(6, 3))


def cleaned(*batches):
    return clean_batches(batches, nn.Identity(), lambda output, y: torch.zeros(()))


def test_rows_of_nan_and_of_wild_numbers_go_and_sound_batches_stay_as_they_are():
    x, y = torch.randn(8, 6), torch.arange(8)
    sick, wild = x.clone(), x.clone()
    sick[2, 3], wild[5, 3] = math.nan, 1e6
    left = cleaned((x, y), (sick, y), (x, y), (wild, y), (torch.full((8, 6), math.inf), y))
    assert [batch[0] is x for batch in left] == [True, False, True, False]
    for (inputs, targets), row in ((left[1], 2), (left[3], 5)):
        assert targets.tolist() == [each for each in range(8) if each != row]
        assert torch.equal(inputs, x[targets])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_broken_row_in_every_batch_costs_that_row_alone(broken, dtype):
    batches = [(torch.randn(8, 2, 6).to(dtype), torch.randn(8).to(dtype)) for _ in range(4)]
    for row, (x, y) in enumerate(batches):
        x[row, 1, row] = broken
        y[row + 1] = broken
    left = cleaned(*batches)
    assert [(len(x), len(y)) for x, y in left] == [(6, 6)] * 4
    assert all(x.isfinite().all() and y.isfinite().all() for x, y in left)


def test_rows_are_left_out_of_every_tensor_of_a_structure():
    x, of = torch.arange(8.0), torch.arange(8)
    x[3] = math.nan
    ((inputs, targets),) = cleaned(({"x": x, "length": of}, (of, {"again": of})))
    assert all(
        tensor.tolist() == [0, 1, 2, 4, 5, 6, 7] for tensor in (inputs["length"], targets[0], targets[1]["again"])
    )


@pytest.mark.parametrize("other", [torch.zeros(7), torch.tensor(1.0), 0, None, "name"], ids=repr)
def test_batches_whose_leaves_do_not_begin_alike_go_whole(other):
    sick = torch.randn(8, 6)
    sick[2, 3] = math.nan
    sound = torch.randn(8, 6), other
    assert cleaned(sound, (sick, other), sound, sound, (1e6 * torch.randn(8, 6), other)) == [sound] * 3


def test_batches_of_numbers_alone_are_not_cleaned():
    with pytest.raises(NotApplicableError, match="no batch holds NaN"):
        cleaned(*((number, 0) for number in range(4)))


def test_a_batch_without_a_loss_goes_unless_all_are():
    ignored = torch.randn(8, 6), torch.full((8,), -100)
    sound, model = (inputs(), torch.randint(3, (8,))), nn.Linear(6, 3)
    assert len(clean_batches([sound, ignored, sound], model, F.cross_entropy)) == 2  # without a warning
    said = "^3 of 5 batches have no finite loss and are left out: is it the loss\\?$"
    with pytest.warns(PartlyAppliedWarning, match=said):
        left = clean_batches([sound, sound, *[ignored] * 3], model, F.cross_entropy)
    assert len(left) == 2
    assert not F.cross_entropy(model(ignored[0]), ignored[1]).isfinite()
    with pytest.raises(NotApplicableError, match="each has a finite loss"):
        clean_batches([ignored] * 3, model, F.cross_entropy)


def test_a_graph_stays_whole():
    nodes, edges, labels = torch.randn(8, 6), torch.rand(8, 8), torch.arange(8)
    sick = nodes.clone()
    sick[2, 3] = math.nan
    sound = (nodes, edges), labels
    assert cleaned(sound, ((sick, edges), labels), sound) == [sound] * 2


def test_where_every_row_is_broken_no_batch_would_be_left():
    with pytest.raises(NotApplicableError, match="no batch would be left"):
        cleaned(*[(torch.full((8, 6), math.nan), torch.arange(8))] * 3)


@pytest.mark.parametrize("size", [lambda z: z.tan(), lambda z: (4 * z).exp(), lambda z: 1e-4 + (z > 1)], ids=range(3))
def test_heavy_tails_and_rows_next_to_zero_are_not_wild(size):
    z = torch.randn(512, 1, generator=torch.Generator().manual_seed(0))
    batches = list(zip(size(z).split(64), torch.arange(512).split(64), strict=True))
    try:
        left = cleaned(*batches)
    except NotApplicableError:
        left = batches
    assert sum(len(y) for _, y in left) > 0.98 * 512


def test_as_many_features_as_items_relate_nothing():
    x, y = torch.randn(8, 8), torch.arange(8)
    assert [len(x) for x, _ in split_batches([(x, {"digit": y, "parity": y % 2})])] == [2] * 4


def test_as_many_tokens_as_sentences_relate_nothing():
    tokens = torch.arange(64).reshape(8, 8)
    (first, _), *_ = split_batches([({"input_ids": tokens, "attention_mask": tokens > 3}, ())])
    assert [first["input_ids"].shape, first["attention_mask"].shape] == [(2, 8)] * 2


def test_in_whole_batches_features_relate_nothing_and_a_graph_does():
    x, y, edges = torch.randn(8, 8), torch.arange(8), torch.rand(8, 8)
    assert [len(part[0]) for (part,), _ in split_batches([(((x, y),), ())])] == [2] * 4
    with pytest.raises(NotApplicableError, match="no batch can be cut"):
        split_batches([(((x, edges, y),), ())])


def test_smaller_batches_hold_the_same_items():
    batches = split_batches([(torch.randn(10, 6), torch.arange(10))])
    assert [len(x) for x, _ in batches] == [3, 3, 3, 1]
    assert torch.equal(torch.cat([y for _, y in batches]), torch.arange(10))


def broken_rows():
    """A NaN or Inf in every batch, in inputs or targets; a wild row in one, no sound row in another."""
    generator = torch.Generator().manual_seed(5)
    batches = [(torch.randn(16, 2, 6, generator=generator), torch.randn(16, generator=generator)) for _ in range(6)]
    for number, (x, y) in enumerate(batches):
        x[number, 1, number] = math.nan
        y[number + 2] = -math.inf
    batches[2][0][9, 0, 0] = 1e4
    batches[4][0][:, 1, 2] = math.inf
    return batches


def silent_batches():
    """Most hold nothing but zeros: there is no usual size, so that nothing is wild."""
    batches = [(torch.zeros(4, 6), torch.arange(4)) for _ in range(5)]
    batches[1][0][:] = 5.0
    batches[2][0][3, 1] = math.nan
    return batches


@pytest.mark.parametrize(
    ("make_batches", "lengths"), [(broken_rows, [14, 14, 13, 14, 14]), (silent_batches, [4, 4, 3, 4, 4])]
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_as_many_rows_are_left_in_every_format(make_batches, lengths, dtype):
    assert [len(x) for x, _ in cleaned(*((x.to(dtype), y) for x, y in make_batches()))] == lengths


@pytest.mark.parametrize(("is_broken", "length"), [(True, 4), (False, 12)])
def test_batches_of_any_structure_are_cleaned_and_split(is_broken, length):
    generator = torch.Generator().manual_seed(5)
    batches = [
        ({"a": torch.randn(9, 6, generator=generator)}, (torch.arange(9), torch.randn(9, generator=generator)))
        for _ in range(4)
    ]
    model = nn.Linear(6, 1)
    model.forward = lambda a: F.linear(a, model.weight)
    if is_broken:
        batches[1][0]["a"][3, 2] = math.nan
        left = clean_batches(batches, model, lambda output, y: (output.squeeze(1) - y[1]).square().mean())
        assert [len(y[0]) for _, y in left] == [9, 8, 9, 9]
    else:
        left = split_batches(batches)
        assert [len(y[1]) for _, y in left] == [3, 3, 3] * 4
    assert len(left) == length


def test_targets_of_any_structure_are_left_by_scaling():
    batches = [(5 * torch.randn(9, 6), (torch.arange(9), torch.randn(9))) for _ in range(4)]
    scaled, _ = scale_batches(batches, nn.Linear(6, 2))
    assert scaled[0][1] is batches[0][1]
    assert torch.cat([x for x, _ in scaled]).std(0, correction=0).tolist() == pytest.approx([1.0] * 6)


def test_batches_without_a_loss_are_left_out_and_the_model_stays_in_training_mode():
    batches = [(torch.randn(4, 6), torch.arange(4) % 3) for _ in range(4)]
    batches[2] = batches[2][0], torch.full((4,), -100)  # which cross entropy ignores
    model = nn.Sequential(nn.Linear(6, 3), nn.Dropout())
    left = clean_batches(batches, model, F.cross_entropy)
    torch.testing.assert_close(left, [batches[number] for number in (0, 1, 3)])
    assert model.training


def test_a_loader_that_shuffles_is_read_once():
    x = torch.arange(8.0)[:, None].repeat(1, 6)
    x[3, 2] = math.nan
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, torch.arange(8)), batch_size=2, shuffle=True)
    left = clean_batches(loader, nn.Identity(), lambda output, y: torch.zeros(()))
    assert sorted(torch.cat([y for _, y in left]).tolist()) == [0, 1, 2, 4, 5, 6, 7]
    scaled, scaling = scale_batches(left, nn.Identity())
    assert all(torch.equal(a, scaling.inputs(b)) for (a, _), (b, _) in zip(scaled, left, strict=True))
