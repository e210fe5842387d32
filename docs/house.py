"""Draw the table of rooms in CONTRIBUTING.md from the imports: ``python docs/house.py`` writes it.

A room is a file or a folder directly below ``gradwatch/``. Its floor is one above the highest room that it imports.
"""

from __future__ import annotations

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "gradwatch"
PAGE = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- rooms: begin -->\n", "<!-- rooms: end -->\n"


def rooms() -> dict[str, set[str]]:
    """Return {room: the rooms that it imports}; the door, ``gradwatch/__init__.py``, is no room."""
    imports: dict[str, set[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        if path != PACKAGE / "__init__.py":
            room = path.relative_to(PACKAGE).with_suffix("").parts[0]
            imports.setdefault(room, set()).update(set(_imported_rooms(path)) - {room})
    return imports


def floors(imports: dict[str, set[str]]) -> dict[str, int]:
    """Return {room: its floor}, lowest first.

    Raises:
        graphlib.CycleError: if rooms import each other.
    """
    heights: dict[str, int] = {}
    for room in graphlib.TopologicalSorter(imports).static_order():
        heights[room] = 1 + max((heights[below] for below in imports[room]), default=-1)
    return dict(sorted(heights.items(), key=lambda pair: (pair[1], pair[0])))


def table() -> str:
    """Return the table as Markdown, a row for each room."""
    imports = rooms()
    lines = ["| floor | room | what it is for | imports |", "|---|---|---|---|"]
    for room, floor in floors(imports).items():
        is_folder = (PACKAGE / room).is_dir()
        name = f"{room}/" if is_folder else f"{room}.py"
        below = ", ".join(f"`{each}`" for each in sorted(imports[room])) or "–"
        lines.append(f"| {floor} | `{name}` | {_purpose(room)} | {below} |")
    return "\n".join(lines) + "\n"


def _purpose(room: str) -> str:
    """Return the first line of the room's docstring, without ReST's double quotes."""
    folder = PACKAGE / room
    path = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0].replace("``", "`")


def _imported_rooms(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("gradwatch."):
                    yield alias.name.split(".")[1]
        elif isinstance(node, ast.ImportFrom) and node.module == "gradwatch":
            for alias in node.names:
                if (PACKAGE / alias.name).is_dir() or (PACKAGE / f"{alias.name}.py").is_file():
                    yield alias.name
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("gradwatch."):
            yield str(node.module).split(".")[1]


if __name__ == "__main__":
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(before + BEGIN + table() + END + after, encoding="utf-8")
