"""Plain English in what people read: docstrings of the package, messages, the front end, README and docs.

A program cannot judge a sentence. It can find the habits that made ours hard to read: docstrings that begin with a
fragment ("What …", "Whether …"), headers that list what enters and leaves, and four words that meant too many things.
CONTRIBUTING.md says what to write in their place.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FRAGMENT = re.compile(r"(What|Whether|Of|Those|Who|Where)\b")
HEADER = re.compile(r"\b(Enters|Leaves):")
VAGUE = re.compile(r"\b(behind|stands|told|looked at)\b", re.IGNORECASE)
JAVASCRIPT_COMMENT = re.compile(r"/\*.*?\*/|(?<![:\"'])//[^\n]*", re.DOTALL)
TEMPLATE_COMMENT = re.compile(r"\{#.*?#\}|<!--.*?-->|/\*.*?\*/", re.DOTALL)


def sources(root: Path) -> dict[str, ast.Module]:
    """Return the syntax tree of each Python file of the package, by its path."""
    files = sorted((root / "gradwatch").rglob("*.py"))
    return {file.relative_to(root).as_posix(): ast.parse(file.read_text(encoding="utf-8")) for file in files}


def docstrings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each docstring."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            text = ast.get_docstring(node)
            if text:
                yield node.body[0].lineno, text


def messages(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Yield the line and the text of each string that is no docstring: messages, help texts, advice."""
    bare = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in bare:
            yield node.lineno, node.value


def fragments(root: Path) -> list[str]:
    """Return the docstrings whose summary begins with a fragment."""
    return [
        f"{path}:{line}: {text.splitlines()[0]}"
        for path, tree in sources(root).items()
        for line, text in docstrings(tree)
        if FRAGMENT.match(text)
    ]


def headers(root: Path) -> list[str]:
    """Return the docstrings that list what enters and leaves."""
    return [
        f"{path}:{line}: {found[0]}"
        for path, tree in sources(root).items()
        for line, text in docstrings(tree)
        if (found := HEADER.search(text))
    ]


def vague_messages(root: Path) -> list[str]:
    """Return the strings of the package that use one of the four words."""
    return [
        f"{path}:{line}: {text.strip()}"
        for path, tree in sources(root).items()
        for line, text in messages(tree)
        if VAGUE.search(text)
    ]


def vague_lines(root: Path, files: list[Path], comment: re.Pattern[str] | None) -> list[str]:
    """Return the lines of ``files`` that use one of the four words outside a comment."""
    found = []
    for file in files:
        text = file.read_text(encoding="utf-8")
        if comment is not None:
            text = comment.sub(lambda match: "\n" * match[0].count("\n"), text)
        lines = enumerate(text.splitlines(), 1)
        found += [f"{file.relative_to(root)}:{n}: {line.strip()}" for n, line in lines if VAGUE.search(line)]
    return found


def vague_pages(root: Path) -> list[str]:
    return vague_lines(root, [root / "README.md", *sorted((root / "docs").glob("*.md"))], None)


def vague_front_end(root: Path) -> list[str]:
    static = root / "gradwatch" / "tensorboard_plugin" / "static"
    scripts = [file for file in sorted(static.rglob("*.js")) if "vendor" not in file.parts]
    templates = [
        file
        for ending in ("*.html", "*.html.j2", "*.jinja", "*.j2", "*.css")
        for file in sorted((root / "gradwatch").rglob(ending))
        if "vendor" not in file.parts
    ]
    return vague_lines(root, scripts, JAVASCRIPT_COMMENT) + vague_lines(root, templates, TEMPLATE_COMMENT)


@pytest.mark.parametrize("look", [fragments, headers, vague_messages, vague_pages, vague_front_end])
def test_english_is_plain(look):
    found = look(ROOT)
    assert found == [], f"{len(found)} places, see CONTRIBUTING.md, Style:\n" + "\n".join(found)


def test_each_habit_is_found_and_plain_english_is_not(tmp_path):
    static = tmp_path / "gradwatch" / "tensorboard_plugin" / "static"
    static.mkdir(parents=True)
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("The layer behind it.\nThe layer after it.\n", encoding="utf-8")
    (static / "index.js").write_text('// behind\nconst text = "nothing stands here"; // told\n', encoding="utf-8")
    (static / "page.html").write_text("<!-- told -->\n<p>It is looked at.</p>\n", encoding="utf-8")
    (tmp_path / "gradwatch" / "module.py").write_text(
        '"""A module.\n\nEnters: behind. Leaves: told.\n"""\n\n\n'
        'def one():\n    """Whether it is."""\n    return "You were told so."\n\n\n'
        'def two():\n    """Return what was told."""  # behind\n    return "Whatever was named."\n',
        encoding="utf-8",
    )
    assert fragments(tmp_path) == ["gradwatch/module.py:8: Whether it is."]
    assert headers(tmp_path) == ["gradwatch/module.py:1: Enters:"]
    assert vague_messages(tmp_path) == ["gradwatch/module.py:9: You were told so."]
    assert vague_pages(tmp_path) == ["README.md:1: The layer behind it."]
    assert vague_front_end(tmp_path) == [
        'gradwatch/tensorboard_plugin/static/index.js:2: const text = "nothing stands here";',
        "gradwatch/tensorboard_plugin/static/page.html:2: <p>It is looked at.</p>",
    ]
