import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest

import gradwatch

PACKAGE = Path(gradwatch.__file__).parent

FLOOR_0 = {"findings", "report", "packed", "stats", "layers", "host_copy", "slopes", "graph"}
FLOOR_1 = {
    "detect": {"findings", "report", "layers", "harmless"},
    "clip": {"stats"},
    "samples": {"stats"},
    "placement": {"report"},
    "harmless": {"findings"},
    "optimizers": {"harmless"},
    "checkpoint": set(),
    "backward": {"calls", "layers", "stats", "harmless"},
    "origin": {"layers", "report"},
    "calls": set(),
    "functions": {"graph", "slopes"},
    "activations": {"calls", "functions", "graph", "harmless", "layers", "report"},
    "trace": {"calls", "origin", "report", "harmless"},
    "operations": {"graph", "report"},
    "replica": set(),
    "replay": {"calls", "operations", "origin", "replica", "report", "samples", "trace", "harmless"},
    "sinks": {"findings", "packed", "report"},
    "unpacked": {"findings", "packed"},
    "runs": {"findings", "packed", "unpacked"},
    "remedies": {"findings", "layers"},
    "measurement": {"stats", "samples", "placement", "host_copy", "report", "layers", "clip", "backward"},
}
BELOW_WATCHER = FLOOR_0 | set(FLOOR_1)
ALL = {
    "gradwatch",
    "watcher",
    "lightning",
    "tensorboard_plugin",
    "prescription",
    "demo",
    "views",
    "scripts",
    *BELOW_WATCHER,
}
MAY_IMPORT = {
    **{name: set() for name in FLOOR_0},
    **FLOOR_1,
    "views": {"findings", "runs", "sinks"},
    "watcher": {"views", *BELOW_WATCHER},
    "lightning": {"watcher", *BELOW_WATCHER},
    "prescription": {"watcher", *BELOW_WATCHER},
    "scripts": {"watcher", *BELOW_WATCHER},
    "tensorboard_plugin": {"packed", "report", "unpacked"},
    "demo": ALL,
    "cli": ALL,
    "__main__": {"cli"},
}
FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path != PACKAGE / "__init__.py"]


def part_of(module):
    """The file or folder of gradwatch that a dotted name leads to; the public face is ``gradwatch`` itself."""
    name = module.split(".")[1] if "." in module else ""
    return name if (PACKAGE / name).with_suffix(".py").exists() or (name and (PACKAGE / name).is_dir()) else "gradwatch"


def imported_parts(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (part_of(alias.name) for alias in node.names if alias.name.split(".")[0] == "gradwatch")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            if node.module == "gradwatch":
                yield from (part_of(f"gradwatch.{alias.name}") for alias in node.names)
            elif node.module.startswith("gradwatch."):
                yield part_of(node.module)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_imports_point_strictly_downward(path):
    own = path.relative_to(PACKAGE).with_suffix("").parts[0]
    assert set(imported_parts(path)) - {own} <= MAY_IMPORT[own]


def test_the_floors_rest_on_each_other():
    tops = {name: set() for name in ("demo", "cli", "__main__")}
    order = list(graphlib.TopologicalSorter({**MAY_IMPORT, **tops}).static_order())  # no cycle
    assert all(order.index(below) < order.index(name) for name, parts in FLOOR_1.items() for below in parts)


HEAVY_FREE = [
    "gradwatch",
    "gradwatch.findings",
    "gradwatch.report",
    "gradwatch.unpacked",
    "gradwatch.remedies",
    "gradwatch.scripts",
    "gradwatch.cli",
    "gradwatch.cli.run",
]


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
