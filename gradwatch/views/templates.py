"""Fill the templates in ``page/``; the one file that imports Jinja2. Every value is escaped."""

from __future__ import annotations

from functools import cache
from typing import Any

__all__ = ["render"]


def render(name: str, **values: object) -> str:
    """Return the template ``name`` filled with ``values``.

    Raises:
        ModuleNotFoundError: if Jinja2 is not installed.
    """
    text: str = _environment().get_template(name).render(values)
    return text


@cache
def _environment() -> Any:
    try:
        from jinja2 import Environment, PackageLoader, StrictUndefined
    except ModuleNotFoundError as error:
        if error.name != "jinja2":
            raise
        raise ModuleNotFoundError("Pages are made with Jinja2. Run: pip install jinja2", name="jinja2") from None
    return Environment(
        loader=PackageLoader("gradwatch.views", "page"),
        autoescape=True,
        undefined=StrictUndefined,  # a misspelt name is an error, not an empty place
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=False,
    )
