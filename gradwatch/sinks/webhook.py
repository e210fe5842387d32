"""Tell people of findings while they are away: post them to an address, in the form that Slack and ntfy take."""

from __future__ import annotations

import json
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter, deque
from collections.abc import Iterator
from typing import Any

from gradwatch.event_files.run import Coverage
from gradwatch.findings import Finding
from gradwatch.hooks.logger import logger
from gradwatch.sinks import Row
from gradwatch.sinks.log import FewLines

__all__ = ["Webhook"]

MOST_WAITING = 100  # texts; a run has some twenty, so a hundred wait only for a server that is down
LONGEST_CLOSE = 1.5  # seconds that the end of a run waits for what was not sent yet; it waits 2 for all sinks
_PAUSES = (0.0, 1.0, 4.0, 16.0)  # seconds before each attempt
_LONGEST_ANSWER = 5.0  # seconds that a server may take
_BETWEEN = 1.0  # seconds: Slack takes one message a second
_LONGEST_TEXT = 3_500  # bytes: ntfy makes a file of what is longer than 4,096
_HEADERS = {
    "Content-Type": "application/json",
    "User-Agent": "gradwatch",
    "X-Template": "yes",  # ntfy then shows X-Message, filled in from the JSON; others do not look at these
    "X-Message": "{{.text}}",
    "X-Title": "gradwatch",
}


class Webhook:
    """A sink that posts findings to an address as they open and end, and at the end how the run went. It posts no rows.

    The body is JSON, ``{"text": "…"}``, as Slack's incoming webhooks take it. Headers tell ntfy to show that text, so
    the address of a topic, ``https://ntfy.sh/my-topic``, works, too. At most ten lines of a run are posted, as on the
    log; the end of the run counts the other findings.

    A thread posts, so training never waits. What a server does not take is tried four times within a minute, then
    dropped, with one warning, and counted. The end of a run waits at most two seconds. No line of the log holds the
    address, which may be a secret; lines name its host.

    Args:
        url: where to post.
        name: what each text begins with, to tell runs apart.

    Raises:
        ValueError: if ``url`` is no address of http or https, or holds a user's name.

    Examples:
        >>> Webhook("https://ntfy.sh/my-topic", name="resnet").close()
    """

    def __init__(self, url: str, *, name: str = "") -> None:
        self._url, self._name, self._host = url, name, _host_of(url)
        self._lines = FewLines()
        self._kinds: dict[tuple[str, str, int], str] = {}  # of every finding, by its identity
        self._steps = 0
        self._coverage = Coverage(0, 0)
        self._sender: _Sender | None = None  # there is none before there is something to post, nor in a copy

    def write_row(self, row: Row) -> None:
        self._steps = row.report.step + 1

    def write_finding(self, finding: Finding, ended: bool) -> None:
        is_known = finding.identity in self._kinds
        self._kinds[finding.identity] = finding.kind
        if is_known and not ended:
            return  # it has gone on, or more is known of its cause
        line = self._lines.line_of(finding, ended)
        if line is not None:
            advice = [f"Try: {remedy}" for remedy in finding.remedies[:1]]
            self._post(line if ended else "\n".join((line, finding.cause, *advice)))

    def write_coverage(self, coverage: Coverage) -> None:
        self._coverage = coverage

    def flush(self) -> None:
        """Do nothing: training does not wait for a server."""

    def close(self) -> None:
        if self._steps or self._kinds:
            self._post("\n".join(self._last_words()))
        if self._sender is not None:
            self._sender.close()
        self._lines, self._kinds, self._sender = FewLines(), {}, None
        self._steps, self._coverage = 0, Coverage(0, 0)

    def _post(self, text: str) -> None:
        if self._sender is None:
            self._sender = _Sender(self._url, self._host)
        self._sender.put(f"{self._name}: {text}" if self._name else text)

    def _last_words(self) -> Iterator[str]:
        counts = ", ".join(f"{count} {kind}" for kind, count in Counter(self._kinds.values()).items())
        steps = max(self._steps, self._coverage.steps)
        yield f"gradwatch: the run is over after {steps} steps. Findings: {counts or 'none'}."
        if self._coverage.unmeasured:
            yield f"{self._coverage.unmeasured} steps were not measured: nothing is known of them."
        if self._coverage.unjudged:
            yield f"{self._coverage.unjudged_in_words()}."

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_sender": None}


