"""In a notebook a watcher shows itself: tried on a real one, and against the same run read from its event files."""

import math
import re
import warnings
from pathlib import Path

import nbformat
import pytest
import torch
from markupsafe import escape
from nbclient import NotebookClient

import gradwatch
from gradwatch.event_files.reader import read_runs
from gradwatch.views.notebook import in_notebook
from tests.reports import INF

NOTEBOOK = Path(__file__).parents[2] / "examples" / "notebook.ipynb"
HEALTHY = 20  # steps, after which a finding is over
PICTURE = re.compile(r'href="data:image/png;base64,([^"]+)"')


def watched(norms, names=("a", "b"), **options):
    """A watcher that has seen these norms, a row for each step; ``None`` for a layer without gradient."""
    weights = {name: torch.ones(1) for name in names}
    watcher = gradwatch.watch_tensors(weights, **options)
    for row in norms:
        grads = {name: torch.tensor([norm]) for name, norm in zip(names, row, strict=True) if norm is not None}
        watcher.step(grads=grads, loss=1.0)
    return watcher


def shown(notebook):
    """The HTML of each cell that shows a watcher."""
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [page for output in outputs if "gradwatch" in (page := output.get("data", {}).get("text/html", ""))]


def outline(page):
    """The words of a page without their figures: the last digits depend on the machine."""
    words = re.findall(r'class="(?:healthy|warning|error)">(\w+)', page) + re.findall(r"<td>([^<]*)</td>", page)
    return [re.sub(r"\d[\d.,e+-]*", "#", text) for text in words]


@pytest.mark.process
def test_the_example_shows_a_sick_and_a_healthy_run():
    stored = nbformat.read(NOTEBOOK, as_version=4)
    executed = nbformat.read(NOTEBOOK, as_version=4)
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # those of Jupyter's own machinery are not ours to mend
        NotebookClient(executed, timeout=600, resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    sick, healthy = shown(executed)
    streams = [
        output for cell in executed.cells for output in cell.get("outputs", ()) if output.output_type == "stream"
    ]
    assert [each.text for each in streams if each.name == "stderr"] == []  # which a notebook shows in red
    assert "gradwatch: vanishing in 0.weight" in "".join(each.text for each in streams)
    assert "1 finding: vanishing in 0.weight" in sick
    assert "ReLU in place of Sigmoid, with He initialisation (relu)" in sick
    assert "No findings." in healthy
    assert "<table>" not in healthy
    assert all(PICTURE.search(page) for page in (sick, healthy))
    assert [outline(page) for page in shown(stored)] == [outline(page) for page in (sick, healthy)]


def test_the_picture_is_that_of_the_event_files(tmp_path):
    rows = [[1.0, 10.0], [2.0, None], [3.0, math.nan], [INF, 5.0], [0.0, 7.0]]
    with watched(rows, log_dir=tmp_path, log_every_n_steps=1) as watcher:
        page = watcher._repr_html_()
    (run,) = read_runs(tmp_path)
    assert PICTURE.search(page)[1] == PICTURE.search(in_notebook(run))[1]


def test_several_optimizers_share_a_column_of_pixels_as_in_the_report(tmp_path):
    models = {name: torch.nn.Linear(2, 1) for name in "gd"}
    optimizers = [torch.optim.SGD(model.parameters(), lr=0.1) for model in models.values()]
    with gradwatch.watch(models, optimizers, log_dir=tmp_path, log_every_n_steps=1) as watcher:
        for _ in range(3):
            for model, optimizer in zip(models.values(), optimizers, strict=True):
                optimizer.zero_grad()
                model(torch.ones(1, 2)).sum().backward()
                optimizer.step()
        page = watcher._repr_html_()
    (run,) = read_runs(tmp_path)
    assert PICTURE.search(page)[1] == PICTURE.search(in_notebook(run))[1]


def test_findings_are_told_whether_they_are_over():
    watcher = watched([[1.0, 1.0], [1.0, math.nan], *[[1.0, 1.0]] * HEALTHY])
    page = watcher._repr_html_()
    (finding,) = watcher.findings
    assert "since step 1, last seen at step 1, ended" in page
    assert escape(finding.cause) in page
    assert page.count('class="outline"') == 1
    watcher.close()


def test_a_finding_that_was_over_before_the_first_step_in_memory_has_no_outline():
    watcher = watched([[1.0, math.nan], *[[1.0, 1.0]] * HEALTHY], history=3)
    page = watcher._repr_html_()
    assert "last seen at step 0, ended" in page
    assert 'class="outline"' not in page
    watcher.close()


def test_the_loss_is_drawn_and_marked_where_it_is_not_finite():
    watcher = watched([[1.0, 1.0]] * 3)
    page = watcher._repr_html_()
    assert 'aria-label="loss"' in page
    assert page.count('class="curve"') == 1
    assert 'class="dots"' not in page
    watcher.step(grads={"a": torch.ones(1), "b": torch.tensor([math.nan])}, loss=math.nan)
    assert re.findall(r'class="dots" d="(.*?)"', watcher._repr_html_())[0].count("M") == 1
    watcher.close()


def test_without_a_loss_there_is_no_curve_of_it():
    with gradwatch.watch_tensors({"a": torch.ones(1)}) as watcher:
        watcher.step(grads={"a": torch.tensor([math.nan])})
        assert "loss" not in re.findall(r'aria-label="(.*?)"', watcher._repr_html_())


def test_names_are_escaped():
    name = '</style><script>alert("a&b")</script>'
    watcher = watched([[math.nan, 1.0]], names=(name, "other"))
    page = watcher._repr_html_()
    assert escape(name) in page
    assert (page.count("</style>"), page.count("<script")) == (1, 0)
    watcher.close()


def test_only_so_many_findings_are_listed():
    watcher = watched([[1.0, value] for _ in range(25) for value in (math.nan, *[1.0] * HEALTHY)])
    page = watcher._repr_html_()
    assert page.count("<tr><td>") == 20
    assert f"And {len(watcher.findings) - 20} more: watcher.findings." in page
    watcher.close()


def test_before_the_first_step_it_says_so():
    watcher = watched([])
    assert "2 layers, no step seen yet" in watcher._repr_html_()
    watcher.close()


def test_a_fault_in_it_is_one_line_and_the_text_remains(monkeypatch, caplog):
    def fault(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("gradwatch.watcher.notebook.html_of", fault)
    watcher = watched([[1.0, 1.0]])
    assert watcher._repr_html_() is None
    assert watcher._repr_html_() is None
    assert "a fault in gradwatch itself" in caplog.text
    assert len([record for record in caplog.records if "fault" in record.message]) == 1
    assert repr(watcher) == "Watcher(2 layers, 1 steps, 0 findings)"
    watcher.close()
