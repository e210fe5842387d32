import contextlib
import json
import os
import re
import tempfile
from dataclasses import replace

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import expect, sync_playwright

from gradwatch.findings import Advice, Finding
from tests.reports import INF, NAN, findings, report, run_of
from tests.tab_logs import tensorboard_over, write_events, write_run
from tests.tensorboard_plugin.test_server import HOSTILE, TABLE
from tests.written import totals

pytestmark = [pytest.mark.browser, pytest.mark.process]

FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking", "--disable-sync"]
NAMES = tuple(f"blocks.{block}.{part}" for block in range(6) for part in ("fc.weight", "fc.bias"))
expect.set_options(timeout=30_000)  # reached only where something is broken, or a machine is very busy
MARKUP = "<img src=x onerror=window.hacked=1>"
NOT_OURS = (  # said by TensorBoard itself, and, the last, of ``colours`` below
    "Multiple instances of Three.js",
    "/favicon.ico",  # asked for by the browser
    "net::ERR_ABORTED",  # a question that leaving the page breaks off
    "/font-roboto/",  # its fonts are not under its path prefix
    "willReadFrequently",
)


def networks():
    """A healthy run, and one in which a layer's gradient turns NaN at step 30, both of 12 layers and 40 steps."""
    rng = np.random.default_rng(0)
    healthy = [list(row) for row in np.exp(rng.normal(0, 0.2, (40, len(NAMES))))]
    sick = [row.copy() for row in healthy]
    reports = run_of(healthy, layers=NAMES, grad_norm_clipped_total=1.0)
    broken = run_of(sick, layers=NAMES)
    for step in range(30, 40):
        norms = [NAN if column == 4 else 1.0 for column in range(len(NAMES))]
        counts = [3 if column == 4 else 0 for column in range(len(NAMES))]
        broken[step] = report(norms, step, nonfinite=counts, layers=NAMES, skipped=True)
    for each in (*reports, *broken):
        each.figures["weight_norm"] = np.full(len(NAMES), 2.0 + each.step)
    return reports, broken


FINDING = Finding(
    kind="nonfinite", severity="error", layer=NAMES[4], layers=(NAMES[4], NAMES[5]), step=30, raised_step=30,
    last_step=30, value=3.0, threshold=0.0, cause="log of zero in blocks.2",
    measured="3 entries are NaN.",
    remedies=(Advice("safe-log", "clamp the log"),),
)  # fmt: skip


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    directory = tmp_path_factory.mktemp("logs")
    healthy, sick = networks()
    band = np.stack([np.full(len(NAMES), 1e-3), np.full(len(NAMES), 10.0)])
    write_run(directory / "cured", healthy, band=band)
    write_run(directory / "sick", sick, [(FINDING, False)], band=band)
    return directory


@pytest.fixture(scope="module")
def browser():
    executable = os.environ.get("CHROMIUM", "/usr/bin/chromium")
    with sync_playwright() as playwright, tempfile.TemporaryDirectory() as profile:
        context = playwright.chromium.launch_persistent_context(
            profile, executable_path=executable, args=FLAGS, viewport={"width": 1280, "height": 900}
        )
        context.set_default_timeout(120_000)  # TensorBoard's own page is slow on a busy machine
        yield context
        context.close()


def note(said, message):
    if message.type in ("error", "warning"):
        said.append(f"{message.text} {message.location['url']}")


@pytest.fixture
def page(browser):
    """A page whose errors, warnings and refused policies fail the test, unless one of the patterns ``allowed`` fits."""
    page, said = browser.new_page(), []
    page.allowed = [*NOT_OURS]
    page.on("console", lambda message: note(said, message))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("requestfailed", lambda request: said.append(f"{request.url} {request.failure}"))
    yield page
    said = [*said]  # without the questions that closing the page breaks off
    page.close()
    unexpected = [text for text in said if not any(re.search(pattern, text) for pattern in page.allowed)]
    assert unexpected == []


@pytest.fixture(scope="module")
def address(logs):
    with tensorboard_over(logs) as address:
        yield address


@contextlib.contextmanager
def served(page, directory, *flags):
    """The address of a TensorBoard that goes after the page: its last questions would else stay unanswered."""
    with tensorboard_over(directory, *flags) as address:
        yield address
        page.allowed.append("net::ERR_ABORTED")
        page.close()


def open_tab(page, address, hash_=""):
    """The tab alone, which loads in a fraction of the time that TensorBoard's own page takes."""
    page.goto("about:blank")
    page.goto(f"{address}/data/plugin_entry.html?name=gradwatch#gradwatch{hash_}")
    return page


def open_within(page, address, hash_="", query=""):
    """The tab's frame within TensorBoard."""
    page.goto("about:blank")
    page.goto(f"{address}/{query}#gradwatch{hash_}")
    return page.frame_locator("iframe")


def inner(page):
    (frame,) = (each for each in page.frames if "/data/plugin" in each.url)
    return frame


def drawn(frame, statistic="grad_ratio", index=0):
    panel = frame.locator(".panel").nth(index)
    expect(panel).to_have_attribute("data-drawn", re.compile(f"^{statistic} "))
    return panel


def colours(page, index=0):
    """How many pixels of each colour a map has."""
    script = """(index) => { const canvas = document.querySelectorAll('canvas.cells')[index];
      const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height); const counts = {};
      for (let at = 0; at < data.length; at += 4) {
        const key = [data[at], data[at + 1], data[at + 2]].join(); counts[key] = (counts[key] || 0) + 1; }
      return counts; }"""
    return inner(page).evaluate(script, index)


def hatched(counts):
    """The share of a map that is hatched, as what is not finite is."""
    return (counts.get("253,238,244", 0) + counts.get("194,37,92", 0)) / sum(counts.values())


