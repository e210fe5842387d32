"""Findings posted to a real server on the loopback address: one that answers, is slow, fails, or is not there."""

import copy
import http.server
import json
import logging
import pickle
import re
import socket
import threading
import time
from dataclasses import replace

import pytest
import torch
from torch import nn

import gradwatch
from gradwatch import Webhook
from gradwatch.event_files.run import Coverage
from gradwatch.sinks import webhook
from tests.reports import NAN, findings, report, run_of
from tests.sinks.test_memory import row_of
from tests.sinks.test_used_again import use

(SICK,) = findings([report([NAN, 1.0], 3, nonfinite=[2, 0])])
SECRET = "T0K3N"


class Server(http.server.ThreadingHTTPServer):
    """A server that keeps what is posted, and answers each post with the next of ``statuses``, then with 200."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.posts, self.statuses, self.asked = [], [], 0
        self.may_answer = threading.Event()
        self.may_answer.set()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/services/{SECRET}"

    @property
    def texts(self):
        return "\n\n".join(body["text"] for _, body in self.posts).split("\n\n")

    def handle_error(self, request, client_address):
        pass  # whoever asked has gone away


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked += 1
        self.server.may_answer.wait(20)
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        if status == 200:
            self.server.posts.append((dict(self.headers), body))
        self.send_response(status)
        if status in (301, 302):
            self.send_header("Location", "/elsewhere")
        self.end_headers()

    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Server()
    yield server
    server.may_answer.set()
    server.shutdown()
    server.server_close()


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr(webhook, "_PAUSES", (0.0, 0.01, 0.02, 0.04))
    monkeypatch.setattr(webhook, "_BETWEEN", 0.0)
    yield
    for thread in threading.enumerate():
        if thread.name == "gradwatch-webhook":
            thread.join(3)  # what it logs later would be a line of another test


@pytest.fixture
def lines(caplog):
    caplog.set_level(logging.DEBUG)
    yield lambda: [record.getMessage() for record in caplog.records]
    assert SECRET not in caplog.text


def is_soon(condition, seconds=10.0):
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.005)
    return condition()


def test_a_finding_is_posted_as_it_opens_and_ends_and_the_run_as_it_is_over(server, lines):
    sink = Webhook(server.url, name="resnet")
    sink.write_row(row_of(run_of([[1.0, 1.0]])))
    sink.write_finding(SICK, ended=False)
    assert is_soon(lambda: server.posts)  # before the run is over
    sink.write_finding(replace(SICK, last_step=5), ended=False)  # it goes on
    sink.write_finding(replace(SICK, cause="Known better."), ended=False)
    sink.write_finding(replace(SICK, last_step=8), ended=True)
    sink.write_row(row_of(run_of([[1.0, 1.0]] * 20)))
    sink.close()
    opened, ended, over = server.texts
    assert opened == f"resnet: gradwatch: {SICK.message}\n{SICK.cause}\nTry: {SICK.remedies[0]}"
    assert ended == "resnet: gradwatch: nonfinite in w0 ended: last seen at step 8 (since step 3)."
    assert over == "resnet: gradwatch: the run is over after 20 steps. Findings: 1 nonfinite."
    assert lines() == []


def test_slack_gets_one_field_and_ntfy_is_told_to_show_it(server):
    sink = Webhook(server.url)
    sink.write_finding(SICK, ended=False)
    sink.close()
    headers, body = server.posts[0]
    assert list(body) == ["text"]
    assert headers["Content-Type"] == "application/json"
    assert (headers["X-Template"], headers["X-Message"], headers["X-Title"]) == ("yes", "{{.text}}", "gradwatch")


def test_a_healthy_run_says_so_at_its_end_and_how_much_was_not_measured(server):
    sink = Webhook(server.url)
    sink.write_row(row_of(run_of([[1.0]] * 10)))
    sink.write_coverage(Coverage(12, 9))
    sink.close()
    sink.close()
    assert server.texts == [
        "gradwatch: the run is over after 12 steps. Findings: none.\n"
        "3 steps were not measured: nothing is known of them."
    ]


def test_a_run_without_a_step_posts_nothing_and_starts_no_thread(server):
    before = threading.active_count()
    sink = Webhook(server.url)
    assert threading.active_count() == before
    sink.close()
    assert server.asked == 0


def test_what_waits_is_posted_together_and_no_post_is_long(server):
    server.may_answer.clear()
    sink = Webhook(server.url)
    for step in range(10):
        sink.write_finding(replace(SICK, step=step, cause="because é " * 60), ended=False)
    assert is_soon(lambda: server.asked)
    server.may_answer.set()
    sink.close()
    assert len(server.texts) == 11
    assert 3 <= len(server.posts) <= 5
    assert max(len(body["text"].encode()) for _, body in server.posts) <= 3_500


def test_one_text_that_is_too_long_is_cut(server):
    sink = Webhook(server.url)
    sink.write_finding(replace(SICK, cause="é" * 5_000), ended=False)
    sink.close()
    assert 3_490 <= len(server.posts[0][1]["text"].encode()) <= 3_500


def test_ten_lines_of_a_run_are_the_most_and_the_end_counts_all(server):
    sink = Webhook(server.url)
    for step in range(30):
        sink.write_finding(replace(SICK, step=step), ended=False)
    sink.close()
    assert len(server.texts) == 11
    assert server.texts[-1].endswith("Findings: 30 nonfinite.")


def test_a_second_run_is_posted_as_the_first_was(server):
    sink, told = Webhook(server.url), []
    for _ in range(2):
        server.posts.clear()
        use(sink)
        told.append(server.texts)
    assert told[0] == told[1]
    assert len(told[0]) == 11
    server.posts.clear()
    sink.write_row(row_of(run_of([[1.0]])))
    sink.close()
    assert server.texts == ["gradwatch: the run is over after 1 steps. Findings: none."]


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_server_that_fails_for_a_while_gets_it_later(server, status, lines):
    server.statuses = [status, status]
    sink = Webhook(server.url)
    sink.write_finding(SICK, ended=False)
    assert is_soon(lambda: server.posts)
    sink.close()
    assert len(server.texts) == 2
    assert lines() == []


def test_a_server_that_keeps_failing_costs_one_warning_and_one_line_that_counts(server, lines):
    server.statuses = [500] * 100
    sink = Webhook(server.url)
    for step in range(3):
        sink.write_finding(replace(SICK, step=step), ended=False)
        assert is_soon(lambda: sink._sender._unsent and not sink._sender._texts)
    sink.close()
    assert lines() == [
        "gradwatch: Webhook could not post to 127.0.0.1 (HTTP 500): a message is dropped, training goes on.",
        "gradwatch: Webhook did not get 4 messages through to 127.0.0.1.",
    ]


@pytest.mark.parametrize("status", [400, 404, 301, 302])
def test_what_a_server_refuses_is_not_tried_again(server, status, lines):
    server.statuses = [status]
    sink = Webhook(server.url)
    sink.write_finding(SICK, ended=False)
    assert is_soon(lines)
    assert server.asked == 1
    sink.close()
    assert f"(HTTP {status})" in lines()[0]
    assert "did not get 1 message through" in lines()[1]
    assert len(server.texts) == 1  # the end of the run


def test_a_server_that_is_not_there_is_one_warning(lines):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        sink = Webhook(f"http://127.0.0.1:{taken.getsockname()[1]}/{SECRET}")
        sink.write_finding(SICK, ended=False)
        sink.close()
    assert "(Connection refused)" in lines()[0]
    assert "did not get 2 messages through" in lines()[1]


def test_a_server_that_does_not_answer_delays_neither_training_nor_its_end(server, lines, monkeypatch):
    monkeypatch.setattr(webhook, "LONGEST_CLOSE", 0.2)
    monkeypatch.setattr(webhook, "_LONGEST_ANSWER", 60.0)  # whoever waited for the server would wait as long
    server.may_answer.clear()
    sink = Webhook(server.url)
    begun = time.monotonic()
    for step in range(5):
        sink.write_finding(replace(SICK, step=step), ended=False)
        sink.flush()
    written = time.monotonic()
    sink.close()
    assert written - begun < 15
    assert 0.2 <= time.monotonic() - written < 15
    assert "did not get 6 messages through to 127.0.0.1" in lines()[-1]


def test_an_answer_that_takes_too_long_is_given_up(server, lines, monkeypatch):
    monkeypatch.setattr(webhook, "_LONGEST_ANSWER", 0.05)
    server.may_answer.clear()
    sink = Webhook(server.url)
    sink.write_finding(SICK, ended=False)
    assert is_soon(lines)
    assert re.search(r"\((TimeoutError|timed out)\)", lines()[0])
    assert server.asked == 4
    server.may_answer.set()
    sink.close()


def test_what_waits_is_bounded(server, lines, monkeypatch):
    monkeypatch.setattr(webhook, "MOST_WAITING", 3)
    server.may_answer.clear()
    sink = Webhook(server.url)
    sink.write_finding(SICK, ended=False)
    assert is_soon(lambda: server.asked)
    for step in range(4, 9):
        sink.write_finding(replace(SICK, step=step), ended=False)
    server.may_answer.set()
    sink.close()
    assert "(3 messages wait already)" in lines()[0]
    assert lines()[1] == f"gradwatch: Webhook did not get {7 - len(server.texts)} messages through to 127.0.0.1."
    assert 4 <= len(server.texts) <= 5


@pytest.mark.parametrize(
    "url",
    ["hooks.slack.com/T0K3N", "ftp://host/T0K3N", "file:///T0K3N", "https:///T0K3N", "http://host:T0K3N/", "", None, 3],
)
def test_an_address_that_is_none_is_an_error_that_does_not_repeat_it(url):
    with pytest.raises(ValueError, match="expected an address such as https://hooks") as error:
        Webhook(url)
    assert SECRET not in str(error.value)


def test_a_password_in_the_address_is_an_error_that_does_not_repeat_it():
    with pytest.raises(ValueError, match=r"the address at ntfy\.example holds a user's name") as error:
        Webhook(f"https://me:{SECRET}@ntfy.example/topic")
    assert SECRET not in str(error.value)


def test_an_address_that_cannot_be_asked_for_is_not_repeated(lines):
    sink = Webhook(f"http://127.0.0.1:9/a b/{SECRET}")
    sink.write_finding(SICK, ended=False)
    assert is_soon(lines)
    assert "(InvalidURL)" in lines()[0]
    sink.close()
    assert SECRET not in repr(sink)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda sink: pickle.loads(pickle.dumps(sink))])
def test_a_copy_posts_by_a_thread_of_its_own(server, copied):
    sink = Webhook(server.url)
    sink.write_finding(SICK, ended=False)
    other = copied(sink)
    sink.close()
    other.write_finding(replace(SICK, step=9), ended=False)
    other.close()
    assert [text.rpartition("Findings: ")[2] for text in server.texts if "over" in text] == [
        "1 nonfinite.",
        "2 nonfinite.",
    ]


def test_a_run_is_as_fast_and_as_exact_with_a_server_that_is_down(server, lines, monkeypatch):
    monkeypatch.setattr(webhook, "LONGEST_CLOSE", 0.1)
    server.may_answer.clear()
    weights = []
    for sinks in ([], [Webhook(server.url)]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with gradwatch.watch(model, optimizer, sinks=sinks) as watcher:
            for step in range(20):
                optimizer.zero_grad()
                loss = model(torch.randn(4, 8)).pow(2).mean()
                (loss * NAN if step == 12 else loss).backward()
                optimizer.step()
        assert [finding.kind for finding in watcher.findings] == ["nonfinite"]
        weights.append([parameter.detach().clone() for parameter in model.parameters()])
    assert all(torch.equal(*pair) or torch.isnan(pair[0]).all() for pair in zip(*weights, strict=True))
    assert "did not get 2 messages through to 127.0.0.1" in lines()[-1]
