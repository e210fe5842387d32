"""Every test that docs/semantics.md names exists, under the parameter that it names; every setting is in the table."""

import ast
import functools
import re
from pathlib import Path

import pytest

from tests.watcher.test_settings import SETTINGS

TESTS = Path(__file__).resolve().parents[1]
PAGE = (TESTS.parent / "docs" / "semantics.md").read_text(encoding="utf-8")
NAMED = re.findall(r"`((?:\w+/)?test_\w+\.py)::(\w+)(?:\[([^\]]*)\])?`", PAGE)
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not re.match(r"\| .*\| test \|$", line)]


@functools.cache
def functions_of(file):
    body = ast.parse((TESTS / file).read_text(encoding="utf-8")).body
    return {node.name for node in body if hasattr(node, "name")}


@pytest.mark.parametrize(("file", "name", "setting"), NAMED)
def test_what_the_table_names_exists(file, name, setting):
    if name == "SETTINGS":
        assert setting in SETTINGS
        return
    assert name in functions_of(file)


def test_every_row_names_a_test():
    assert ROWS
    assert [row for row in ROWS if "::" not in row] == []