def marks(page, index=0):
    """Shares of an axis that are marked beside the words clipped and skipped."""
    script = """(index) => { const canvas = document.querySelectorAll('canvas.axis')[index];
      const beside = (word) => { const {top, bottom} = word.getBoundingClientRect();
        return Math.round((top + bottom) / 2 - canvas.getBoundingClientRect().top); };
      const context = canvas.getContext('2d'); const alpha = (y) => [...Array(canvas.width).keys()]
        .filter((x) => context.getImageData(x, y, 1, 1).data[3]).length / canvas.width;
      return [...document.querySelectorAll('.marks')[index].children].map(beside).map(alpha); }"""
    return inner(page).evaluate(script, index)


def address_bar(page):
    return page.evaluate("decodeURIComponent(location.hash)")


def test_it_opens_on_the_worst_run_with_its_first_finding_and_nothing_of_both_below_the_fold(page, address):
    page.set_viewport_size({"width": 1366, "height": 768})
    frame = open_within(page, address)
    panel = drawn(frame)
    expect(panel.get_by_role("heading")).to_have_text("sick")
    expect(frame.locator(".run-name .name")).to_have_text(["sick", "cured"])
    share = hatched(colours(page))
    assert share == pytest.approx(1 / 12 / 4, rel=0.1)  # one layer of twelve, a quarter of the steps
    card = frame.get_by_role("region", name="Finding: nonfinite")
    expect(card).to_contain_text("3 entries are NaN or Inf")
    for part in (card.locator("ol"), panel.locator(".axis"), frame.locator(".finding"), panel.locator(".label.sick")):
        box = part.bounding_box()
        assert box["y"] + box["height"] <= 768
    assert card.bounding_box()["x"] > panel.bounding_box()["x"] + panel.bounding_box()["width"]


def test_a_click_on_a_finding_goes_to_its_place_and_opens_the_evidence(page, address):
    frame = open_tab(page, address)
    drawn(frame)
    frame.get_by_role("button", name="nonfinite error").click()
    card = frame.get_by_role("region", name="Finding: nonfinite")
    for text in (FINDING.measured, FINDING.cause, FINDING.remedies[0].text):
        assert card.inner_text().count(text) == 1
    expect(card).to_contain_text("since step 30, still open at the last logged step, 39; raised at step 30")
    expect(frame.get_by_role("button", name="nonfinite error")).to_be_focused()  # and not lost with the old list
    expect(card.locator("tr.sick")).to_contain_text(NAMES[4])
    expect(card.locator("tbody tr")).to_have_count(7)
    expect(frame.get_by_role("region", name=f"Layer: {NAMES[4]}").locator(".uplot")).to_have_count(2)
    expect(frame.get_by_role("region", name="Step 30").locator(".uplot")).to_have_count(1)
    assert f"p.gradwatch.layer={NAMES[4]}&p.gradwatch.step=30" in address_bar(page)


def test_zooming_and_panning_show_other_steps_and_all_again(page, address):
    frame = open_tab(page, address)
    panel = drawn(frame)
    frame.locator(".plot").hover()
    for _ in range(6):
        page.mouse.wheel(0, -100)
    expect(panel).not_to_have_attribute("data-drawn", "grad_ratio 0 40")
    page.wait_for_function("location.hash.includes('p.gradwatch.from')")
    first = address_bar(page)
    frame.locator(".plot").focus()
    page.keyboard.press("Shift+ArrowRight")
    page.wait_for_function("(first) => decodeURIComponent(location.hash) !== first", arg=first)
    page.keyboard.press("0")
    page.wait_for_function("!location.hash.includes('p.gradwatch.from')")
    expect(panel).to_have_attribute("data-drawn", "grad_ratio 0 40")
    assert marks(page) == [0, pytest.approx(0.25, abs=0.02)]  # of all steps again


def test_a_statistic_can_be_switched(page, address):
    frame = open_tab(page, address)
    drawn(frame)
    before = colours(page)
    frame.get_by_label("Statistic").select_option("weight_norm")
    drawn(frame, "weight_norm")
    assert colours(page) != before
    assert "p.gradwatch.statistic=weight_norm" in address_bar(page)
    options = frame.get_by_label("Statistic").locator("option").all_inner_texts()
    assert "Weight norm" in options
    assert "Dead units" not in options  # was not logged


def test_runs_share_one_axis_of_steps_one_below_the_other(page, address):
    frame = open_tab(page, address)
    drawn(frame)
    frame.get_by_role("checkbox", name="cured").check()
    panels = [drawn(frame, index=index) for index in range(2)]
    upper, lower = (panel.locator(".axis").bounding_box() for panel in panels)
    assert (upper["x"], upper["width"]) == (lower["x"], lower["width"])
    assert hatched(colours(page, 0)) > 0
    assert hatched(colours(page, 1)) == 0
    frame.get_by_role("checkbox", name="sick").uncheck()
    expect(frame.locator(".panel")).to_have_count(1)
    frame.get_by_role("checkbox", name="cured").uncheck()
    expect(frame.locator(".empty")).to_contain_text("No run is chosen")


def test_clipped_and_skipped_steps_are_marked_on_the_axis(page, address):
    frame = open_tab(page, address, '&p.gradwatch.runs=["cured","sick"]')
    drawn(frame, index=1)
    assert marks(page, 0) == [pytest.approx(1, abs=0.02), 0]  # clipped all along
    assert marks(page, 1) == [0, pytest.approx(0.25, abs=0.02)]  # skipped in the last quarter
    clipped, skipped = (frame.locator(f".marks .{word}").first.bounding_box() for word in ("clipped", "skipped"))
    assert clipped["y"] + clipped["height"] <= skipped["y"]
    assert min(clipped["height"], skipped["height"]) >= 12  # letters of 11 pixels


