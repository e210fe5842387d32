"""README.zh-CN.md keeps step with README.md.

What a program can compare is compared: headings, code, links, pictures, tables. That the words still say the same is
for a reader: the translation holds a hash of the README that it was made from, and a change of README.md fails here
until somebody has looked at it and replaced the hash.
"""

import hashlib
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
    """Language and code of each block; comments are there to be translated."""
    return [(language, COMMENT.sub("", code)) for language, code in FENCE.findall(text)]


def links(text):
    """Each link and picture: whether it is one, and where it leads; the other language aside."""
    found = re.findall(r"(!?)\[[^]]*\]\(([^)]+)\)", prose(text))
    return [(kind, target) for kind, target in found if not target.startswith("README")]


def codes(text):
    """What stands in single backquotes is typed or read as it is, in whatever order a language puts it."""
    return sorted(re.findall(r"`([^`\n]+)`", prose(text)))


def rows(text):
    """The first cell and the number of cells of each table row but titles."""
    return [(line.split("|")[1].strip(), line.count("|")) for line in text.splitlines() if line.startswith("| `")]


@pytest.mark.parametrize("part", [headings, programs, links, codes, rows])
def test_the_translation_has_the_same(part):
    assert part(ENGLISH)
    assert part(CHINESE) == part(ENGLISH)


def test_each_leads_to_the_other_in_its_first_lines():
    assert "(README.zh-CN.md)" in "".join(ENGLISH.splitlines()[:4])
    assert "(README.md)" in "".join(CHINESE.splitlines()[:5])


def test_the_translation_was_looked_at_since_the_readme_changed():
    now = hashlib.sha256(ENGLISH.encode()).hexdigest()[:16]
    assert f"<!-- README.md as translated: {now} -->" in CHINESE, (
        f"README.md has changed since README.zh-CN.md was made from it. Bring the translation up to date, then write "
        f"{now} into its first line."
    )


@pytest.mark.parametrize(
    ("part", "before", "after"),
    [
        (headings, "## ", "### "),
        (programs, "clip=1.0", "clip=2.0"),
        (programs, "```sh", "```bash"),
        (links, "(docs/run.md)", "(docs/report.md)"),
        (links, "![", "["),
        (codes, "`dead`", "`death`"),
        (rows, "| `stalled` |", "| `stuck` |"),
    ],
)
def test_what_differs_is_seen(part, before, after):
    assert part(ENGLISH.replace(before, after, 1)) != part(ENGLISH)
    assert part(ENGLISH.replace("# optional: ", "# something else: ")) == part(ENGLISH)
