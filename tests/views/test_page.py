"""The page of ``gradwatch report --html`` in a browser."""

import os

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright

from gradwatch.event_files.reader import read_runs
from gradwatch.views.page import page_of
from gradwatch.views.page.heatmap import LEFT, LOWEST, TOP, WIDTH
from tests.reports import NAN, findings, report, run_of
from tests.tensorboard_plugin.test_browser import FLAGS
from tests.written import write_rows

pytestmark = [pytest.mark.browser, pytest.mark.process]

SPIKE = 60  # the step of a spike in the last layer, among 100 steps


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=FLAGS
        )
        yield browser
        browser.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Opens the page of a run; whatever its script or its policy complains of fails the test."""
    said, pages = [], []

    def open_page(reports, told=()):
        write_rows(tmp_path / "run", reports, told)
        file = tmp_path / "page.html"
        file.write_text(page_of(read_runs(tmp_path / "run")), encoding="utf-8")
        page = browser.new_page(viewport={"width": 1366, "height": 1200})
        pages.append(page)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(file.as_uri())
        return page

    yield open_page
    for page in pages:
        page.close()
    assert said == []


def spiked():
    """100 steps of two layers, and a finding from step 30 on."""
    (sick,) = findings([report([NAN, 1.0], 30, nonfinite=[2, 0])])
    rows = [[1.0, 20.0 if step != SPIKE else 9e3] for step in range(100)]
    return run_of(rows, losses=[0.5] * 100), [(sick, False)]


def at(page, selector, share, down=0.25):
    """The pixels of the page at a share of the axis of a picture, and of its height."""
    box = page.locator(selector).first.bounding_box()
    pixels = box["width"] / WIDTH
    return box["x"] + (LEFT + share * (WIDTH - LEFT)) * pixels, box["y"] + (TOP + down * LOWEST) * pixels


def drag(page, selector, first, last):
    page.mouse.move(*at(page, selector, first))
    page.mouse.down()
    page.mouse.move(*at(page, selector, (first + last) / 2))
    page.mouse.move(*at(page, selector, last))
    page.mouse.up()


def shown(page):
    """The words beside the button, and the first and last number below the map."""
    ticks = page.locator("svg.map .tick").all_text_contents()
    return page.locator(".zoom span").inner_text(), ticks[0], ticks[-1]


ALL = ("Drag across a picture to zoom in on steps; + − ← → do it from the keyboard.", "0", "99")


def test_the_figure_under_the_pointer_is_shown(opened):
    page = opened(run_of([[1.0, 20.0]] * 9 + [[300.0, 20.0]], losses=[0.5] * 10, learning_rate=0.125))
    tip = page.locator("#tip")
    assert tip.is_hidden()
    page.mouse.move(*at(page, "svg.map", 0.95))
    assert tip.inner_text() == "w0\nstep 9\ngradient norm 300"
    page.mouse.move(*at(page, "svg.map", 0.95, 0.75))
    assert tip.inner_text() == "w1\nstep 9\ngradient norm 20"
    page.mouse.move(*at(page, "svg.chart", 0.35))  # of another picture, at the same axis
    assert tip.inner_text().splitlines()[0] == "step 3"
    assert "loss 0.5" in tip.inner_text()
    assert "learning rate 0.125" in tip.inner_text()
    page.mouse.move(2, 2)
    assert tip.is_hidden()


def test_a_drag_zooms_every_picture_and_a_double_click_shows_all_steps_again(opened):
    page = opened(*spiked())
    assert shown(page) == ALL
    drag(page, "svg.chart", 0.555, 0.655)
    assert shown(page) == ("Steps 55 to 65 of 0 to 99.", "55", "65")
    boxes = page.locator(".plot").evaluate_all("plots => plots.map((each) => each.viewBox.baseVal.x)")
    assert len(boxes) > 2
    assert len(set(boxes)) == 1  # one axis for all
    page.mouse.move(*at(page, "svg.map", 5.5 / 11, 0.75))
    assert page.locator("#tip").inner_text().splitlines()[:3] == ["w1", f"step {SPIKE}", "gradient norm 9000"]
    page.mouse.dblclick(*at(page, "svg.map", 0.5))
    assert shown(page) == ALL


def test_a_click_is_no_zoom_and_a_short_drag_leaves_a_few_steps(opened):
    page = opened(*spiked())
    page.mouse.click(*at(page, "svg.map", 0.5))
    assert shown(page) == ALL
    drag(page, "svg.map", 0.502, 0.509)
    assert shown(page) == ("Steps 50 to 53 of 0 to 99.", "50", "53")
    page.get_by_role("button", name="Show all steps").click()
    assert shown(page) == ALL


def test_the_keyboard_zooms_moves_and_shows_all_steps_again(opened):
    page = opened(*spiked())
    page.keyboard.press("Tab")
    page.keyboard.press("+")
    assert shown(page)[0] == "Steps 25 to 74 of 0 to 99."
    page.keyboard.press("ArrowRight")
    assert shown(page)[0] == "Steps 38 to 87 of 0 to 99."
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert shown(page)[0] == "Steps 50 to 99 of 0 to 99."  # no further than there are steps
    page.keyboard.press("-")
    assert shown(page) == ALL
    page.keyboard.press("+")
    page.keyboard.press("Escape")
    assert shown(page) == ALL


def test_the_number_of_a_finding_stays_in_sight_as_long_as_its_outline(opened):
    page = opened(*spiked())
    number, left = page.locator("svg.map .mark"), at(page, "svg.map", 0)[0]
    drag(page, "svg.map", 0.4, 0.6)  # within the outline, which begins before
    assert number.is_visible()
    assert left <= number.bounding_box()["x"] < left + 20
    page.keyboard.press("Escape")
    drag(page, "svg.map", 0.02, 0.2)
    assert number.is_hidden()


def test_a_column_of_several_steps_says_which_and_that_its_largest_shows(opened):
    page = opened(run_of([[1.0, 1.0]] * 840))
    page.mouse.move(*at(page, "svg.map", 0.5001))
    assert page.locator("#tip").inner_text() == "w0\nsteps 420 to 421\nlargest gradient norm 1"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation(opened, scheme):
    page = opened(*spiked())
    page.emulate_media(color_scheme=scheme)
    drag(page, "svg.map", 0.4, 0.6)  # so that the button is there
    violations = Axe().run(page).response["violations"]
    assert [(each["id"], [node["html"] for node in each["nodes"]]) for each in violations] == []


def test_of_many_runs_the_worst_comes_first(tmp_path):
    reports, told = spiked()
    write_rows(tmp_path / "b", reports, told)
    for name in "ac":
        write_rows(tmp_path / name, run_of([[1.0]] * 3))
    page = page_of(read_runs(tmp_path))
    assert page.index("<h2>b ") < page.index("<h2>a ") < page.index("<h2>c ")