def test_a_flick_of_a_trackpad_zooms_a_little_and_a_swipe_pans(page, address):
    frame = open_tab(page, address)
    panel = drawn(frame)
    frame.locator(".plot").hover()
    for _ in range(30):
        page.mouse.wheel(0, -3)
    page.wait_for_function("location.hash.includes('p.gradwatch.from')")
    first, last = view(page)
    assert 30 <= last - first < 39  # of 40 steps
    page.mouse.wheel(60, 0)
    page.wait_for_function("(first) => !location.hash.includes(`p.gradwatch.from=${first}&`)", arg=first)
    assert view(page)[0] > first
    frame.locator(".plot").dblclick()
    page.wait_for_function("!location.hash.includes('p.gradwatch.from')")
    expect(panel).to_have_attribute("data-drawn", "grad_ratio 0 40")


def view(page):
    """The first and the last step in view, as the address says."""
    return [int(re.search(rf"p\.gradwatch\.{name}=(\d+)", address_bar(page))[1]) for name in ("from", "to")]


def test_a_drag_selects_steps_on_map_and_strips_and_back_undoes_it(page, address):
    frame = open_tab(page, address)
    drawn(frame)
    page.evaluate("performance.now = () => 0")  # however fast one drag follows another, each can be undone
    whole = address_bar(page)
    for part in (".plot", ".strips"):
        box = frame.locator(part).bounding_box()
        y = box["y"] + box["height"] / 2
        page.mouse.move(box["x"] + box["width"] / 4, y)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] / 2, y, steps=3)
        expect(frame.locator(".brush")).to_be_visible()
        page.mouse.up()
        expect(frame.locator(".brush")).to_be_hidden()
        page.wait_for_function("location.hash.includes('p.gradwatch.from')")
        assert view(page) == [pytest.approx(10, abs=1), pytest.approx(19, abs=1)]
        if part == ".plot":
            page.go_back()
        else:
            frame.get_by_role("button", name="Undo").click()
        page.wait_for_function("(whole) => decodeURIComponent(location.hash) === whole", arg=whole)
        expect(frame.locator(".panel")).to_have_attribute("data-drawn", "grad_ratio 0 40")


def test_letters_move_the_map_wherever_the_focus_is_and_escape_closes_the_details(page, address):
    frame = open_tab(page, address)
    drawn(frame)
    dock = frame.get_by_role("region", name="Details")
    expect(dock).to_be_visible()
    page.keyboard.press("w")
    page.wait_for_function("location.hash.includes('p.gradwatch.from')")
    first, last = view(page)
    page.keyboard.press("d")
    page.wait_for_function("(last) => !location.hash.includes(`p.gradwatch.to=${last}`)", arg=last)
    assert view(page)[0] > first
    page.keyboard.press("Escape")
    expect(dock).to_be_hidden()
    assert "p.gradwatch.finding" not in address_bar(page)
    frame.get_by_role("searchbox", name="Layers").press_sequentially("wasd")
    expect(frame.get_by_role("alert")).to_have_text(["No layer has “wasd” in its name."])


def test_a_tooltip_says_layer_step_value_level_and_band_on_the_map_and_what_the_strips_hold(page, address):
    frame = open_tab(page, address)
    drawn(frame)
    box = frame.locator(".plot").bounding_box()
    tooltip = frame.locator(".tooltip")
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 2.5 / 12)
    expect(tooltip).to_contain_text(NAMES[2])
    for text in ("step 1", "× its level", "gradient norm", "its level", "0.001 to 10"):
        expect(tooltip).to_contain_text(text)
    box = frame.locator(".strips").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + 20)
    for text in ("loss", "learning rate", "total norm", "largest leap"):
        expect(tooltip).to_contain_text(text)
    page.mouse.move(5, 5)
    expect(tooltip).to_be_hidden()


def rest_on(page, target, x=0.5, y=0.5):
    """Move the mouse to a place of ``target``, given as shares of its width and height."""
    target.scroll_into_view_if_needed()
    box = target.bounding_box()
    page.mouse.move(box["x"] + box["width"] * x, box["y"] + box["height"] * y)


def test_the_tooltip_serves_every_chart_of_the_details_and_they_have_no_legend(page, address):
    frame = open_tab(page, address, f'&p.gradwatch.runs=["cured"]&p.gradwatch.layer={NAMES[2]}&p.gradwatch.step=12')
    drawn(frame)
    tooltip = frame.locator(".tooltip")
    charts = frame.locator(".uplot .u-over")
    expect(charts).to_have_count(3)  # the norm, the weight norm, all layers at the step
    for chart, texts in enumerate(
        (
            (NAMES[2], "step ", "gradient norm", "its level", "0.001 to 10"),
            (NAMES[2], "step ", "weight norm"),
            ("blocks.", "step 12", "× its level", "normal"),
        )
    ):
        rest_on(page, charts.nth(chart))
        for text in texts:
            expect(tooltip).to_contain_text(text)
    expect(frame.locator(".u-legend")).to_have_count(0)
    rest_on(page, frame.locator("header"))
    expect(tooltip).to_be_hidden()


def test_the_tooltip_of_a_histogram_says_step_range_and_share(page, tmp_path):
    healthy, _ = networks()
    for each in healthy:
        each.entries["weight"] = [np.linspace(-1, 1, 100)] * len(NAMES)
    write_run(tmp_path, healthy)
    with served(page, tmp_path) as address:
        frame = open_tab(page, address, f"&p.gradwatch.layer={NAMES[2]}")
        drawn(frame)
        rest_on(page, frame.locator("figure canvas"))
        for text in ("Entries of the weight", "step 2", "…", "%"):
            expect(frame.locator(".tooltip")).to_contain_text(text)


def test_the_tooltip_follows_what_the_wheel_moves_under_the_mouse(page, address):
    frame = open_tab(page, address, "&p.gradwatch.from=10&p.gradwatch.to=19&p.gradwatch.step=12")
    drawn(frame)
    rest_on(page, frame.locator(".plot"), 0.05)
    expect(frame.locator(".tooltip")).to_contain_text("step 10")
    page.mouse.wheel(10_000, 0)
    expect(frame.locator(".tooltip")).to_contain_text("step 30")


