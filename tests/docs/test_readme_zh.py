"""README.zh-CN.md keeps step with README.md.

The translation follows by meaning. These tests compare what does not depend on the language: headings, code, links,
pictures, tables and numbers. A change of wording in one of the two asks for nothing in the other.
"""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ENGLISH = (ROOT / "README.md").read_text(encoding="utf-8")
CHINESE = (ROOT / "README.zh-CN.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
COMMENT = re.compile(r"[ \t]*#.*$", re.MULTILINE)


def prose(text):
    return FENCE.sub("", text)


def headings(text):
    return re.findall(r"^(#+) ", prose(text), re.MULTILINE)


def programs(text):
    """Return language and code of each block; comments are there to be translated."""
    return [(language, COMMENT.sub("", code)) for language, code in FENCE.findall(text)]


def links(text):
    """Return each link and picture and where it leads; the link to the other language aside."""
    found = re.findall(r"(!?)\[[^]]*\]\(([^)]+)\)", prose(text))
    return [(kind, target) for kind, target in found if not target.startswith("README")]


def codes(text):
    """Return what is in single backquotes, in whatever order a language puts it."""
    return sorted(re.findall(r"`([^`\n]+)`", prose(text)))


def rows(text):
    """Return the number of cells of each table row, and what its first cell has in backquotes."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [(codes(line.split("|")[1]), line.count("|")) for line in lines]


def numbers(text):
    """Return each number in figures, in whatever order a language puts it; code and the targets of links aside."""
    words = re.sub(r"\]\([^)]*\)|`[^`\n]+`", "", prose(text))
    return sorted(re.findall(r"\d+(?:[.,]\d+)*", words))


@pytest.mark.parametrize("part", [headings, programs, links, codes, rows, numbers])
def test_the_translation_has_the_same(part):
    assert part(ENGLISH)
    assert part(CHINESE) == part(ENGLISH)


def test_each_leads_to_the_other_in_its_first_lines():
    assert "(README.zh-CN.md)" in "".join(ENGLISH.splitlines()[:4])
    assert "(README.md)" in "".join(CHINESE.splitlines()[:5])


@pytest.mark.parametrize(
    ("part", "before", "after"),
    [
        (headings, "## ", "### "),
        (programs, ", clip=1.0", ", clip=2.0"),
        (programs, "```sh", "```bash"),
        (links, "(docs/run.md)", "(docs/report.md)"),
        (links, "![", "["),
        (codes, "`dead`", "`death`"),
        (rows, "| `stalled` |", "| `stuck` |"),
        (rows, "| judges nothing |", "|"),
        (numbers, "198 of 198", "199 of 198"),
        (numbers, "0.1 %", "0.2 %"),
    ],
)
def test_what_differs_is_seen(part, before, after):
    assert part(ENGLISH.replace(before, after, 1)) != part(ENGLISH)


@pytest.mark.parametrize("part", [headings, programs, links, codes, rows, numbers])
def test_a_change_of_wording_asks_for_nothing(part):
    changed = ENGLISH.replace("# optional: ", "# something else: ").replace("You need", "One needs")
    assert changed != ENGLISH
    assert part(changed) == part(ENGLISH)
