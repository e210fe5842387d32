import random

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from gradwatch.recover.random_state import RandomState, accelerators_of, random_state


def draw():
    """Return numbers from every generator of the CPU; Gaussian ones too, of which generators keep every other."""
    return (
        random.random(),
        random.gauss(0, 1),
        np.random.rand(3).tolist(),
        float(np.random.randn()),
        torch.rand(3).tolist(),
        torch.randn(1).item(),
    )


def test_restored_generators_draw_the_same_numbers():
    draw()
    state = random_state()
    first = draw()
    state.restore()
    assert draw() == first


def test_a_state_survives_a_file_that_executes_nothing(tmp_path):
    random.gauss(0, 1)
    np.random.randn()  # each leaves a second Gaussian for the next call
    state = random_state()
    first = draw()
    torch.save(state.as_plain(), tmp_path / "state.pt")
    RandomState.from_plain(torch.load(tmp_path / "state.pt", weights_only=True)).restore()
    assert draw() == first


def test_states_of_an_exchanged_numpy_generator_are_kept():
    before = np.random.get_bit_generator()
    try:
        np.random.set_bit_generator(np.random.PCG64(3))
        state = RandomState.from_plain(random_state().as_plain())
        first = np.random.rand(4)
        state.restore()
        assert (np.random.rand(4) == first).all()
    finally:
        np.random.set_bit_generator(before)


def test_tensors_on_the_cpu_have_no_generator_of_an_accelerator():
    assert accelerators_of([torch.ones(2), torch.ones(2, device="meta")]) == []


def test_a_device_that_this_machine_lacks_is_left_out():
    state = random_state()
    elsewhere = RandomState(state.python, state.numpy, state.cpu, {"cuda:63": torch.zeros(16, dtype=torch.uint8)})
    elsewhere.restore()
    assert torch.equal(torch.get_rng_state(), state.cpu)


DRAWS = {
    "nothing": lambda: None,
    "a number": np.random.random_sample,
    "a normal number, of which numpy makes two": np.random.standard_normal,
    "many": lambda: np.random.standard_normal(1001),
    "a seed": lambda: np.random.seed(1),
}


@given(st.lists(st.sampled_from(sorted(DRAWS)), max_size=12))
def test_whatever_is_drawn_the_state_is_numpys_own(draws):
    np.random.seed(0)
    for draw in draws:
        DRAWS[draw]()
        assert repr(random_state().numpy) == repr(np.random.get_state(legacy=False))