VANISHING = replace(
    FINDING, kind="vanishing", severity="warning", layer=NAMES[0], layers=NAMES[:4], step=0, raised_step=9,
    value=1e-9, threshold=1e-6, cause="", measured="It is small.",
)  # fmt: skip


def test_a_run_that_vanishes_from_its_first_step_opens_with_a_statistic_that_shows_it(page, tmp_path):
    healthy, _ = networks()
    faint = [np.geomspace(1e-9, 1, len(NAMES))] * 40
    write_run(tmp_path / "vanishing", run_of([list(row) for row in faint], layers=NAMES), [(VANISHING, False)])
    write_run(tmp_path / "healthy", healthy)
    with served(page, tmp_path) as address:
        frame = open_tab(page, address)
        drawn(frame, "grad_rms")
        assert len(colours(page)) >= 10  # a shade a layer
        expect(frame.get_by_label("Statistic")).to_have_value("grad_rms")
        frame.locator(".run-name").last.click()
        drawn(frame)
        expect(frame.get_by_label("Statistic")).to_have_value("grad_ratio")
        frame.locator(".run-name").first.click()
        drawn(frame, "grad_rms")
        page.keyboard.press("Escape")  # without an open finding the map stays as it is
        expect(frame.get_by_role("region", name="Details")).to_be_hidden()
        drawn(frame, "grad_rms")
        open_tab(page, address, "&p.gradwatch.statistic=grad_ratio")  # what an address asks for holds
        drawn(frame)
        expect(frame.get_by_role("region", name="Finding: vanishing")).to_be_visible()


def test_a_layer_whose_gradient_is_always_zero_is_below_its_level_and_not_unmeasured(page, tmp_path):
    write_run(tmp_path, run_of([[1.0, 0.0]] * 5, layers=("a.weight", "b.weight")))
    with served(page, tmp_path) as address:
        frame = open_tab(page, address)
        drawn(frame)
        assert set(colours(page)) == {"247,247,247", "5,48,97"}  # white at the level, and the darkest blue
        rest_on(page, frame.locator(".plot"), 0.5, 0.75)
        expect(frame.locator(".tooltip")).to_contain_text("0 × its level")


def test_what_recovery_did_is_in_the_card(page, tmp_path):
    actions = ("step 31: the run went back to the snapshot after step 20", f"step 33: it could not go back {MARKUP}")
    write_run(tmp_path, networks()[1], [(replace(FINDING, actions=actions), False)])
    with served(page, tmp_path) as address:
        frame = open_tab(page, address)
        card = frame.get_by_role("region", name="Finding: nonfinite")
        expect(card.get_by_role("heading", name="What was done")).to_be_visible()
        expect(card.locator(".actions li")).to_have_text(list(actions))


def test_one_odd_step_among_thousands_stands_out_among_the_anomalies(page, tmp_path):
    norms = np.exp(np.random.default_rng(0).normal(0, 0.1, (4_000, 2)))
    norms[1_000, 1] *= 50
    table = {"layers": ["a.weight", "b.weight"], "depth": [0, 1], "size": [4, 4]}
    events = [(0, "gradwatch/layers", table)]
    for step, row in enumerate(norms):
        events.append((step, "gradwatch/grad_norm", np.stack([row] * 3).astype(np.float32)))
        events.append((step, "gradwatch/totals", totals()))
    write_events(tmp_path, events)
    with served(page, tmp_path) as address:
        frame = open_tab(page, address)
        drawn(frame)
        script = """() => { const canvas = document.querySelector('canvas.strips');
          const heights = new Array(canvas.width).fill(0); const top = canvas.height * 3 / 4;
          const {data} = canvas.getContext('2d').getImageData(0, top, canvas.width, canvas.height / 4 - 2);
          for (let at = 3; at < data.length; at += 4) if (data[at]) heights[((at - 3) / 4) % canvas.width]++;
          return heights; }"""
        page.wait_for_function(f"() => Math.max(...({script})()) > 15")
        heights = inner(page).evaluate(script)
        highest = np.flatnonzero(np.array(heights) > max(heights) / 2) / len(heights)
        assert 1 <= len(highest) <= 8
        assert highest == pytest.approx(0.25, abs=0.02)


PARTS = ("q.weight", "q.bias", "up.weight", "up.bias", "down.weight", "norm.weight", "norm.bias")
BLOCKS = tuple(f"blocks.{block}.{part}" for block in range(12) for part in PARTS)


def test_rows_are_blocks_of_weights_that_open_on_demand_and_the_sick_row_has_its_name(page, tmp_path):
    sizes = {"q.weight": 16, "up.weight": 32, "down.weight": 32}
    table = {"layers": BLOCKS, "depth": list(range(len(BLOCKS)))}
    table["size"] = [sizes.get(name.split(".", 2)[2], 4) for name in BLOCKS]
    sick = {
        **json.loads(json.dumps(FINDING.as_dict())),
        "layer": "blocks.3.norm.bias",
        "layers": ["blocks.3.norm.bias"],
    }
    events = [(0, "gradwatch/layers", table)]
    for step in range(5):
        norms = np.ones((3, len(BLOCKS)), dtype=np.float32)
        events += [(step, "gradwatch/grad_norm", norms), (step, "gradwatch/totals", totals())]
    write_events(tmp_path, [*events, (4, "gradwatch/finding", {**sick, "step": 3, "ended": True})])
    with served(page, tmp_path) as address:
        frame = open_tab(page, address)
        drawn(frame)
        items = frame.get_by_role("treeitem")
        expect(frame.get_by_role("treeitem", name="blocks.3.norm.bias", exact=True)).to_be_visible()
        expect(items).to_have_count(1 + 12 + 4)  # blocks, and of the sick one three weights and the bias
        expect(frame.locator(".label.sick")).to_have_count(1)
        frame.get_by_role("treeitem", name="blocks.5, 3 layers").click()
        expect(items).to_have_count(1 + 12 + 4 + 3)
        frame.get_by_label("Rows").select_option("all")
        expect(frame.locator(".label.sick")).to_have_count(1)  # though 84 rows leave few of them room for a name
        frame.get_by_role("searchbox", name="Layers").fill("blocks.1?.up.*")
        expect(items.and_(frame.locator(":not(.module)"))).to_have_count(4)


