import io
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gradwatch.event_files.reader import read_runs
from gradwatch.views import templates
from gradwatch.views.colours import NOT_MEASURED, VIRIDIS, ColourScale, palette, scale_of
from gradwatch.views.names import labels
from gradwatch.views.page import page_of
from gradwatch.views.phrases import age
from gradwatch.views.picture import picture_of, png
from gradwatch.views.profile import latest_finite, lengths, profile_of
from tests.reports import INF, NAN, run_of
from tests.written import FINDING, TABLE, event, forge, norms, write_rows


def read(directory):
    (run,) = read_runs(directory)
    return run


def written(directory, rows, **rest):
    write_rows(directory, run_of(rows, **rest))
    return read(directory)


def test_colours_grow_lighter_all_along():
    red, green, blue = (palette()[:254].astype(float) / 255).T
    linear = [np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) for c in (red, green, blue)]
    luminance = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    assert (np.diff(luminance) > -1e-3).all()  # of whole numbers
    assert (np.diff(luminance[::23]) > 0.005).all()


def test_a_pixel_is_the_decade_of_its_layer_at_its_step(tmp_path):
    run = written(tmp_path, [[1.0, 10.0], [100.0, NAN]])
    picture = picture_of(run, ColourScale(0.0, 2.0))
    assert picture.tolist() == [[0, 253], [126, 254]]  # 254: not measured


def test_layers_stand_in_depth_order(tmp_path):
    forge(tmp_path, event(0, layers={**TABLE, "depth": [1, 0]}, grad_norm=norms(1.0, 100.0)))
    assert picture_of(read(tmp_path), ColourScale(0.0, 2.0)).tolist() == [[253], [0]]


@pytest.mark.parametrize("spike", [1e6, INF])
def test_a_spike_of_one_step_is_seen_among_more_steps_and_layers_than_pixels(tmp_path, spike):
    rows = np.ones((2500, 700), dtype=np.float32)
    rows[1234, 345] = spike
    small = written(tmp_path, [[1.0]])
    series = replace(small.packed["highest"], values=rows, steps=np.arange(2500))
    run = replace(small, depth=np.arange(700), packed={**small.packed, "highest": series})
    picture = picture_of(run, ColourScale(0.0, 6.0))
    assert picture.shape == (400, 420)
    ((row, column),) = np.argwhere(picture != 0)
    assert picture[row, column] == (255 if spike == INF else 253)
    assert row * 700 // 400 <= 345 < (row + 1) * 700 // 400
    assert column * 2500 // 420 <= 1234 < (column + 1) * 2500 // 420


def test_optimizers_that_take_turns_leave_no_stripes(tmp_path):
    reports = [replace(each, optimizer=each.step % 2) for each in run_of([[1.0, NAN], [NAN, 1.0]] * 4)]
    write_rows(tmp_path, reports)
    assert picture_of(read(tmp_path), ColourScale(0.0, 1.0)).tolist() == [[0] * 4] * 2


def test_one_overflow_does_not_bleach_the_rest(tmp_path):
    rows = 10.0 ** np.random.default_rng(0).uniform(-2, 0, (200, 4))
    rows[50, 2] = 1e30
    scale = scale_of([written(tmp_path, rows)])
    assert -2.1 < scale.low < -1.8
    assert -0.2 < scale.high < 0.1


@pytest.mark.parametrize("values", [0.0, NAN, INF, 5.0])
def test_a_scale_is_a_decade_at_least(tmp_path, values):
    forge(tmp_path, event(0, layers=TABLE, grad_norm=norms(values, values)))
    scale = scale_of([read(tmp_path)])
    assert scale.high - scale.low >= 1


def test_the_png_is_what_its_numbers_say():
    numbers = np.random.default_rng(0).integers(0, 256, (7, 13)).astype(np.uint8)
    image = Image.open(io.BytesIO(png(numbers)))
    np.testing.assert_array_equal(np.array(image.convert("RGB")), palette()[numbers])
    np.testing.assert_array_equal(np.array(image.convert("RGBA"))[..., 3] == 0, numbers == 254)


def test_the_profile_is_of_the_last_finite_figures(tmp_path):
    rows = [[4.0, 2.0, NAN], [8.0, NAN, NAN], [NAN, NAN, NAN]]
    run = written(tmp_path, rows, nonfinite=[0, 0, 0])
    profile = profile_of(run, 40)
    assert profile.names == ["w0", "w1", "w2"]
    np.testing.assert_array_equal(profile.columns["gradient RMS"], [4.0, 1.0, NAN])  # of four entries each


def test_more_layers_than_fit_are_shown_as_groups_with_the_sick_ones_marked(tmp_path):
    table = {"layers": [f"w{n}" for n in range(100)], "depth": list(range(100)), "size": [1] * 100}
    finding = {"layer": "w57", "layers": ["w57"], "step": 0, "raised_step": 0, "last_step": 0}
    row = event(0, layers=table, grad_norm=norms(*range(1, 101)))
    run = read(forge(tmp_path, row, event(0, finding={**FINDING, **finding})))
    profile = profile_of(run, 20)
    assert (len(profile.names), profile.names[0]) == (20, "w0 … w4")
    assert np.flatnonzero(profile.sick).tolist() == [11]
    assert profile.columns["gradient RMS"].tolist() == list(range(5, 101, 5))


def test_latest_finite_agrees_with_a_slow_loop():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(30, 50))
    values[rng.random(values.shape) < 0.9] = NAN
    values[rng.random(values.shape) < 0.1] = INF
    slow = [next((v for v in reversed(column.tolist()) if np.isfinite(v)), NAN) for column in values.T]
    np.testing.assert_array_equal(latest_finite(values), slow)


def test_lengths_follow_the_logarithm_and_know_nought_and_nothing():
    np.testing.assert_allclose(lengths(np.array([1.0, 10.0, 100.0, 0.0, NAN])), [0.1, 0.55, 1.0, 0.0, NAN])
    assert lengths(np.array([NAN, 0.0])).tolist()[1] == 0.0


def test_labels_lose_what_all_share_and_then_their_middle():
    long = [f"model.blocks.{block}.attention.out_projection.weight" for block in (3, 12)]
    assert labels(long) == ["…3.attentio…tion.weight", "…12.attenti…tion.weight"]
    assert labels(["a.weight", "a.bias"]) == ["a.weight", "a.bias"]
    assert labels([]) == []


def test_ages_are_rough():
    told = [age(seconds) for seconds in (-1, 119, 120, 7300, 1e6)]
    assert told == ["less than two minutes"] * 2 + ["2 minutes", "2 hours", "11 days"]


def test_templates_and_styles_are_part_of_the_package():
    import gradwatch.views.page as page

    for name in ("page.html.j2", "notebook.html.j2", "pictures.html.j2", "page.js", "style.css", "notebook.css"):
        assert (Path(page.__file__).parent / name).is_file()


def test_the_tab_has_the_same_colours():
    import gradwatch.tensorboard_plugin as tab

    text = (Path(tab.__file__).parent / "static" / "colours.js").read_text(encoding="utf-8")
    (scale,) = re.findall(r"VIRIDIS =\s*'([0-9a-f]+)'", text)
    assert ["#" + scale[at : at + 6] for at in range(0, len(scale), 6)] == list(VIRIDIS)
    assert re.search(r"SHADES = (\d+)", text)[1] == str(NOT_MEASURED)


def test_a_page_without_jinja_says_what_to_install(tmp_path, monkeypatch):
    run = written(tmp_path, [[1.0]])
    templates._environment.cache_clear()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ModuleNotFoundError, match="Run: pip install jinja2"):
        page_of([run])
