"""What editors and type checkers know is what there is; ``typed_program.py`` shows that they know it."""

import typing

import torch

import gradwatch
from gradwatch.findings import KINDS, Kind
from gradwatch.sinks.memory import HistoryKey


def test_the_keys_of_history_are_those_that_type_checkers_know():
    with gradwatch.watch(torch.nn.Linear(2, 1)) as watcher:
        assert sorted(watcher.history.keys()) == sorted(typing.get_args(HistoryKey))


def test_the_kinds_of_findings_are_those_that_type_checkers_know():
    assert typing.get_args(Kind) == KINDS