def test_many_runs_are_filtered_sorted_and_shown_as_a_table(page, tmp_path):
    healthy, sick = networks()
    for rate in ("0.1", "0.02"):
        write_run(tmp_path / f"sweep_lr={rate}", healthy)
    write_run(tmp_path / "sweep_lr=3", sick, [(FINDING, False)])
    with served(page, tmp_path) as address:
        frame = open_tab(page, address)
        drawn(frame)
        expect(frame.locator(".run-name .name")).to_have_text(["3", "0.1", "0.02"])
        frame.get_by_role("searchbox", name="Filter runs").fill("=0")
        expect(frame.locator(".run-name .name")).to_have_text(["0.1", "0.02"])
        frame.get_by_role("button", name="Table of runs").click()
        rows = frame.get_by_role("dialog").locator("tbody tr")
        expect(rows).to_have_count(3)
        expect(rows.first.get_by_role("button")).to_have_text("3")
        expect(rows.first).to_contain_text("nonfinite")
        expect(frame.get_by_role("dialog")).to_contain_text("Each name begins with sweep_lr=")
        frame.get_by_role("dialog").get_by_role("button", name="0.02").click()
        expect(frame.get_by_role("dialog")).to_have_count(0)
        expect(frame.locator(".panel h2")).to_have_text(["sweep_lr=0.02"])


def test_a_consequence_is_listed_below_what_led_to_it_with_units_and_words(page, tmp_path):
    healthy, _ = networks()
    figures = {"exploding": (20, 48.0, 2.0), "dead": (22, 0.9, 0.5), "vanishing": (25, 1e-9, 1e-6)}
    told = [
        replace(FINDING, kind=kind, step=step, raised_step=step, value=value, threshold=threshold)
        for kind, (step, value, threshold) in figures.items()
    ]
    write_run(tmp_path, healthy, [(each, True) for each in told])
    with served(page, tmp_path) as address:
        frame = open_tab(page, address)
        drawn(frame)
        expect(frame.locator(".finding .kind")).to_have_text(["1exploding", "2dead", "3vanishing"])
        for consequence in (1, 2):
            expect(frame.locator(".finding").nth(consequence)).to_contain_text("may follow from 1")
        expect(frame.locator(".card .figure")).to_have_text("48 × its level (limit 2 ×)")


ZOOMED = (683, 384)  # a screen of 1366 × 768 at 200 %
CUT = """(width) => {
  const words = [...document.querySelectorAll('*')].filter((each) => !each.closest('canvas, option, .unseen, .readout')
    && each.checkVisibility() && [...each.childNodes].some((child) => child.nodeType === 3 && child.data.trim()));
  const isTold = (each) => each.closest('[title]')?.title.includes(each.innerText.slice(0, 3));
  const isWider = (each) => each && each.scrollWidth > each.clientWidth + 1;
  const isCut = (each) => { const {left, right} = each.getBoundingClientRect();
    const isHidden = isWider(each) && getComputedStyle(each).overflowX === 'hidden';
    return left < -1 || right > width + 1 || isHidden; };
  return words.filter((each) => isCut(each) && !isTold(each) && !isWider(each.closest('table')))
    .map((each) => each.outerHTML); }"""


@pytest.mark.parametrize("size", [ZOOMED, (400, 800)])
def test_at_200_percent_and_in_a_narrow_window_no_words_are_cut_and_nothing_lies_aside(page, address, size):
    page.set_viewport_size(dict(zip(("width", "height"), size, strict=True)))
    frame = open_tab(page, address)
    drawn(frame)
    expect(frame.locator(".uplot")).to_have_count(3)
    assert inner(page).evaluate("document.documentElement.scrollWidth") <= size[0]
    assert inner(page).evaluate(CUT, size[0]) == []
    for part in (".plot", ".strips", ".axis", ".labels", "header", ".card"):
        box = frame.locator(part).first.bounding_box()
        assert box["x"] >= 0
        assert box["x"] + box["width"] <= size[0]
        assert box["width"] >= size[0] / 5
    frame.get_by_role("button", name="Table of runs").click()
    dialog = frame.get_by_role("dialog").bounding_box()
    assert dialog["x"] >= 0
    assert dialog["x"] + dialog["width"] <= size[0]
    assert dialog["y"] + dialog["height"] <= size[1]


def test_a_narrow_window_shows_all_parts_one_below_the_other(page, address):
    page.set_viewport_size(dict(zip(("width", "height"), ZOOMED, strict=True)))
    frame = open_tab(page, address)
    panel = drawn(frame)
    boxes = [
        part.bounding_box() for part in (frame.locator("aside"), panel, frame.get_by_role("region", name="Details"))
    ]
    assert [box["y"] for box in boxes] == sorted(box["y"] for box in boxes)
    assert all(box["x"] >= 0 and box["x"] + box["width"] <= 683 for box in boxes)
    assert inner(page).evaluate("document.documentElement.scrollWidth") <= 683


def test_an_address_brings_back_the_view(page, address):
    place = {"runs": '["cured"]', "statistic": "weight_norm", "layer": NAMES[3], "step": 12}
    frame = open_tab(page, address, "".join(f"&p.gradwatch.{name}={value}" for name, value in place.items()))
    expect(drawn(frame, "weight_norm").get_by_role("heading")).to_have_text("cured")
    expect(frame.get_by_role("region", name=f"Layer: {NAMES[3]}")).to_be_visible()
    expect(frame.get_by_role("region", name="Step 12")).to_be_visible()


