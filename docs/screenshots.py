"""The pictures of README and docs: TensorBoard over the runs of ``make demo``, in a real browser.

Needs Chromium; set CHROMIUM to its path where it is not /usr/bin/chromium.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

SIZE = {"width": 1366, "height": 768}
IMAGES = Path(__file__).parent / "images"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
TAB = "#gradwatch&p.gradwatch.runs="
PICTURES = {  # name → where in TensorBoard
    "tab": "#gradwatch",
    "tab-finding": f'{TAB}["vanishing"]',
    "tab-layer": f'{TAB}["nonfinite"]&p.gradwatch.layer=2.weight&p.gradwatch.step=228',
    "tab-step": f'{TAB}["vanishing","healthy"]&p.gradwatch.step=150',
    "tab-dark": f'?darkMode=true{TAB}["nonfinite"]',
    "scalars": "?tagFilter=loss%7Clearning_rate%7Cgrad_norm_total&smoothing=0#timeseries",
}


def main(log_dir: str = "runs") -> None:
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", log_dir, "--port", "0", "--host", "127.0.0.1"]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        address = next(match[0] for line in server.stderr if (match := re.search(r"http://\S+?:\d+", line)))
        take(address)
    finally:
        server.terminate()
        server.wait()


def take(address: str) -> None:
    IMAGES.mkdir(exist_ok=True)
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as profile:
        browser = playwright.chromium.launch_persistent_context(
            profile,
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"),
            args=FLAGS,
            viewport=SIZE,
        )
        page = browser.new_page()
        for name, place in PICTURES.items():
            page.set_viewport_size(SIZE)
            page.goto("about:blank")
            page.goto(f"{address}/{place}")
            if name.startswith("tab"):
                show_in_tab(page, name)
                page.screenshot(path=IMAGES / f"{name}.png")
                print(IMAGES / f"{name}.png")
                continue
            page.wait_for_timeout(6000)  # runs load one after the other, and nothing says when the last is drawn
            show_on_log_scale(page)
            page.screenshot(path=IMAGES / f"{name}.png", clip={"x": 0, "y": 0, "width": SIZE["width"], "height": 630})
            print(IMAGES / f"{name}.png")
        browser.close()


def show_in_tab(page: Page, name: str) -> None:
    """Waits for the maps, opens what the picture is of, and shows the tooltip of a chart."""
    frame = page.frame_locator("iframe")
    frame.locator(".panel[data-drawn]").first.wait_for()
    if name in ("tab-finding", "tab-dark"):
        frame.locator(".finding").first.click()
        frame.locator(".card").first.wait_for()
    frame.locator(".uplot").first.wait_for()
    page.wait_for_timeout(2000)
    if name == "tab-layer":
        frame.locator(".uplot .u-over").first.hover()
        page.wait_for_timeout(500)


def show_on_log_scale(page: Page) -> None:
    """Closes the settings and turns every card's y-axis logarithmic."""
    page.get_by_role("button", name="Toggle settings side pane").click()
    for menu in page.locator("button[aria-label='More line chart options']").all():
        menu.click()
        page.get_by_role("menuitem", name=re.compile("log scale")).last.click()
    page.mouse.move(0, 0)
    page.wait_for_timeout(1000)


if __name__ == "__main__":
    main(*sys.argv[1:2])
