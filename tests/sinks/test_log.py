import logging
import subprocess
import sys
from dataclasses import replace

import pytest

from gradwatch.sinks.log import MOST_LINES, Log
from tests.reports import NAN, findings, report, run_of
from tests.sinks.test_memory import row_of

(SICK,) = findings([report([NAN, 1.0], 3, nonfinite=[2, 0])])
FADED = replace(SICK, kind="vanishing", severity="warning", layer="100 % gone")


@pytest.fixture
def lines():
    """Records as they reach the logger's handlers."""
    kept = []
    handler = logging.Handler()
    handler.emit = kept.append
    logger = logging.getLogger("gradwatch")
    logger.addHandler(handler)
    yield kept
    logger.removeHandler(handler)


def test_a_finding_is_one_line_when_it_opens_and_one_when_it_ends(lines):
    log = Log()
    log.write_finding(SICK, ended=False)
    log.write_finding(replace(SICK, last_step=8), ended=True)
    assert [line.getMessage() for line in lines] == [
        f"gradwatch: {SICK.message}",
        "gradwatch: nonfinite in w0 ended: last seen at step 8 (since step 3).",
    ]


@pytest.mark.parametrize(("finding", "level"), [(SICK, logging.ERROR), (FADED, logging.WARNING)])
def test_the_level_is_the_severity_and_an_end_is_a_warning(lines, finding, level):
    log = Log()
    log.write_finding(finding, ended=False)
    log.write_finding(finding, ended=True)
    assert [line.levelno for line in lines] == [level, logging.WARNING]


def test_a_finding_without_a_layer_is_of_the_whole_run(lines):
    Log().write_finding(replace(SICK, layer="", layers=("",)), ended=False)
    assert lines[0].getMessage().startswith("gradwatch: nonfinite in the whole run since step 3")


def test_a_percent_sign_in_a_message_is_no_format(lines):
    Log().write_finding(FADED, ended=False)
    assert lines[0].getMessage().startswith("gradwatch: vanishing in 100 % gone since step 3")


def test_ten_lines_are_the_most_then_a_summary_at_close(lines):
    log = Log()
    for _ in range(4):
        log.write_finding(SICK, ended=False)
        log.write_finding(SICK, ended=True)
        log.write_finding(FADED, ended=False)
    assert len(lines) == MOST_LINES
    log.close()
    assert [line.getMessage() for line in lines[MOST_LINES:]] == [
        "gradwatch: and further findings, not shown here: 1 vanishing. All are in watcher.findings."
    ]
    log.close()
    assert len(lines) == MOST_LINES + 1


def test_the_first_finding_of_a_kind_has_a_line_whatever_was_said_before(lines):
    log = Log()
    for step in range(30):
        log.write_finding(replace(FADED, step=step), ended=False)
    log.write_finding(SICK, ended=False)
    log.write_finding(replace(SICK, step=7), ended=False)
    assert [line.levelno for line in lines] == [logging.WARNING] * MOST_LINES + [logging.ERROR]
    log.close()
    assert "20 vanishing, 1 nonfinite" in lines[-1].getMessage()


def test_without_a_watcher_no_line_names_one(lines):
    log = Log(has_watcher=False)
    for _ in range(MOST_LINES + 1):
        log.write_finding(SICK, ended=False)
    log.close()
    assert lines[0].getMessage() == f"gradwatch: {SICK.headline}"
    assert f"{SICK.headline}. More: print(finding)" == SICK.message
    assert lines[-1].getMessage().endswith("1 nonfinite. All are in the report.")


def test_no_finding_no_line(lines):
    log = Log()
    log.write_row(row_of(run_of([[1.0]])))
    log.flush()
    log.close()
    assert lines == []


@pytest.mark.process
def test_findings_are_visible_without_any_logging_configuration():
    program = (
        "from gradwatch.findings import Finding\n"
        "from gradwatch.sinks.log import Log\n"
        "for severity in ('error', 'warning'):\n"
        "    finding = Finding('exploding', severity, 'w1', ('w1',), 5, 5, 5, 9.0, 2.0, 'nine times.', '')\n"
        "    Log().write_finding(finding, ended=False)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    line = "gradwatch: exploding in w1 since step 5: grown 9 times, normal up to 2. More: print(finding)"
    assert done.stderr.splitlines() == [line] * 2
    assert done.stdout == ""


@pytest.mark.parametrize("layer", ["a" * 300, "a\nb", "", "x" * 90])
def test_no_line_is_longer_than_160_characters_or_more_than_one(lines, layer):
    log = Log()
    finding = replace(SICK, layer=layer, last_step=10**9)
    log.write_finding(replace(finding, last_step=finding.raised_step), ended=False)
    log.write_finding(finding, ended=True)
    texts = [line.getMessage() for line in lines]
    assert len(texts) == 2
    assert all(len(text) <= 160 and len(text.splitlines()) == 1 for text in texts)
