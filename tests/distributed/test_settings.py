"""Figures, findings and weights on every rank are those of a float64 single process on the global batch."""

import functools
import math

import pytest

from tests.distributed.launch import Results, same, same_weights
from tests.distributed.settings import CASES, FIGURES, SETTINGS, STEPS, expected, key

pytestmark = [pytest.mark.process, pytest.mark.slow]

TOLERANCE = 1e-5
FLOOR = 1e-6  # of totals around 1: what one layer's figure may be off where its gradient nearly cancels
SAMPLED = (0, 1, 2, 4)  # the steps whose update ratios are measured


@functools.cache
def reference_of(name, policy):
    return expected(SETTINGS[name], policy)


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    @functools.cache
    def launch(world):
        names = [key(name, policy) for name, policy in CASES if SETTINGS[name].world == world]
        return Results(world, "tests.distributed.settings", names, tmp_path_factory)

    return launch


def ranks_of(launched, name, policy):
    return launched(SETTINGS[name].world).of(key(name, policy))


def layers_of(shown):
    """The names of the layers; FSDP1 puts a module of its own around each of its units."""
    return [name.replace("_fsdp_wrapped_module.", "") for name in shown["layers"]]


def layer(shown, name, figure):
    column = layers_of(shown).index(name)
    return [row[column] for row in shown[figure]]


def differing(name, policy, rank, shown, known):
    """Return what of a rank differs from the reference, in words."""
    setting = SETTINGS[name]
    names = setting.names(rank) or {layer: layer for layer in known["layers"]}
    wrong = []
    for figure in ("grad_norm_total", "grad_norm_clipped_total", "skipped"):
        if (policy, figure) == ("value", "grad_norm_clipped_total") and all(map(math.isnan, shown[figure])):
            continue  # it is not measured where weights are sharded; the weights show what was clipped
        if not same(shown[figure], known[figure], TOLERANCE):
            wrong.append(f"{figure}: {shown[figure]} where {known[figure]} is true")
    if not setting.own and setting.per_layer and layers_of(shown) != known["layers"]:
        wrong.append(f"layers: {layers_of(shown)} where {known['layers']} is true")
    if not wrong and setting.per_layer:
        for mine, theirs in names.items():
            wrong += list(differing_layer(mine, theirs, shown, known))
    return wrong


def differing_layer(mine, theirs, shown, known):
    for figure in ("grad_norm", "nonfinite", "update_ratio"):
        measured, true = layer(shown, mine, figure), layer(known, theirs, figure)
        if figure == "update_ratio":
            measured, true = zip(*comparable(measured, true), strict=True)
        floor = FLOOR if figure == "grad_norm" else 0.0
        if not same(list(measured), list(true), TOLERANCE, floor):
            yield f"{figure} of {mine}: {measured} where {true} is true"


def comparable(measured, true):
    """Yield the update ratios of sampled steps; a weight that has no gradient may also show none."""
    for step in SAMPLED:
        yield measured[step], math.nan if math.isnan(measured[step]) and true[step] == 0 else true[step]


@pytest.mark.parametrize(("name", "policy"), CASES)
def test_figures_and_weights_are_those_of_a_single_process(launched, name, policy):
    ranks = ranks_of(launched, name, policy)
    known = ranks[0]["bare"] if SETTINGS[name].bare else reference_of(name, policy)
    wrong = []
    for rank, shown in enumerate(ranks):
        wrong += [f"rank {rank}: {text}" for text in differing(name, policy, rank, shown, known)]
        if shown["findings"]:
            wrong.append(f"rank {rank}: findings {[finding['message'] for finding in shown['findings']]}")
        weights = shown["weights"]
        if not weights or not same_weights(weights, known["weights"], TOLERANCE):
            wrong.append(f"rank {rank}: weights after {STEPS} steps are others")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("name", "policy"), CASES)
def test_figures_are_equal_on_all_ranks(launched, name, policy):
    first, *others = ranks_of(launched, name, policy)
    figures = ("grad_norm_total", "grad_norm_clipped_total", "skipped")
    for other in others:
        assert same({f: other[f] for f in figures}, {f: first[f] for f in figures})
        if not SETTINGS[name].own:
            assert same({f: other[f] for f in ("layers", *FIGURES)}, {f: first[f] for f in ("layers", *FIGURES)})


# "auto" goes by the weights where they are whole, and by its history where they are sharded.
@pytest.mark.parametrize("setting", ["DDP", "FSDP2"])
@pytest.mark.parametrize("policy", ["norm", "auto"])
def test_the_limits_of_clipping_are_crossed_both_ways(setting, policy):
    known = reference_of(setting, policy)
    pairs = zip(known["grad_norm_total"], known["grad_norm_clipped_total"], strict=True)
    assert {clipped < total for total, clipped in pairs} == {True, False}
