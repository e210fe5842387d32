import ast
import itertools
import subprocess
import sys
from pathlib import Path

import pytest
from radon.complexity import cc_visit
from radon.visitors import Function

import gradwatch
from tests.slow_tests import slow_functions

PACKAGE = Path(gradwatch.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

sys.path.insert(0, str(PACKAGE.parent / "docs"))
import house  # noqa: E402

ROOMS = house.rooms()


def test_rooms_import_strictly_downward():
    imports = ROOMS
    heights = house.floors(imports)  # raises where rooms import each other
    assert all(heights[below] < heights[room] for room, below_it in imports.items() for below in below_it)


def test_plain_rooms_import_nothing_above_them():
    imports = ROOMS
    assert imports["findings"] == set()
    assert imports["event_files"] == {"findings"}
    assert not {room for room in imports if "watcher" in imports[room]} - {
        "huggingface", "ignite", "lightning", "prescription", "scripts", "cli",
    }  # fmt: skip


def test_no_import_is_relative():
    for path in sorted(PACKAGE.rglob("*.py")):
        nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        assert all(node.level == 0 for node in nodes if isinstance(node, ast.ImportFrom)), path


def test_contributing_shows_the_rooms_as_they_are():
    page = house.PAGE.read_text(encoding="utf-8")
    drawn = page.partition(house.BEGIN)[2].partition(house.END)[0]
    assert drawn == house.table(), "run: python docs/house.py"


LARGEST_COMPLEXITY = 10


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_no_function_is_complex_without_saying_why(path):
    """Cyclomatic complexity as radon counts it; above 10 the line above the function begins with ``# complexity:``."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    functions = [block for block in cc_visit(text) if isinstance(block, Function)]
    complex_ones = [function for function in functions if function.complexity > LARGEST_COMPLEXITY]
    has_reason = [lines[function.lineno - 2].strip().startswith("# complexity: ") for function in complex_ones]
    assert [str(one) for one, explained in zip(complex_ones, has_reason, strict=True) if not explained] == []


HEAVY_FREE = [
    "gradwatch",
    "gradwatch.findings",
    "gradwatch.measure.report",
    "gradwatch.event_files.decode",
    "gradwatch.remedies",
    "gradwatch.scripts",
    "gradwatch.cli",
    "gradwatch.cli.run",
]


@pytest.mark.process
@pytest.mark.parametrize("module", HEAVY_FREE)
def test_a_fresh_import_loads_nothing_heavy(module):
    heavy = {"torch", "tensorboard", "lightning", "pytorch_lightning", "rich"}
    code = f"import sys, {module}; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""


def test_every_public_name_loads():
    assert set(gradwatch.__all__) <= set(dir(gradwatch))
    assert all(getattr(gradwatch, name) is not None for name in gradwatch.__all__)


def test_an_unknown_name_is_answered_with_the_known_ones():
    with pytest.raises(AttributeError, match=r"'gradwatch' has no attribute 'wach'; it has .*watch"):
        _ = gradwatch.wach


def test_who_looks_for_the_callback_at_the_door_is_sent_to_the_right_room():
    with pytest.raises(AttributeError, match=r"gradwatch\.lightning, gradwatch\.huggingface or gradwatch\.ignite"):
        _ = gradwatch.GradWatch


def test_the_slow_tests_exist():
    """A test that was renamed would else be among the quick ones again."""
    tests = PACKAGE.parent
    for file, names in itertools.groupby(slow_functions(), lambda name: name.partition("::")[0]):
        body = ast.parse((tests / file).read_text(encoding="utf-8")).body
        known = {node.name for node in ast.walk(ast.Module(body, [])) if isinstance(node, ast.FunctionDef)}
        gone = {name.rpartition("::")[2] for name in names} - known
        assert not gone, f"take them out of tests/slow_tests.txt: {file} has no {gone}"
