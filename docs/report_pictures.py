"""Pictures of ``gradwatch report`` on a run of ``make demo``, and of examples/notebook.ipynb, in a real browser.

Needs Chromium; set CHROMIUM to its path where it is not /usr/bin/chromium.
"""

import io
import json
import os
import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright
from rich.console import Console
from screenshots import FLAGS, IMAGES

from gradwatch.event_files.reader import read_runs
from gradwatch.event_files.run import Run
from gradwatch.views.page import page_of
from gradwatch.views.terminal import in_terminal

NOTEBOOK = Path(__file__).parent.parent / "examples" / "notebook.ipynb"
SIZES = {"report-terminal": (1240, None), "report-page": (1366, 900), "notebook": (1000, None)}  # None: all of it


def main(run: str = "runs/vanishing") -> None:
    runs = read_runs(Path(run))
    with tempfile.TemporaryDirectory() as directory:
        pages = {name: Path(directory, f"{name}.html") for name in SIZES}
        pages["report-terminal"].write_text(terminal_of(runs, run), encoding="utf-8")
        pages["report-page"].write_text(page_of(runs), encoding="utf-8")
        pages["notebook"].write_text(first_watcher_of(NOTEBOOK), encoding="utf-8")
        take(pages, directory)


def terminal_of(runs: list[Run], run: str) -> str:
    console = Console(record=True, file=io.StringIO(), width=100, highlight=False)
    for part in in_terminal(runs):
        console.print(part)
    return f"<body style='margin:0'>{console.export_svg(title=f'gradwatch report {run}')}</body>"


def first_watcher_of(notebook: Path) -> str:
    """What the first cell that ends in a watcher shows."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    outputs = [output["data"] for cell in cells for output in cell.get("outputs", ()) if "data" in output]
    shown = next("".join(data["text/html"]) for data in outputs if "text/html" in data)
    return f"<!doctype html><meta charset='utf-8'><body style='font: 14px/1.4 sans-serif'>{shown}</body>"


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
