"""Run every example of this folder, or those named: ``python examples/remedies [--write | --text] [family …]``.

``--write`` puts what the library says and what was measured into docs/remedies.md. ``--text`` trains nothing, and puts
what the library says there alone.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

from side_by_side import quiet

from gradwatch.remedies import FAMILIES, Remedy

PAGE = Path(__file__).resolve().parent.parent.parent / "docs" / "remedies.md"


def main() -> None:
    """Show the tables of each family, and write them into the page between their markers."""
    quiet()
    for family in [word for word in sys.argv[1:] if not word.startswith("-")] or FAMILIES:
        if "--text" in sys.argv:
            write(f"library: {family}", described(FAMILIES[family]))
            continue
        measured = importlib.import_module(family).main()
        if "--write" in sys.argv:
            write(f"library: {family}", described(FAMILIES[family]))
            write(f"measured: {family}", measured)


def write(name: str, lines: list[str]) -> None:
    """Put ``lines`` between the markers of that name in the page."""
    PAGE.write_text(between_markers(PAGE.read_text(encoding="utf-8"), name, lines), encoding="utf-8")


def described(remedies: tuple[Remedy, ...]) -> list[str]:
    """Return what the library says of a family, in Markdown."""
    return [
        line
        for remedy in remedies
        for line in (
            f"#### {remedy.title} {{ #{remedy.name} }}",
            "",
            f"`{remedy.name}`. {remedy.applies[0].upper()}{remedy.applies[1:]}.",
            "",
            f"{remedy.why}. ({remedy.source})",
            "",
            "```python",
            *remedy.code.rstrip().splitlines(),
            "```",
            "",
            f"Cost: {remedy.cost}.",
            "",
        )
    ]


def between_markers(text: str, name: str, lines: list[str]) -> str:
    """Return ``text`` with ``lines`` between its markers of that name."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    head, rest = text.split(begin)
    return f"{head}{begin}\n{chr(10).join(lines).rstrip()}\n{end}{rest.split(end)[1]}"


if __name__ == "__main__":
    main()
