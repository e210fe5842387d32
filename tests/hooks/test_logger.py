import io
import logging
import sys
import types

import pytest
import torch

import gradwatch
from gradwatch.hooks.logger import logger
from tests.forked_python import FRAMEWORKS, TORCH, run


class Broken(logging.Handler):
    def emit(self, record):
        raise ConnectionError("the log server is gone")


def test_a_line_reaches_the_handlers_of_that_name(caplog):
    with caplog.at_level(logging.INFO, logger="gradwatch"):
        logger.info("%d of %d", 1, 2)
    assert caplog.record_tuples == [("gradwatch", logging.INFO, "1 of 2")]


def test_a_broken_handler_filter_or_stream_never_throws_and_blinds_nobody(monkeypatch):
    root, refusing = logging.getLogger(), Broken()
    root.addHandler(refusing)
    monkeypatch.setattr(sys, "stderr", None)
    named = logging.getLogger("gradwatch")

    def refuse(record):
        raise RuntimeError("a filter that fails")

    try:
        for filtered in (False, True):
            if filtered:
                named.addFilter(refuse)
            model = torch.nn.Linear(4, 1)
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            with gradwatch.watch(model, optimizer, on_nonfinite="skip") as watcher:
                for step in range(30):
                    loss = (model(torch.ones(8, 4)) * (float("nan") if step in (10, 20) else 1)).square().mean()
                    watcher.observe_loss(loss)
                    loss.backward()
                    optimizer.step()
                    optimizer.zero_grad()
            assert len(watcher.history) == 30
            assert {finding.step for finding in watcher.findings} >= {10}
            assert torch.isfinite(model.weight).all()
    finally:
        root.removeHandler(refusing)
        named.removeFilter(refuse)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def unconfigured(monkeypatch):
    """The logger in a program that has not set up logging, below a root without pytest's handlers."""
    named = logging.getLogger("gradwatch")
    monkeypatch.setattr(named, "parent", logging.Logger("root"))
    monkeypatch.setattr(named, "handlers", [])
    for name in ("NO_COLOR", "TERM"):
        monkeypatch.delenv(name, raising=False)
    return named


def said(monkeypatch, stream):
    monkeypatch.setattr(sys, "stderr", stream)
    logger.error("gradwatch: %s", "exploding in w1")
    logger.warning("gradwatch: %s", "vanishing in w2")
    return stream.getvalue()


PLAIN = "gradwatch: exploding in w1\ngradwatch: vanishing in w2\n"


@pytest.mark.usefixtures("unconfigured")
def test_on_a_terminal_the_severity_has_a_colour(monkeypatch):
    text = said(monkeypatch, Terminal())
    assert text == (
        "\x1b[1;31mgradwatch:\x1b[0m exploding in w1\n"
        "\x1b[1;33mgradwatch:\x1b[0m vanishing in w2\n"
    )  # fmt: skip


@pytest.mark.usefixtures("unconfigured")
@pytest.mark.parametrize(("name", "value"), [("NO_COLOR", "1"), ("TERM", "dumb")])
def test_a_terminal_that_refuses_colours_gets_none(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    assert said(monkeypatch, Terminal()) == PLAIN


@pytest.mark.usefixtures("unconfigured")
def test_a_file_gets_no_colours_and_no_asides(monkeypatch):
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    logger.info("gradwatch: an aside")
    assert said(monkeypatch, stream) == PLAIN


@pytest.mark.usefixtures("unconfigured")
def test_in_a_notebook_lines_go_to_stdout_where_nobody_has_set_up_logging(monkeypatch):
    out = io.StringIO()
    kernel = types.SimpleNamespace(get_ipython=lambda: types.SimpleNamespace(kernel=object()))
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    monkeypatch.setattr(sys, "stdout", out)
    assert said(monkeypatch, io.StringIO()) == ""
    assert out.getvalue() == PLAIN


@pytest.mark.usefixtures("unconfigured")
def test_where_ipykernel_is_only_imported_they_go_to_stderr(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))  # as Jupyter's clients do
    assert said(monkeypatch, io.StringIO()) == PLAIN


@pytest.mark.parametrize("is_terminal", [False, True])
def test_two_handlers_that_are_seen_in_one_place_show_a_line_once(monkeypatch, unconfigured, is_terminal):
    first = Terminal() if is_terminal else io.StringIO()
    second = Terminal() if is_terminal else first  # stdout and stderr of one terminal are two streams
    elsewhere = io.StringIO()
    unconfigured.handlers = [logging.StreamHandler(first)]
    unconfigured.parent.handlers = [logging.StreamHandler(second), logging.StreamHandler(elsewhere)]
    assert said(monkeypatch, io.StringIO()) == ""  # who has set up logging decides
    assert first.getvalue() == PLAIN
    assert second is first or second.getvalue() == ""
    assert elsewhere.getvalue() == PLAIN  # a place of its own


def test_a_handler_that_wants_errors_alone_leaves_the_others_to_the_next(monkeypatch, unconfigured):
    stream = io.StringIO()
    unconfigured.handlers = [logging.StreamHandler(stream)]
    unconfigured.handlers[0].setLevel(logging.ERROR)
    unconfigured.parent.handlers = [logging.StreamHandler(stream)]
    said(monkeypatch, io.StringIO())
    assert stream.getvalue() == PLAIN


PROGRAM = """
import logging, sys
{setup}
import torch, gradwatch
weight = torch.ones(3, requires_grad=True)
with gradwatch.watch_tensors({{"w1": weight}}) as watcher:
    for step in range(3):
        watcher.step(grads={{"w1": torch.full((3,), float("nan"))}}, loss=1.0)
"""
SETUPS = {
    "nothing": "",
    "basicConfig": "logging.basicConfig()",
    "both": "logging.basicConfig(); logging.getLogger('gradwatch').addHandler(logging.StreamHandler())",
    "Lightning": "import lightning",
}


@pytest.mark.process
@pytest.mark.parametrize("setup", SETUPS)
def test_a_finding_is_said_once_however_logging_was_set_up(setup):
    program = PROGRAM.format(setup=SETUPS[setup])
    loaded = FRAMEWORKS if setup == "Lightning" else TORCH
    done = run([sys.executable, "-c", program], loaded=loaded, check=True)
    assert done.stderr.count("nonfinite in w1") == 1
    assert "\x1b" not in done.stderr
    assert done.stdout == ""