def test_a_pasted_address_is_followed_without_loading_the_page_anew(page, address):
    frame = open_tab(page, address)
    drawn(frame)
    inner(page).evaluate("() => { window.kept = 'yes'; }")
    page.evaluate("""() => { location.hash = '#gradwatch&p.gradwatch.runs=["cured"]&p.gradwatch.step=12'; }""")
    expect(frame.get_by_role("region", name="Step 12")).to_be_visible()
    expect(frame.locator(".panel h2")).to_have_text(["cured"])
    assert inner(page).evaluate("window.kept") == "yes"


def test_a_look_at_another_tab_leaves_the_view_and_its_address(page, address):
    frame = open_within(page, address, '&p.gradwatch.runs=["cured"]&p.gradwatch.step=12')
    expect(frame.get_by_role("region", name="Step 12")).to_be_visible()
    before = address_bar(page)
    page.get_by_role("tab", name="Text").click()
    page.wait_for_function("location.hash.startsWith('#text')")
    page.get_by_role("tab", name="GradWatch").click()
    page.wait_for_function("(before) => decodeURIComponent(location.hash) === before", arg=before)
    expect(frame.get_by_role("region", name="Step 12")).to_be_visible()


def test_a_statistic_that_no_run_has_says_so_and_another_can_be_chosen(page, address):
    frame = open_within(page, address, "&p.gradwatch.statistic=dead_share")
    notice = frame.locator(".panel").get_by_role("alert")
    expect(notice).to_contain_text("has not logged dead_share")
    expect(frame.get_by_label("Statistic").locator("option:checked")).to_have_text("dead_share (not logged)")
    with page.expect_response(re.compile("plugin/gradwatch/overview")):
        page.locator("app-header-reload button").dispatch_event("click")
    expect(notice).to_contain_text("has not logged dead_share")  # a reload changes nothing of it
    frame.get_by_label("Statistic").select_option("grad_norm")
    drawn(frame, "grad_norm")
    expect(notice).to_be_hidden()


def test_a_statistic_that_is_switched_while_zooming_is_shown_of_all_steps_too(page, address):
    frame = open_tab(page, address)
    panel, held = drawn(frame), []
    page.route(re.compile("cells.*weight_norm&from=0&to=39"), lambda route: held.append(route))
    with page.expect_request(re.compile("cells.*weight_norm")):
        frame.get_by_label("Statistic").select_option("weight_norm")
    with page.expect_response(re.compile("cells.*weight_norm")):  # of what is in view, before that of all steps
        frame.locator(".plot").focus()
        for _ in range(2):  # what is fetched beside the view must not be all steps again
            page.keyboard.press("+")
    (all_steps,) = held
    all_steps.continue_()
    drawn(frame, "weight_norm")
    page.keyboard.press("0")
    expect(panel).to_have_attribute("data-drawn", "weight_norm 0 40")


def test_what_could_not_be_fetched_is_fetched_at_the_next_reload(page, address):
    page.allowed.append("status of 502")
    page.route(re.compile("gradwatch/cells"), lambda route: route.fulfill(status=502, body="<h1>Bad gateway</h1>"))
    frame = open_within(page, address)
    notice = frame.locator(".panel").get_by_role("alert")
    expect(notice).to_have_text("TensorBoard answered with status 502.")
    page.unroute(re.compile("gradwatch/cells"))
    page.locator("app-header-reload button").dispatch_event("click")
    drawn(frame)
    expect(notice).to_be_hidden()


def test_a_run_that_is_ticked_later_is_searched_as_well(page, address):
    frame = open_tab(page, address, '&p.gradwatch.runs=["sick"]')
    drawn(frame)
    frame.get_by_role("searchbox", name="Layers").fill("nothing like it")
    expect(frame.get_by_role("alert")).to_have_text(["No layer has “nothing like it” in its name."])
    frame.get_by_role("searchbox", name="Layers").fill("3.fc.b")
    frame.get_by_role("checkbox", name="cured").check()
    expect(frame.get_by_role("tree", name="Layers of cured").get_by_role("treeitem")).to_have_count(1)


def test_a_window_of_many_thousand_pixels_shows_a_layer_too(page, address):
    page.set_viewport_size({"width": 5200, "height": 800})
    frame = open_tab(page, address, f"&p.gradwatch.layer={NAMES[3]}")
    drawn(frame)
    expect(frame.get_by_role("region", name=f"Layer: {NAMES[3]}").locator(".uplot")).to_have_count(2)


def test_a_layer_that_was_never_finite_is_told_in_words(page, tmp_path):
    write_run(tmp_path, run_of([[1.0, INF]] * 5, layers=("a.weight", "b.weight")))
    with served(page, tmp_path) as address:
        frame = open_tab(page, address, "&p.gradwatch.layer=b.weight")
        drawn(frame)
        layer = frame.get_by_role("region", name="Layer: b.weight")
        expect(layer).to_contain_text("Gradient norm: NaN, Inf or overflow at every step in view.")


def test_a_finding_is_shown_where_the_figures_beside_it_cannot_be_read(page, tmp_path):
    page.allowed.append("status of 422")
    told = {**json.loads(json.dumps(FINDING.as_dict())), "layer": "a", "layers": ["a"], "ended": True}
    bomb = HOSTILE["a shape of 32 GiB with one value"][1]
    events = {"layers": TABLE, "grad_norm": bomb, "totals": totals(), "finding": told}
    write_events(tmp_path, [(0, f"gradwatch/{tag}", content) for tag, content in events.items()])
    with served(page, tmp_path) as address:
        frame = open_tab(page, address)
        frame.locator(".finding").click()
        expect(frame.get_by_role("region", name="Finding: nonfinite")).to_contain_text(FINDING.cause)
        layer = frame.get_by_role("region", name="Layer: a")
        expect(layer).to_contain_text("gradwatch/grad_norm at step 0: the shape (3, 8589934592) is declared, but 1")
        expect(layer).not_to_contain_text("no such layer")


