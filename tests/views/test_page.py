"""The page of ``gradwatch report --html`` in a browser."""

import os

import pytest
from playwright.sync_api import sync_playwright

from gradwatch.event_files.reader import read_runs
from gradwatch.views.page import page_of
from tests.reports import run_of
from tests.tensorboard_plugin.test_browser import FLAGS
from tests.written import write_rows


@pytest.mark.browser
def test_the_figure_under_the_pointer_is_shown(tmp_path):
    write_rows(tmp_path / "run", run_of([[1.0, 20.0]] * 9 + [[300.0, 20.0]], losses=[0.5] * 10, learning_rate=0.125))
    page_file = tmp_path / "page.html"
    page_file.write_text(page_of(read_runs(tmp_path / "run")), encoding="utf-8")
    said = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=FLAGS
        )
        page = browser.new_page(viewport={"width": 1366, "height": 1200})
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(page_file.as_uri())
        tip, box = page.locator("#tip"), page.locator("svg.map image").bounding_box()
        assert tip.is_hidden()
        page.mouse.move(box["x"] + 0.95 * box["width"], box["y"] + 0.25 * box["height"])
        assert tip.inner_text() == "w0\nstep 9\ngradient norm 300"
        page.mouse.move(box["x"] + 0.95 * box["width"], box["y"] + 0.75 * box["height"])
        assert tip.inner_text() == "w1\nstep 9\ngradient norm 20"
        chart = page.locator("svg.chart").first.bounding_box()
        page.mouse.move(box["x"] + 0.35 * box["width"], chart["y"] + 10)  # of another picture, at the same axis
        assert tip.inner_text().splitlines()[0] == "step 3"
        assert "loss 0.5" in tip.inner_text()
        assert "learning rate 0.125" in tip.inner_text()
        page.mouse.move(2, 2)
        assert tip.is_hidden()
        browser.close()
    assert said == []  # no fault, and nothing that the policy refuses
