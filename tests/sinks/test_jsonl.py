import json

import pytest

from gradwatch import Advice
from gradwatch.sinks.jsonl import JsonLines
from tests.reports import INF, NAN, events, report, run_of
from tests.sinks.test_memory import row_of


def refuse(constant):
    raise ValueError(f"{constant} is not JSON")


def lines_of(path):
    return [json.loads(line, parse_constant=refuse) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "made" / "run.jsonl"


def write_rows(path, *rows):
    sink = JsonLines(path)
    for row in rows:
        sink.write_row(row)
    sink.close()


def test_a_row_is_one_object(path):
    write_rows(path, row_of(run_of([[3.0, 8.0], [3.0, 4.0]], [0.5, 0.25]), skipped_steps=2))
    assert lines_of(path) == [
        {
            "event": "row",
            "step": 1,
            "optimizer": 0,
            "grad_norm_total": 5.0,
            "grad_norm_clipped_total": 5.0,
            "loss": 0.25,
            "learning_rate": None,
            "learning_rates": [],
            "skipped_steps": 2,
            "grad_norm": {"w0": 3.0, "w1": 4.0},
            "grad_norm_highest": {"w0": 3.0, "w1": 8.0},
            "grad_norm_lowest": {"w0": 3.0, "w1": 4.0},
        }
    ]


def test_numbers_that_are_not_finite_are_null(path):
    write_rows(path, row_of([report([NAN, NAN, INF], loss=NAN, nonfinite=[1, 0, 0])]))
    (row,) = lines_of(path)
    assert row["grad_norm"] == row["grad_norm_lowest"] == {"w0": None, "w1": None, "w2": None}
    assert row["grad_norm_total"] is None
    assert row["loss"] is None


def test_a_finding_is_one_line_when_it_opens_and_one_when_it_ends(path):
    run = [*run_of([[1.0]]), report([NAN], 1, nonfinite=[1]), *(report([1.0], step) for step in range(2, 12))]
    said = events(run)
    sink = JsonLines(path)
    for event in said:
        sink.write_finding(event.finding, event.ended)
    sink.close()
    opened, ended = lines_of(path)
    assert (opened["event"], ended["event"]) == ("opened", "ended")
    assert opened["layers"] == ["w0"]
    assert opened["message"] == said[0].finding.message
    assert tuple(Advice(**each) for each in opened["remedies"]) == said[0].finding.remedies


def test_an_infinite_value_of_a_finding_is_null(path):
    (event,) = events([report([INF])])
    sink = JsonLines(path)
    sink.write_finding(event.finding, ended=False)
    sink.close()
    assert lines_of(path)[0]["value"] is None


def test_a_finding_is_on_disk_before_the_sink_is_closed(path):
    (event,) = events([report([NAN], nonfinite=[1])])
    sink = JsonLines(path)
    sink.write_row(row_of(run_of([[1.0]])))
    sink.write_finding(event.finding, ended=False)
    assert [line["event"] for line in lines_of(path)] == ["row", "opened"]
    sink.close()


def test_rows_are_on_disk_after_flush(path):
    sink = JsonLines(path)
    sink.write_row(row_of(run_of([[1.0]])))
    sink.flush()
    assert len(lines_of(path)) == 1
    sink.close()


def test_findings_and_what_was_flushed_are_put_on_the_disk_if_asked_for(path, synced):
    (event,) = events([report([NAN], nonfinite=[1])])
    sink = JsonLines(path, fsync=True)
    for act in (lambda: sink.write_finding(event.finding, ended=False), sink.flush, sink.close):
        sink.write_row(row_of(run_of([[1.0]])))
        assert synced == {}
        act()
        assert synced.take(path) == path.stat().st_size
        assert synced.take(path.parent) is not None


def test_nothing_waits_for_the_disk_unless_asked_for(path, synced):
    (event,) = events([report([NAN], nonfinite=[1])])
    sink = JsonLines(path)
    sink.write_finding(event.finding, ended=False)
    sink.flush()
    sink.close()
    assert synced == {}


def test_a_second_run_appends(path):
    for _ in range(2):
        write_rows(path, row_of(run_of([[1.0]])))
    assert len(lines_of(path)) == 2


def test_a_directory_in_the_files_place_is_an_error(tmp_path):
    with pytest.raises(OSError, match=str(tmp_path)):
        JsonLines(tmp_path)
