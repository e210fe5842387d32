"""Every Python block of README.md and docs/*.md runs as it stands, and so do the examples in docstrings.

The blocks of one page run in order and share one namespace, as a reader would type them. The codes of the remedies are
left out: each fits some models only, and tests/remedies/test_pasted_code.py runs each on a model that it fits.

Each page has a process (a fork of one that has loaded torch and Lightning) and a working directory of its own, with
Python's usual warnings.
"""

import doctest
import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LIBRARY = re.compile(r"^<!-- library: (\w+): begin -->$.*?^<!-- library: \1: end -->$", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```python[ \t]*\n(.*?)^```[ \t]*$", re.MULTILINE | re.DOTALL)


def program_of(text: str) -> str:
    """Return the Python blocks of a page, each on its own line, so that a traceback names the page's line."""
    text = LIBRARY.sub(lambda section: "\n" * section[0].count("\n"), text)
    lines: list[str] = []
    for block in BLOCK.finditer(text):
        begins = text.count("\n", 0, block.start(1))
        lines += [""] * (begins - len(lines)) + block[1].splitlines()
    return "\n".join(lines) + "\n" if lines else ""


PAGES = {
    page.relative_to(ROOT).as_posix(): program
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    if page.exists() and (program := program_of(page.read_text(encoding="utf-8")))
}


@pytest.fixture(scope="module")
def page_runner():
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    environment["PYTHONPATH"] = str(ROOT)
    environment["OMP_NUM_THREADS"] = "1"  # the pages' tensors are tiny: more threads only wait for one another
    command = [sys.executable, "-W", "default", Path(__file__).with_name("page_runner.py")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as runner:
        yield runner


@pytest.mark.process
@pytest.mark.parametrize("page", PAGES)
def test_page_runs_from_its_first_block_to_its_last(page, page_runner, tmp_path):
    (tmp_path / "page.py").write_text(PAGES[page], encoding="utf-8")
    print(tmp_path, file=page_runner.stdin, flush=True)
    status = page_runner.stdout.readline().strip()
    output = (tmp_path / "output.txt").read_text(encoding="utf-8")
    assert status == "0", f"{page}, lines as in the page:\n{output[-4000:]}"


def test_blocks_keep_the_lines_on_which_they_stand():
    text = "# A page\n\n```python\nx = 1\n```\n\n```yaml\nx: 2\n```\n\n```python\ny = x\nz = y\n```\n"
    program = program_of(text)
    assert [line for line in program.splitlines() if line] == ["x = 1", "y = x", "z = y"]
    assert all(program.splitlines()[n] == text.splitlines()[n] for n in (3, 11, 12))


def test_a_page_without_python_is_no_program():
    assert program_of("# A page\n\n```bash\nls\n```\n") == ""


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["findings", "watcher.attach", "huggingface", "ignite", "lightning", "prescription", "sinks.csv", "sinks.webhook"],
)
def test_examples_in_docstrings_hold(name):
    module = importlib.import_module(f"gradwatch.{name}")
    known = {"gradwatch": importlib.import_module("gradwatch"), "torch": importlib.import_module("torch")}
    failures, tried = doctest.testmod(module, extraglobs=known)
    assert (failures, tried > 0) == (0, True)


LINK = re.compile(r"!?\[[^]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")


@pytest.mark.parametrize(
    "page", sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]), ids=lambda page: page.name
)
def test_links_lead_somewhere_in_the_repository_too(page):
    targets = [target for target in LINK.findall(page.read_text(encoding="utf-8")) if "://" not in target]
    assert [target for target in targets if not (page.parent / target).exists()] == []


@pytest.mark.parametrize(
    "page", ["README.md", "README.zh-CN.md", *(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))]
)
def test_a_page_installs_from_a_checkout(page):
    """There is no gradwatch on PyPI."""
    commands = re.findall(r"pip install ([^\n`#]+)", (ROOT / page).read_text(encoding="utf-8"))
    assert all(command.startswith((".", "'.[")) for command in commands)
