"""The examples of remedies run, a few steps each, and docs/remedies.md has what a full run of them has written."""

import importlib
import json
import re
import sys
from pathlib import Path

import pytest
import torch

from gradwatch.event_files.reader import read_runs
from gradwatch.remedies import FAMILIES, LIBRARY, PRELUDE

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "remedies.md").read_text(encoding="utf-8")
FOLDER = ROOT / "examples" / "remedies"
QUICK_STEPS = 12


@pytest.fixture
def example(monkeypatch, tmp_path):
    """Name of a file of the folder → its module, whose runs are quick and go to a directory of the test's own."""
    before = set(sys.modules)
    threads = torch.get_num_threads()
    monkeypatch.syspath_prepend(FOLDER)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["examples/remedies", "--quick"])
    yield importlib.import_module
    torch.set_num_threads(threads)
    for name in set(sys.modules) - before:
        if (FOLDER / f"{name}.py").exists():
            del sys.modules[name]


def between(name):
    begin, end = f"<!-- {name}: begin -->\n", f"\n<!-- {name}: end -->"
    return PAGE.split(begin)[1].split(end)[0]


def rows_of(table):
    """First cell of each row, and each title with its number of steps left out."""
    return re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE) + re.findall(r"^\*\*(.+)\*\*", table, re.MULTILINE)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_the_page_has_the_rows_that_the_example_trains(family, example, tmp_path):
    lines = example(family).main()
    assert rows_of(between(f"measured: {family}")) == rows_of("\n".join(lines))
    ways = sum(line.startswith("| ") for line in lines) - sum(line.startswith("**") for line in lines)
    runs = read_runs(tmp_path / "runs" / "remedies" / family)
    assert len(runs) == ways  # a run for each row, to compare in TensorBoard
    assert all(run.steps[0] == 0 and run.steps[-1] < 2 * QUICK_STEPS for run in runs)  # a game has two optimizers


@pytest.mark.parametrize("family", FAMILIES)
def test_the_figures_of_the_page_are_of_three_seeds(family):
    table = between(f"measured: {family}")
    assert set(re.findall(r"(?:vanishing|exploding|nonfinite|dead|saturated|stalled|unstable) \d/(\d)", table)) <= {"3"}
    rows = [row for row in table.splitlines() if row.startswith("| ") and "findings" not in row]
    assert all(re.search(r" \([\dna.]+–[\dna.]+\) ", row) for row in rows)  # the lowest and the highest of them


@pytest.mark.parametrize("family", FAMILIES)
def test_the_page_says_what_the_library_says(family, example):
    spec = importlib.util.spec_from_file_location("all_examples", FOLDER / "__main__.py")
    example("side_by_side")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert between(f"library: {family}") == "\n".join(module.described(FAMILIES[family])).rstrip()


def test_the_page_names_what_the_code_takes_for_granted():
    assert f"```python\n{PRELUDE}```\n" in PAGE


@pytest.mark.slow
def test_the_names_of_a_picture_are_those_of_the_table(example, tmp_path):
    lines = example("residual").main()
    tables = (tmp_path / "runs" / "remedies" / "residual").glob("*/names.json")
    names = sorted((json.loads(path.read_text(encoding="utf-8")) for path in tables), key=lambda each: each["title"])
    titles = [line.split("**")[1] for line in lines if line.startswith("**")]
    rows = [
        line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ") and "findings" not in line
    ]
    assert [each["title"] for each in names] == titles
    assert [row for each in names for row in each["rows"].values()] == rows


def test_every_remedy_is_tried_in_some_example():
    tables = "\n".join(between(f"measured: {family}") for family in FAMILIES)
    tried = set(re.findall(r"^\| ([a-z0-9-]+)[,:| ]", tables, re.MULTILINE))
    assert set(LIBRARY) <= tried


def test_a_picture_stands_beside_every_table():
    pictures = re.findall(r"\]\((images/remedy-[a-z-]+\.png)\)", PAGE)
    assert len(pictures) == len(FAMILIES)
    assert all((ROOT / "docs" / picture).exists() for picture in pictures)


def test_what_is_between_markers_is_replaced_and_nothing_else(example):
    spec = importlib.util.spec_from_file_location("all_examples", FOLDER / "__main__.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = "a\n<!-- x: begin -->\nold\n<!-- x: end -->\nb\n"
    assert module.between_markers(text, "x", ["new", ""]) == text.replace("old", "new")