def test_modules_close_and_open_and_layers_are_searched(page, address):
    frame = open_tab(page, address)
    drawn(frame)
    tree = frame.get_by_role("tree")
    expect(tree.get_by_role("treeitem", name=NAMES[0], exact=True)).to_be_visible()
    tree.get_by_role("treeitem", name="blocks.2, 2 layers").or_(
        tree.get_by_role("treeitem", name=re.compile(r"blocks\.2.*2 layers"))
    ).first.click()
    expect(tree.get_by_role("treeitem", name=NAMES[4], exact=True)).to_have_count(0)
    assert hatched(colours(page)) > 0  # the closed module shows the highest of its layers
    frame.get_by_role("searchbox", name="Layers").fill("3.FC.b")
    expect(tree.get_by_role("treeitem", name=NAMES[7], exact=True)).to_be_visible()
    expect(tree.get_by_role("treeitem", name=NAMES[0], exact=True)).to_have_count(0)


def test_modules_close_and_open_by_the_keys_of_a_tree(page, address):
    frame = open_tab(page, address)
    drawn(frame)
    items = frame.get_by_role("treeitem")
    before = items.count()
    items.first.focus()
    page.keyboard.press("ArrowLeft")
    expect(items).to_have_count(1)
    expect(items.first).to_be_focused()
    page.keyboard.press("ArrowRight")
    expect(items).to_have_count(before)


def test_everything_can_be_reached_by_keyboard_and_has_a_name(page, address):
    frame = open_tab(page, address)
    drawn(frame)
    plot = frame.get_by_role("application", name="Map of sick: 12 layers, 40 logged steps from 0 to 39, 1 finding.")
    plot.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight", "ArrowRight"):  # from the finding that is open
        page.keyboard.press(key)
    expect(frame.locator(".readout")).to_contain_text(f"step 32 · {NAMES[6]}")
    expect(frame.get_by_role("region", name=f"Layer: {NAMES[6]}")).to_be_visible()
    nameless = """() => {
      const named = (each) => each.getAttribute('aria-label') || each.labels?.length || each.innerText?.trim();
      const silent = (each) => each.closest('[aria-hidden], .uplot, [role=status]') || each.hidden;
      return [...document.querySelectorAll('button, input, select, canvas, .chart, [role]')]
        .filter((each) => !named(each) && !silent(each)).map((each) => each.outerHTML); }"""
    assert inner(page).evaluate(nameless) == []


def test_dark_mode_follows_tensorboard(page, address):
    frame = open_within(page, address, query="?darkMode=true")
    drawn(frame)
    background = "() => getComputedStyle(document.body).backgroundColor"
    assert inner(page).evaluate(background) == "rgb(48, 48, 48)"
    open_within(page, address, query="?darkMode=false")
    drawn(frame)
    assert inner(page).evaluate(background) == "rgb(255, 255, 255)"


def violations(page):
    """What axe-core objects to: the rule and the elements."""
    found = Axe().run(inner(page)).response["violations"]
    return [(each["id"], [node["html"] for node in each["nodes"]]) for each in found]


def set_dark(page, is_dark):
    page.evaluate("(isDark) => document.body.classList.toggle('dark-mode', isDark)", is_dark)


@pytest.mark.parametrize("is_dark", [False, True])
def test_axe_finds_no_violation_in_the_open_tab_nor_in_its_dialogs(page, address, is_dark):
    frame = open_tab(page, address, '&p.gradwatch.runs=["sick","cured"]')
    set_dark(page, is_dark)
    drawn(frame, index=1)
    frame.locator(".finding").click()
    expect(frame.get_by_role("region", name="Finding: nonfinite")).to_be_visible()
    expect(frame.locator(".uplot")).to_have_count(5)
    assert violations(page) == []
    for name in ("Table of runs", "Help"):
        frame.get_by_role("button", name=name).click()
        expect(frame.get_by_role("dialog")).to_be_visible()
        assert violations(page) == []
        page.keyboard.press("Escape")


@pytest.mark.parametrize("is_dark", [False, True])
def test_axe_finds_no_violation_while_there_is_no_run(page, tmp_path, is_dark):
    with served(page, tmp_path) as address:
        frame = open_tab(page, address)
        set_dark(page, is_dark)
        expect(frame.locator(".empty")).to_be_visible()
        assert violations(page) == []


def test_words_stand_out_from_their_ground_light_and_dark(page, address):
    script = """() => {
      const style = getComputedStyle(document.documentElement);
      const linear = (each) => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4;
      const light = (name) => [1, 3, 5].map((at) => parseInt(style.getPropertyValue(name).trim().slice(at, at + 2), 16))
        .reduce((sum, each, index) => sum + linear(each / 255) * [0.2126, 0.7152, 0.0722][index], 0);
      const ratio = (one, other) => {
        const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
        return (high + 0.05) / (low + 0.05);
      };
      return ['--ink', '--quiet', '--error', '--warning', '--accent'].flatMap((ink) =>
        ['--paper', '--raised'].map((ground) => ratio(ink, ground))); }"""
    for dark in ("true", "false"):
        frame = open_tab(page, address)
        set_dark(page, dark == "true")
        drawn(frame)
        assert min(inner(page).evaluate(script)) >= 4.5  # WCAG 2.2, level AA


