import pytest
import torch
from torch import nn

from gradwatch.findings import KINDS
from gradwatch.layers import of_model, of_tensors
from gradwatch.remedies import advise


def advice(kind, *modules, clips=False):
    return advise(kind, of_model(nn.Sequential(nn.Linear(2, 2), *modules)), clips)


NORMALISATION = "batch or layer normalisation between the layers"
CLIPPING = 'clip gradients: clip="auto" or clip=1.0'
GATES = "LSTM or GRU in place of the plain RNN"
TRUNCATION = "truncated backpropagation through time"


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_distinct_remedies_for_any_model(kind):
    for layers in (of_model(nn.Linear(2, 2)), of_tensors({"w": torch.zeros(2)})):
        remedies = advise(kind, layers, clips=False)
        assert len(remedies) >= 3
        assert len(set(remedies)) == len(remedies)


def test_a_squashing_activation_is_the_first_suspect_of_vanishing():
    assert advice("vanishing", nn.Tanh(), nn.Sigmoid())[0] == "ReLU, GELU or SiLU in place of Sigmoid and Tanh"
    assert not any("in place of" in remedy for remedy in advice("vanishing", nn.ReLU()))


@pytest.mark.parametrize("kind", ["exploding", "nonfinite", "unstable"])
def test_clipping_is_advised_only_where_it_is_not_done(kind):
    assert CLIPPING in advice(kind)
    assert CLIPPING not in advice(kind, clips=True)


@pytest.mark.parametrize("kind", ["vanishing", "exploding", "unstable"])
@pytest.mark.parametrize("norm", [nn.BatchNorm1d(2), nn.LayerNorm(2), nn.GroupNorm(1, 2), nn.RMSNorm(2)])
def test_normalisation_is_advised_only_where_there_is_none(kind, norm):
    assert NORMALISATION in advice(kind)
    assert NORMALISATION not in advice(kind, norm)


def test_a_normalising_module_of_another_library_counts_by_its_name():
    class LlamaRMSNorm(nn.Module):
        pass

    assert NORMALISATION not in advice("vanishing", LlamaRMSNorm())


@pytest.mark.parametrize("kind", ["vanishing", "exploding"])
def test_recurrent_models_are_told_of_gates_and_truncation(kind):
    assert {GATES, TRUNCATION} <= set(advice(kind, nn.RNN(2, 2)))
    assert GATES not in advice(kind, nn.LSTM(2, 2))
    assert GATES not in advice(kind)
    assert TRUNCATION not in advice(kind)


def test_a_gated_model_that_explodes_is_told_of_truncation():
    assert TRUNCATION in advice("exploding", nn.GRU(2, 2))


def test_saturation_is_a_suspect_of_stalling_only_with_squashing_activations():
    assert any("saturate" in remedy for remedy in advice("stalled", nn.Tanh()))
    assert not any("saturate" in remedy for remedy in advice("stalled", nn.ReLU()))
