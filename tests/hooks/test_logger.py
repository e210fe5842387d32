import logging
import sys

import torch

import gradwatch
from gradwatch.hooks.logger import logger


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