@pytest.mark.parametrize("fast", ["true", "false"])
def test_it_works_with_either_loader_under_a_path_prefix_and_follows_a_run(page, tmp_path, fast):
    healthy, _ = networks()
    half = tmp_path / "live"
    write_run(half, healthy[:20])
    flags = (f"--load_fast={fast}", "--path_prefix=/a/prefix", "--reload_interval=1")
    with served(page, tmp_path, *flags) as address:
        frame = open_within(page, address)
        expect(drawn(frame)).to_have_attribute("data-drawn", "grad_ratio 0 20")
        expect(frame.locator(".live")).to_have_text("● live")
        more = [(0, "gradwatch/layers", {"layers": list(NAMES), "depth": list(range(12)), "size": [4] * 12})]
        more += [(step, "gradwatch/grad_norm", np.ones((3, 12), dtype=np.float32)) for step in range(20, 30)]
        more += [(step, "gradwatch/totals", totals()) for step in range(20, 30)]
        append(half, more)
        expect(frame.locator(".panel")).to_have_attribute("data-drawn", "grad_ratio 0 30")  # it asks by itself


def test_a_reload_that_brings_nothing_new_leaves_zoom_charts_and_focus_alone(page, address):
    frame = open_within(page, address, f"&p.gradwatch.layer={NAMES[3]}")
    drawn(frame)
    frame.locator(".uplot").first.wait_for()
    frame.locator(".plot").focus()
    page.keyboard.press("]")
    expect(frame.get_by_role("treeitem")).not_to_have_count(19)
    inner(page).evaluate("() => { document.querySelector('.uplot').dataset.kept = 'yes'; }")
    rows = frame.get_by_role("treeitem").count()
    with page.expect_response(re.compile("plugin/gradwatch/overview")):
        page.locator("app-header-reload button").dispatch_event("click")
    page.wait_for_timeout(500)
    assert inner(page).evaluate("document.querySelector('.uplot').dataset.kept") == "yes"
    assert inner(page).evaluate("document.activeElement.className") == "plot"
    assert frame.get_by_role("treeitem").count() == rows


def append(directory, events):
    """To the run's own file, as the process that writes it would."""
    write_events(directory.parent.parent / "elsewhere", events)
    (target,), (source,) = directory.iterdir(), (directory.parent.parent / "elsewhere").iterdir()
    content = source.read_bytes()
    first = 8 + 4 + int.from_bytes(content[:8], "little") + 4  # its head, the file's version, stands in the target
    with target.open("ab") as file:
        file.write(content[first:])
    source.unlink()


def test_an_empty_directory_says_what_to_do_and_shows_nothing_else(page, tmp_path):
    with served(page, tmp_path) as address:
        frame = open_tab(page, address, "&p.gradwatch.layer=a&p.gradwatch.step=1")
        expect(frame.locator(".empty")).to_contain_text("No run here was watched by gradwatch yet")
        expect(frame.locator(".empty")).to_contain_text("gradwatch.watch(model, optimizer, log_dir=")
        expect(frame.locator(".card")).to_have_count(0)


def test_the_first_run_is_looked_for_every_few_seconds(page, tmp_path):
    page.clock.install()
    with served(page, tmp_path) as address:
        frame = open_tab(page, address)
        expect(frame.locator(".empty")).to_be_visible()
        with page.expect_request(re.compile("plugin/gradwatch/runs")):
            page.clock.fast_forward(6_000)


def test_names_from_a_hostile_log_never_become_markup(page, tmp_path):
    names = (
        f"{MARKUP}.weight",
        f"{MARKUP}.bias",
        "javascript:alert(1)",
        "../../../etc/passwd",
        "‮gnihton",
        "constructor",
    )
    reports = run_of([[1.0] * 5 + [INF]] * 5, layers=names)
    (finding,) = findings([report([1.0, NAN], 1, nonfinite=[0, 1])])
    values = {
        **finding.as_dict(),
        "layer": names[0],
        "layers": names,
        "measured": MARKUP,
        "figure": MARKUP,
        "cause": MARKUP,
    }
    hostile = Finding.from_dict(values | {"remedies": [{"name": MARKUP, "text": MARKUP}]})
    run = "&lt;b&gt; <b>run"
    write_run(tmp_path / run, reports, [(hostile, False)])
    with served(page, tmp_path) as address:
        frame = open_tab(page, address)
        drawn(frame)
        frame.locator(".finding").click()
        expect(frame.locator(".card").first).to_contain_text(MARKUP)
        expect(frame.get_by_role("region", name=f"Layer: {MARKUP}.weight")).to_be_visible()
        expect(frame.locator(".uplot").first).to_be_visible()
        frame.locator(".plot").hover()
        assert inner(page).evaluate("[document.querySelectorAll('img, b').length, window.hacked ?? null]") == [0, None]
        assert frame.locator(".panel h2").inner_text() == run


@pytest.mark.parametrize("name", ["a shape of 32 GiB with one value", "another width", "deep JSON", "a truncated file"])
def test_a_broken_log_is_an_error_in_the_tab_beside_a_run_that_works(page, tmp_path, name):
    page.allowed.append("status of 422")  # the browser's own words on an error that the tab shows
    healthy, _ = networks()
    write_run(tmp_path / "good", healthy)
    if name in HOSTILE:
        tag, content = HOSTILE[name]
        whole = {"layers": TABLE, "grad_norm": np.float32(np.ones((3, 2))), "totals": totals()}
        write_events(tmp_path / "bad", [(0, f"gradwatch/{each}", v) for each, v in (whole | {tag: content}).items()])
    else:
        write_run(tmp_path / "bad", healthy)
        (path,) = (tmp_path / "bad").iterdir()
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with served(page, tmp_path) as address:
        frame = open_tab(page, address, '&p.gradwatch.runs=["bad","good"]')
        drawn(frame, index=1)
        if name in HOSTILE:
            expect(frame.locator(".panel").first.get_by_role("alert")).to_contain_text(f"gradwatch/{HOSTILE[name][0]}")
        else:
            drawn(frame, index=0)
        expect(frame.locator(".panel").last.get_by_role("alert")).to_be_hidden()
