"""The pictures of docs/report.md: a run of ``make demo`` in the terminal and as a page, in a real browser.

Needs Chromium; set CHROMIUM to its path where it is not /usr/bin/chromium.
"""

import io
import os
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright
from rich.console import Console
from screenshots import FLAGS, IMAGES

from gradwatch.runs import Run, read_runs
from gradwatch.views.page import page_of
from gradwatch.views.terminal import in_terminal

SIZES = {"report-terminal": (1240, None), "report-page": (1000, 1040)}  # None: all of it


def main(run: str = "runs/vanishing") -> None:
    runs = read_runs(Path(run))
    with tempfile.TemporaryDirectory() as directory:
        pages = {name: Path(directory, f"{name}.html") for name in SIZES}
        pages["report-terminal"].write_text(terminal_of(runs, run), encoding="utf-8")
        pages["report-page"].write_text(page_of(runs), encoding="utf-8")
        take(pages, directory)


def terminal_of(runs: list[Run], run: str) -> str:
    console = Console(record=True, file=io.StringIO(), width=100, highlight=False)
    for part in in_terminal(runs):
        console.print(part)
    return f"<body style='margin:0'>{console.export_svg(title=f'gradwatch report {run}')}</body>"


def take(pages: dict[str, Path], directory: str) -> None:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch_persistent_context(
            Path(directory, "profile"), executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=FLAGS
        )
        page = browser.new_page()
        for name, (width, height) in SIZES.items():
            page.set_viewport_size({"width": width, "height": height or 100})
            page.goto(pages[name].as_uri())
            page.screenshot(path=IMAGES / f"{name}.png", full_page=height is None)
            print(IMAGES / f"{name}.png")
        browser.close()


if __name__ == "__main__":
    main()
