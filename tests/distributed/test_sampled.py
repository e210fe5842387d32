"""What is sampled of parts is what a single process samples of the whole."""

import pytest

from tests.distributed.launch import Results, same
from tests.distributed.sampled import CASES, PROGRAMS, Net, trained

pytestmark = [pytest.mark.process, pytest.mark.slow]


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    return Results(2, "tests.distributed.sampled", list(PROGRAMS), tmp_path_factory)


@pytest.mark.parametrize(("kind", "policy", "optimizers", "reads"), CASES)
def test_samples_of_parts_are_those_of_the_whole(launched, kind, policy, optimizers, reads):
    """Also where findings or the history are read after each update, which must communicate nothing."""
    known = trained(Net(), policy, optimizers)
    for rank in launched.of(f"{kind} | {policy} | {optimizers} | {reads}"):
        assert same(rank, known, 1e-5, floor=1e-7)
