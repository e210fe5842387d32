"""Replicas that drift apart are found, although each looks healthy; replicas that are meant to differ are not."""

import pytest

from tests.distributed.launch import Results
from tests.distributed.replicas import HEALTHY, PROGRAMS, SICK

pytestmark = [pytest.mark.process, pytest.mark.slow]

FIRST = {"replaced": "5.weight", "drawn": "3.weight", "changed": "0.weight"}
SINCE = {"replaced": (1, 1), "drawn": (0, 0), "changed": (5, 8)}  # compared at 4, 5, 8 and 9


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    return Results(2, "tests.distributed.replicas", list(PROGRAMS), tmp_path_factory)


@pytest.mark.parametrize("name", [each.__name__ for each in SICK])
def test_drifting_replicas_are_an_error_that_names_the_first_parameter(launched, name):
    for rank in launched.of(name):
        drifts = [finding for finding in rank["findings"] if finding["severity"] == "error"]
        assert len(drifts) == 1, rank["findings"]
        (drift,) = drifts
        assert (drift["kind"], drift["layer"], drift["ranks"]) == ("unstable", FIRST[name], [0, 1])
        assert SINCE[name][0] <= drift["step"] <= SINCE[name][1]
        assert drift["value"] > drift["threshold"]
        assert [remedy["name"] for remedy in drift["remedies"]] == ["same-replicas"]
        assert "its replicas differ between ranks" in drift["message"]
        assert len(drift["message"]) <= 160


@pytest.mark.parametrize("name", [each.__name__ for each in HEALTHY])
def test_replicas_that_are_equal_or_meant_to_differ_raise_nothing(launched, name):
    for rank in launched.of(name):
        assert [finding for finding in rank["findings"] if finding["severity"] == "error"] == []