class _Sender:
    """A thread that posts texts, several in one body where they wait.

    Args:
        url: where to.
        host: what the log says of it.
    """

    def __init__(self, url: str, host: str) -> None:
        self._url, self._host = url, host
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._changed = threading.Condition()  # noqa: TID251 (a child posts nothing)  # guards what follows
        self._texts: deque[str] = deque()
        self._unsent = 0  # how many were put and not posted: they wait, are under way, or were dropped
        self._is_closing = self._has_warned = False
        self._thread = threading.Thread(target=self._run, name="gradwatch-webhook", daemon=True)
        self._thread.start()

    def put(self, text: str) -> None:
        """Post ``text`` soon; drop it if too many wait."""
        with self._changed:
            self._unsent += 1
            has_room = len(self._texts) < MOST_WAITING
            if has_room:
                self._texts.append(text)
                self._changed.notify()
        if not has_room:
            self._warn(f"{MOST_WAITING} messages wait already")

    def close(self) -> None:
        """Wait for what was not posted yet, but not long; say how much was not."""
        with self._changed:
            self._is_closing = True
            self._changed.notify()
        self._thread.join(LONGEST_CLOSE)
        if unsent := self._unsent:
            what = "1 message" if unsent == 1 else f"{unsent} messages"
            logger.warning("gradwatch: Webhook did not get %s through to %s.", what, self._host)

    def _run(self) -> None:
        while texts := self._next_texts():
            if self._deliver("\n\n".join(texts)):
                with self._changed:
                    self._unsent -= len(texts)
            self._pause(_BETWEEN)

    def _next_texts(self) -> list[str]:
        """Wait for texts, and return as many as fit into one body; none once the sender is closing and none wait."""
        with self._changed:
            self._changed.wait_for(lambda: self._texts or self._is_closing)
            texts: list[str] = []
            room = _LONGEST_TEXT
            while self._texts and (not texts or len(self._texts[0].encode()) <= room):
                texts.append(self._texts.popleft())
                room -= len(texts[-1].encode()) + 2  # the blank line between two
            return texts

    def _deliver(self, text: str) -> bool:
        """Post ``text``, at the fourth attempt at the latest; return whether it was taken."""
        body = text.encode()[:_LONGEST_TEXT].decode(errors="ignore")
        reason = ""
        for pause in _PAUSES:
            self._pause(pause)
            try:
                request = urllib.request.Request(self._url, json.dumps({"text": body}).encode(), _HEADERS)
                with self._opener.open(request, timeout=_LONGEST_ANSWER):
                    return True
            except Exception as error:
                reason = _reason_of(error)
                if isinstance(error, urllib.error.HTTPError):
                    error.close()
                if not _may_pass(error):
                    break
        self._warn(reason)
        return False

    def _pause(self, seconds: float) -> None:
        """Wait, unless the sender is closing."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_closing, seconds)

    def _warn(self, reason: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            logger.warning(
                "gradwatch: Webhook could not post to %s (%s): a message is dropped, training goes on.",
                self._host, reason,
            )  # fmt: skip


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Whoever redirects has not taken the message: what follows would be a GET, whose answer says nothing."""

    def redirect_request(self, *arguments: object) -> None:
        return None


def _host_of(url: str) -> str:
    """Return the host of ``url``; errors do not repeat the address, which may hold a secret."""
    try:
        parts = urllib.parse.urlsplit(url)
        host, has_user, _ = parts.hostname, parts.username is not None, parts.port
    except (ValueError, AttributeError):  # what is no string has no parts either
        host = None
    if not host or parts.scheme not in ("http", "https"):
        raise ValueError("Webhook(url): expected an address such as https://hooks.slack.com/services/….")
    if has_user:
        raise ValueError(
            f"Webhook(url): the address at {host} holds a user's name, which is not sent. ntfy takes ?auth=… instead."
        )
    return host


def _may_pass(error: Exception) -> bool:
    """Return whether another attempt may succeed: not where the server says that the request is wrong."""
    return not isinstance(error, urllib.error.HTTPError) or error.code in (408, 429) or error.code >= 500


def _reason_of(error: Exception) -> str:
    """Return a few words without the address: texts of some errors repeat it."""
    if isinstance(error, urllib.error.HTTPError):
        return f"HTTP {error.code}"
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    return (cause.strerror if isinstance(cause, OSError) else None) or type(cause).__name__
