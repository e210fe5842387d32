"""The numbers on README's first screen are those of the pages that it names."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PERFORMANCE = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
HELD_HALF = (ROOT / "docs" / "detection.md").read_text(encoding="utf-8").split("**All programs**")[0]


def cells(page, first):
    """Return the cells of the table row whose first cell is ``first``, without bold marks."""
    rows = [[cell.strip().strip("*") for cell in line.split("|")[1:-1]] for line in page.splitlines()]
    return next(row for row in rows if row and row[0] == first)


def medians(row):
    """Return the lowest and the highest median of a row of performance.md, as README writes them."""
    figures = sorted((cell.split()[0] for cell in row[1:]), key=float)
    return f"{figures[0]} to {figures[-1]}"


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ("gradwatch", "gradwatch"),
        ("Lightning's `grad_norm`", "Lightning's `grad_norm`, scalars"),
        ('`wandb.watch(log="all", log_freq=1)`', '`wandb.watch(log="all", log_freq=1)`'),
    ],
)
def test_costs_are_those_of_the_performance_page(here, there):
    every_step = PERFORMANCE.split("| every step, every layer")[1]
    assert cells(README, here)[1] == medians(cells(every_step, there))


def test_clipping_costs_what_the_performance_page_says():
    table = PERFORMANCE.split("| model | bare |")[1].split("\n\n")[0]
    clipping = [line.split("|")[4].split()[0] for line in table.splitlines() if " rounds |" in line]
    assert f"{min(clipping, key=float)} to {max(clipping, key=float)} of one with" in README


@pytest.mark.parametrize(
    ("here", "there"),
    [
        ("gradwatch", "gradwatch"),
        ("rules of SageMaker Debugger", "SageMaker Debugger"),
        ("rules of AUTOTRAINER", "AUTOTRAINER"),
    ],
)
def test_findings_are_those_of_the_held_half_of_the_detection_page(here, there):
    page = cells(HELD_HALF, there)
    counts = [re.search(r"\((\d+)/(\d+)\)", page[column]).groups() for column in (1, 5)]
    assert cells(README, here)[2:] == [f"{found} of {runs}" for found, runs in counts]
