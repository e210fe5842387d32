"""Write measured tables into pages of the documentation, between their markers."""

from __future__ import annotations

import re
from pathlib import Path

__all__ = ["write_between"]


def write_between(path: Path, markers: tuple[str, str], text: str) -> None:
    """Put ``text`` between the markers of a page, in place of what is there.

    Raises:
        ValueError: if the page does not have both.
    """
    begin, end = markers
    page = path.read_text(encoding="utf-8")
    block = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not block.search(page):
        raise ValueError(f"{path}: expected the markers {begin} and {end}, found none.")
    path.write_text(block.sub(lambda _: f"{begin}\n{text}\n{end}", page), encoding="utf-8")
