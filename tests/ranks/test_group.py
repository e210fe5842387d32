import gc
import weakref

import pytest
from torch import distributed
from torch.distributed import HashStore, destroy_process_group, distributed_c10d, init_process_group
from torch.testing._internal.distributed.fake_pg import FakeStore

from gradwatch.ranks.group import Group, current_group, has_process_group


@pytest.fixture
def world_of_two():
    """A default group whose collectives do nothing, so that one process can be rank 1 of 2."""
    init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    yield
    if distributed.is_initialized():
        destroy_process_group()


def test_a_single_process_has_no_group():
    assert not has_process_group()
    assert current_group() is None


def test_a_process_alone_in_its_group_shares_nothing():
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        assert has_process_group()
        assert current_group() is None
    finally:
        destroy_process_group()


def test_a_group_knows_its_rank_and_size(world_of_two):
    group = current_group()
    assert (group.rank, group.size, group.is_alive) == (1, 2, True)
    assert current_group(group) is group


def test_a_group_is_not_alive_once_it_was_destroyed_or_made_anew(world_of_two):
    group = current_group()
    destroy_process_group()
    assert not group.is_alive
    assert current_group(group) is None
    with pytest.raises(RuntimeError, match="was destroyed"):
        group.store()
    init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    assert not group.is_alive
    assert current_group(group).rank == 0


def test_keys_in_the_store_are_gradwatchs_own():
    init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        world = distributed.group.WORLD
        group = Group(0, 2, weakref.ref(world))
        group.store().set("note", "sick")
        assert group.store().get("note") == b"sick"
        assert not distributed_c10d._get_default_store().check(["note"])
    finally:
        destroy_process_group()


def test_a_group_keeps_no_process_group_of_torch_alive(world_of_two):
    group, world = current_group(), weakref.ref(distributed.group.WORLD)
    destroy_process_group()
    gc.collect()
    assert world() is None
    assert not group.is_alive
