import numpy as np
import pytest

from gradwatch.views.groups import groups_of

BLOCKS = [
    f"encoder.layers.{block}.{part}"
    for block in range(12)
    for part in ("attention.weight", "attention.bias", "norm.weight")
]
GPT = ["embedding.weight", *BLOCKS, "head.weight"]


def test_few_layers_are_groups_of_their_own():
    groups = groups_of(GPT, 40)
    assert [group.name for group in groups] == GPT
    assert [group.places.tolist() for group in groups] == [[place] for place in range(len(GPT))]


def test_more_layers_are_shown_as_modules_of_the_deepest_level_that_fits():
    names = [group.name for group in groups_of(GPT, 37)]
    assert names[:3] == ["embedding.weight", "encoder.layers.0.attention (2 layers)", "encoder.layers.0.norm.weight"]
    names = [group.name for group in groups_of(GPT, 20)]
    assert names[:3] == ["embedding.weight", "encoder.layers.0 (3 layers)", "encoder.layers.1 (3 layers)"]
    names = [group.name for group in groups_of(GPT, 5)]
    assert names == ["embedding.weight", "encoder.layers (36 layers)", "head.weight"]


def test_too_many_modules_become_stretches_of_neighbours():
    groups = groups_of([f"w{place}.weight" for place in range(100)], 20)
    assert [groups[0].name, groups[-1].name] == ["w0.weight … w4.weight", "w95.weight … w99.weight"]


@pytest.mark.parametrize("seed", range(20))
def test_every_layer_is_in_one_group_and_there_are_few_enough(seed):
    rng = np.random.default_rng(seed)
    names = sorted({".".join(rng.choice(list("abc"), rng.integers(1, 6))) for _ in range(rng.integers(1, 80))})
    most = int(rng.integers(1, 30))
    groups = groups_of(names, most)
    assert len(groups) <= most
    assert sorted(place for group in groups for place in group.places.tolist()) == list(range(len(names)))
    assert groups_of([], most) == []
