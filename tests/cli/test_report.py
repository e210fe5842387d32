"""``gradwatch report``: what it prints, what it writes, how it ends."""

import base64
import dataclasses
import hashlib
import inspect
import json
import math
import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from gradwatch import Finding, watch
from gradwatch.cli import main
from gradwatch.event_files.reader import read_runs
from gradwatch.event_files.records import records
from gradwatch.sinks.jsonl import json_of
from tests.event_files.test_records import framed
from tests.forked_python import run
from tests.reports import run_of
from tests.tab_logs import Tab
from tests.written import FINDING, TABLE, event, forge, norms, totals, train, write_rows

REMEDIES = "https://gradwatch.github.io/gradwatch/remedies.html"
FIELDS = {field.name for field in dataclasses.fields(Finding)} | {"message"}


# Click below 8.2 mixes stderr into stdout unless it is told not to; newer ones have no such keyword.
APART = {"mix_stderr": False} if "mix_stderr" in inspect.signature(CliRunner).parameters else {}


def gradwatch(*arguments, **options):
    return CliRunner(**APART).invoke(main, [str(each) for each in arguments], **options)


def report(*arguments):
    return gradwatch("report", *arguments)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    directory = tmp_path_factory.mktemp("runs")
    train(directory / "sick", steps=40, spoil=30, learning_rate=0.01)
    train(directory / "cured", steps=40)
    return directory


def test_a_healthy_run_is_called_healthy(runs):
    done = report(runs / "cured")
    assert done.exit_code == 0
    assert "HEALTHY  No findings." in done.stdout
    assert "40 rows, steps 0 to 39, 4 layers" in done.stdout
    assert done.stderr == ""


def test_a_sick_run_shows_finding_curves_and_profile(runs):
    text = report(runs / "sick").stdout
    assert "ERROR  1 finding: nonfinite in 2.bias and 3 other layers since step 30." in text
    assert "nonfinite (error) in 2.bias and 3 other layers, since step 30, still open" in text
    assert "Cause: Observed:" in text
    assert "• leave out the broken rows of the batch (clean-data)" in text
    assert re.search(r"total norm +[▁-█]+✗+ ", text)
    assert re.search(r"loss +[▁-█]+✗+ ", text)
    assert re.search(r"● +2\.bias +█", text)
    assert text.count("Why:") == 0  # the cause is told once


def test_json_is_that_of_the_contract(runs):
    done = report("--json", runs / "sick")
    told = json.loads(done.stdout)
    (finding,) = told["findings"]
    assert set(finding) == FIELDS
    assert (finding["kind"], finding["layer"], finding["step"]) == ("nonfinite", "2.bias", 30)
    assert (told["run"], told["layers"], told["first_step"], told["last_step"]) == (str(runs / "sick"), 4, 0, 39)


def test_report_json_and_watcher_agree_on_a_finding_that_is_open_at_the_end(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with watch(model, optimizer, log_dir=tmp_path, log_every_n_steps=50) as watcher:
        for step in range(33):  # the first layers turn sick, and the others later
            outputs = model[2:](model[:2](torch.randn(16, 4)) * (math.nan if step >= 20 else 1.0))
            outputs.square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    (finding,) = watcher.findings
    assert finding.last_step == 32
    (told,) = json.loads(report("--json", tmp_path).stdout)["findings"]
    assert told == json.loads(json_of(finding.as_dict()))
    (shown,) = Tab(tmp_path).get("findings", run=".").content["findings"]
    assert shown == {**told, "ended": False, "follows": None}


def test_json_of_several_is_a_list_with_names(runs):
    told = json.loads(report("--json", runs).stdout)
    assert [each["run"] for each in told] == [str(runs / "cured"), str(runs / "sick")]
    assert told == json.loads(report("--json", runs / "cured", runs / "sick").stdout)


def test_numbers_that_are_not_finite_are_null(tmp_path):
    forge(tmp_path, event(4, finding={**FINDING, "value": None, "threshold": math.inf}))
    (finding,) = json.loads(report("--json", tmp_path).stdout)["findings"]
    assert (finding["value"], finding["threshold"]) == (None, None)


@pytest.mark.parametrize(
    ("kinds", "status"),
    [("nonfinite", 1), ("exploding, nonfinite", 1), ("any", 1), ("exploding", 0), ("dead,vanishing", 0)],
)
def test_fail_on_decides_the_status(runs, kinds, status):
    assert report("--fail-on", kinds, runs / "sick").exit_code == status
    assert report("--fail-on", kinds, "--json", runs).exit_code == status
    assert report("--fail-on", kinds, runs / "cured").exit_code == 0


def test_an_unknown_kind_is_refused_with_the_known_ones(runs):
    done = report("--fail-on", "exploding,nan", runs / "sick")
    assert done.exit_code == 2
    words = "expected any, or kinds out of vanishing, exploding, nonfinite, dead, saturated, stalled, unstable"
    assert f"{words}; found 'nan'" in " ".join(done.stderr.split())
    other = gradwatch("run", "--fail-on", "exploding,nan", __file__)
    assert other.stderr.partition("Error:")[2] == done.stderr.partition("Error:")[2]
    assert "--fail-on KINDS" in gradwatch("run", "--help").stdout
    assert "any, or a list" in " ".join(gradwatch("run", "--help").stdout.rpartition("loaded:")[2].split())


def foreign(directory):
    with SummaryWriter(str(directory)) as writer:
        writer.add_scalar("loss", 1.0, 0)


def damaged(directory):
    directory.mkdir()
    (directory / "events.out.tfevents.1.host").write_bytes(framed(b"\xff" * 100) + b"\xff" * 1000)


@pytest.mark.parametrize(
    ("make", "status", "words"),
    [
        (lambda directory: None, 3, "expected the directory of a run, found nothing"),
        (lambda directory: directory.mkdir(), 4, "expected event files (*tfevents*), found none"),
        (foreign, 5, "hold nothing of gradwatch's"),
        (damaged, 6, "nothing of gradwatch's can be read"),
    ],
    ids=["missing", "empty", "foreign", "corrupt"],
)
def test_what_is_no_run_has_a_message_and_a_status_of_its_own(tmp_path, runs, make, status, words):
    make(tmp_path / "no-run")
    for options in ((), ("--json",), ("--html", tmp_path / "page.html"), ("--fail-on", "any")):
        done = report(*options, tmp_path / "no-run")
        assert (done.exit_code, done.stdout) == (status, "")
        assert words in done.stderr
    others = report("--fail-on", "any", tmp_path / "no-run", runs / "sick")
    assert others.exit_code == status  # half an answer is none
    assert "nonfinite in 2.bias" in others.stdout


def test_every_status_stands_in_the_help():
    text = report("--help").stdout
    assert [int(status) for status in re.findall(r"^ +(\d)  \w", text, re.MULTILINE)] == list(range(8))


def test_a_partly_damaged_run_is_shown_with_a_warning(tmp_path):
    train(tmp_path, steps=10)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    done = report(tmp_path)
    assert done.exit_code == 0
    assert "UNKNOWN" in done.stdout
    assert f"{path.name}: a record is damaged" in done.stderr
    assert report("--fail-on", "any", tmp_path).exit_code == 7


def test_a_run_of_which_not_all_is_known_is_not_called_healthy_and_has_a_status_of_its_own(tmp_path):
    rows = [event(step, layers=TABLE, grad_norm=norms(1.0, 2.0)) for step in (0, 50)]
    forge(tmp_path / "cut", *rows)
    forge(tmp_path / "whole", *rows, event(59, end={"steps": 60}))
    forge(tmp_path / "blind", *rows, event(59, coverage={"steps": 60, "measured": 4}), event(59, end={"steps": 60}))
    forge(tmp_path / "sick", *rows, event(4, finding=FINDING))
    statuses = {"cut": 7, "whole": 0, "blind": 7, "sick": 1}
    assert {name: report("--fail-on", "any", tmp_path / name).exit_code for name in statuses} == statuses
    assert {report(tmp_path / name).exit_code for name in statuses} == {0}
    verdicts = {name: json.loads(report("--json", tmp_path / name).stdout)["verdict"] for name in statuses}
    assert verdicts == {"cut": "unknown", "whole": "healthy", "blind": "unknown", "sick": "warning"}
    words = " ".join(report(tmp_path / "cut").stdout.split())
    assert "UNKNOWN No findings in what is known: the run was not closed, so nothing is known of what came" in words
    assert "after step 50" in words
    assert report("--fail-on", "any", tmp_path / "sick", tmp_path / "cut").exit_code == 1


def test_a_run_that_goes_on_is_shown_as_such(tmp_path):
    with SummaryWriter(str(tmp_path)) as writer:
        train(writer)
        writer.flush()
        (path,) = tmp_path.iterdir()
        content = path.read_bytes()
        assert "ended after 12 steps, less than two minutes ago." in " ".join(report(tmp_path).stdout.split())
    path.write_bytes(content[: content.rindex(b"gradwatch/end") - 40])  # as if it had not been closed
    assert "it is still going on, or has just been killed." in " ".join(report(tmp_path).stdout.split())
    assert json.loads(report("--json", tmp_path).stdout)["ended"] is False
    os.utime(path, (0, 0))
    text = " ".join(report(tmp_path).stdout.split())
    assert "ago: it was not closed, so it may have been killed." in text
    assert "going on" not in text


def test_a_run_that_has_findings_but_no_rows_is_shown(tmp_path):
    forge(tmp_path, event(4, finding=FINDING))
    assert "no rows yet" in report(tmp_path).stdout
    assert report("--html", tmp_path / "page.html", tmp_path).exit_code == 0


def test_of_two_runs_it_says_what_went_and_what_came(runs):
    text = report(runs / "sick", runs / "cured").stdout
    assert f"From {runs / 'sick'} to {runs / 'cured'}" in text.replace("\n", "")
    assert re.search(r"went +│ nonfinite +│ 2\.bias", text)
    assert re.search(r"came +│ nonfinite", report(runs / "cured", runs / "sick").stdout)
    assert re.search(r"stayed +│ nonfinite", report(runs / "sick", runs / "sick").stdout)
    assert "Neither run has a finding." in report(runs / "cured", runs / "cured").stdout


def test_two_runs_below_one_are_compared_where_their_layers_are_the_same(runs, tmp_path):
    assert "went" not in report(runs).stdout  # the first by name is the cured one
    assert re.search(r"came +│ nonfinite", report(runs).stdout)
    for name in ("generator", "critic"):
        row = event(0, layers={**TABLE, "layers": [f"{name}.a", f"{name}.b"]}, grad_norm=norms(1.0, 2.0))
        forge(tmp_path / "gan" / name, row, event(0, end={"steps": 1}))
    text = report(tmp_path / "gan").stdout
    assert text.count("HEALTHY") == 2
    assert "Neither run" not in text
    assert "Neither run" not in page_of(tmp_path, tmp_path / "gan")
    assert "Neither run" in report(tmp_path / "gan" / "critic", tmp_path / "gan" / "generator").stdout


def test_of_many_runs_a_table_comes_first_worst_on_top_and_only_the_sick_follow(tmp_path):
    for name in ("a", "b", "c"):
        row = event(0, layers=TABLE, grad_norm=norms(1.0, 2.0), totals=totals(loss=0.5))
        forge(tmp_path / "sweep" / name, row, event(0, end={"steps": 1}))
    train(tmp_path / "sweep" / "d", steps=40, spoil=30)
    unmeasured = event(9, coverage={"steps": 10, "measured": 4})
    forge(tmp_path / "sweep" / "e", event(0, layers=TABLE, grad_norm=norms(1.0, 2.0)), unmeasured)
    text = report(tmp_path / "sweep").stdout
    table, _, rest = text.partition(str(tmp_path))
    lines = [line.split() for line in table.splitlines() if line.strip()]
    assert lines[0] == ["run", "steps", "loss", "found"]
    assert [(line[0], line[1]) for line in lines[1:] if line[0] in "abcde"] == [
        ("d", "ERROR"), ("e", "UNKNOWN"), ("a", "HEALTHY"), ("b", "HEALTHY"), ("c", "HEALTHY"),
    ]  # fmt: skip
    assert lines[1][2:6] == ["40", "NaN", "nonfinite", "in"]
    assert "10 steps, 6 of them not measured" in " ".join(table.split())
    assert rest.count("Along time") == 2
    assert "3 healthy runs in the table alone: --all shows the figures of every run." in rest
    everything = report("--all", tmp_path / "sweep").stdout
    assert everything.count("Along time") == 5
    assert "--all" not in everything


def test_a_run_within_another_that_is_named_itself_is_shown_once(tmp_path):
    train(tmp_path / "run", steps=2)
    train(tmp_path / "run" / "run_2", steps=2)
    told = json.loads(report("--json", tmp_path / "run", tmp_path / "run" / "run_2").stdout)
    assert [each["run"] for each in told] == [str(tmp_path / "run"), str(tmp_path / "run" / "run_2")]


def test_a_neighbour_that_cannot_be_read_at_all_is_told(tmp_path):
    train(tmp_path / "sound", steps=2)
    damaged(tmp_path / "spoilt")
    done = report(tmp_path)
    assert (done.exit_code, done.stdout.count("HEALTHY")) == (0, 1)
    assert f"gradwatch: {tmp_path / 'spoilt'}: events.out.tfevents.1.host: " in done.stderr


@pytest.fixture
def forbidden(tmp_path):
    """A directory that nobody may look into: the superuser becomes somebody else meanwhile."""
    directory = tmp_path / "forbidden"
    directory.mkdir()
    for above in tmp_path.parents:
        if above.name.startswith(("pytest-", "popen-")):  # the directories of pytest and of a process of pytest-xdist
            above.chmod(above.stat().st_mode | 0o111)
    tmp_path.chmod(0o755)
    directory.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield directory
    os.seteuid(user)
    directory.chmod(0o755)


def test_a_directory_that_may_not_be_looked_into_is_told(forbidden):
    done = report(forbidden.parent)
    assert (done.exit_code, done.stdout) == (6, "")
    assert f"{forbidden}: cannot be read: Permission denied" in done.stderr


class Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.words, self.open, self.begun = set(), [], [], [], []
        self.feed(text)
        self.close()

    def count(self, tag):
        return self.begun.count(tag)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.begun.append(tag)
        self.attributes += attributes
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, words):
        self.words.append(words)


def page_of(tmp_path, *directories):
    done = report("--html", tmp_path / "page.html", *directories)
    assert (done.exit_code, done.stdout) == (0, "")
    return (tmp_path / "page.html").read_text(encoding="utf-8")


def test_the_page_holds_all_that_it_needs(runs, tmp_path):
    text = page_of(tmp_path, runs / "sick")
    page = Tags(text)
    assert page.open == []
    assert page.tags.isdisjoint({"link", "iframe", "object", "embed", "form", "base"})
    addresses = [value for name, value in page.attributes if name in ("src", "srcset", "action", "xlink:href")]
    links = [value for name, value in page.attributes if name == "href" and not value.startswith("data:")]
    assert addresses == []
    assert f"{REMEDIES}#clean-data" in links
    assert all(link.startswith(f"{REMEDIES}#") for link in links)  # a click, not the page, leads there
    assert "http" not in text.replace("http-equiv", "").replace(REMEDIES, "")
    assert "url(" not in text
    assert "@import" not in text
    assert "prefers-color-scheme: dark" in text


def test_the_one_script_of_the_page_is_the_one_that_its_policy_allows(runs, tmp_path):
    text = page_of(tmp_path, runs / "sick")
    scripts = re.findall(r"<script([^>]*)>(.*?)</script>", text, re.DOTALL)
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', text)
    assert [attributes for attributes, _ in scripts] == [' type="application/json" id="figures"', ""]
    digest = base64.b64encode(hashlib.sha256(scripts[1][1].encode()).digest()).decode()
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"


def test_the_page_holds_the_figures_of_its_pictures_as_json(runs, tmp_path):
    (text,) = re.findall(r'id="figures">(.*?)</script>', page_of(tmp_path, runs), re.DOTALL)
    cured, sick = json.loads(text)
    told = json.loads(report("--json", runs / "sick").stdout)
    assert {name: sick[name] for name in told} == {**told, "run": "sick"}  # the page is handed on, without folders
    assert cured["rows"] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert (sick["axis"]["first"], sick["axis"]["end"]) == (0, 40)
    assert [len(row) for row in sick["norms"]] == [40] * 4
    assert sick["norms"][3][29:31] == [pytest.approx(sick["norms"][3][29]), "not finite"]
    (run,) = read_runs(runs / "cured")
    np.testing.assert_allclose(np.array(cured["norms"]).T, run.packed["highest"].values, rtol=5e-3)
    np.testing.assert_allclose(cured["curves"]["loss"]["values"], run.curves["loss"].values, rtol=5e-3)
    assert cured["curves"]["learning rate"]["values"] == [pytest.approx(0.01)] * 40


def test_the_page_tells_findings_with_evidence_cause_and_remedies(runs, tmp_path):
    words = " ".join(Tags(page_of(tmp_path, runs / "sick")).words)
    for told in (
        "nonfinite",
        "2.bias and 3 other layers",
        "since step 30",
        "Observed:",
        "leave out the broken rows",
    ):
        assert told in words


def test_the_page_of_two_runs_compares_them_on_one_scale(runs, tmp_path):
    text = page_of(tmp_path, runs / "sick", runs / "cured")
    assert "<td>went</td><td>nonfinite</td>" in text
    legends = re.findall(r"Norm of each layer.*?</p>", text)
    assert len(legends) == 2
    assert legends[0] == legends[1]


@pytest.mark.parametrize(("layers", "boxes"), [(["a"], 1), (["a", "b"], 1), (["a", "c"], 2), ([], 1), (["gone"], 0)])
def test_the_page_outlines_each_stretch_of_layers_that_a_finding_covers(tmp_path, layers, boxes):
    table = {"layers": ["a", "b", "c"], "depth": [0, 1, 2], "size": [1, 1, 1]}
    rows = [event(step, layers=table, grad_norm=norms(1.0, 2.0, 3.0)) for step in range(9)]
    finding = {**FINDING, "layer": layers[0] if layers else "", "layers": layers}
    text = page_of(tmp_path, forge(tmp_path / "run", *rows, event(4, finding=finding)))
    assert text.count('class="outline"') == boxes


HOSTILE = '<script>alert("x")</script>&[red]"\'><img src=x onerror=alert(1)>'


def test_names_of_hostile_files_are_never_markup(tmp_path):
    layers = [HOSTILE, "[bold]b[/bold]"]
    finding = {
        **FINDING,
        "layer": HOSTILE,
        "layers": layers,
        "cause": HOSTILE,
        "measured": HOSTILE,
        "figure": HOSTILE,
        "remedies": [{"name": "rest", "text": HOSTILE}],
    }
    row = event(0, layers={**TABLE, "layers": layers}, grad_norm=norms(1.0, 2.0))
    where = forge(tmp_path / "<b>run", row, event(4, finding=finding))
    page = Tags(page_of(tmp_path, where, where))
    assert page.tags.isdisjoint({"img", "b"})
    assert page.count("script") == 2  # our own
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert HOSTILE in " ".join(page.words)
    text = gradwatch("report", where, env={"COLUMNS": "400"}).stdout
    assert HOSTILE in text
    assert "[bold]b[/bold]" in text


def test_a_page_that_cannot_be_written_is_a_usage_error(runs, tmp_path):
    done = report("--html", tmp_path / "nowhere" / "page.html", runs / "sick")
    assert done.exit_code == 2
    assert "cannot be written" in done.stderr


@pytest.fixture(scope="module")
def sound(runs):
    """Contents of the records of a real run."""
    return [content for path in (runs / "sick").iterdir() for content in records(path)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(150))
def test_whatever_is_written_beneath_sound_checksums_is_shown_or_refused(sound, tmp_path, seed):
    random, contents = np.random.default_rng(seed), list(sound)
    for _ in range(random.integers(1, 6)):
        which = random.integers(len(contents))
        at = random.integers(len(contents[which]))
        patch = random.bytes(random.integers(1, 9))
        contents[which] = contents[which][:at] + patch + contents[which][at + len(patch) :]
    where = forge(tmp_path / "run", *contents)
    for done in (report(where), report(where, "--json"), report(where, where, "--html", tmp_path / "page.html")):
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        assert done.exit_code in (0, 6)


@pytest.mark.parametrize("layers", [1, 300])
@pytest.mark.parametrize("rows", [1, 2, 200])
def test_runs_of_any_extent_are_shown(tmp_path, rows, layers):
    rng = np.random.default_rng(0)
    write_rows(tmp_path / "run", run_of(10 ** rng.normal(size=(rows, layers))))
    assert report(tmp_path / "run").exit_code == 0
    text = page_of(tmp_path, tmp_path / "run")
    assert len(text) < 2_000_000
    assert "nan" not in re.sub(r"base64,[^\"]*", "", text)


@pytest.mark.parametrize("values", [(0.0, 0.0), (math.nan, math.nan), (math.inf, 1.0), (1e-45, 3e38)])
def test_figures_of_any_size_are_shown(tmp_path, values):
    rows = [
        event(step, layers=TABLE, grad_norm=norms(*values), totals=totals(grad_norm_total=values[0]))
        for step in range(3)
    ]
    rows.append(event(3, grad_norm=norms(*values), totals=totals(loss=-1.0), update_ratio=np.float32(values)))
    forge(tmp_path / "run", *rows)
    assert report(tmp_path / "run").exit_code == 0
    assert ">nan<" not in page_of(tmp_path, tmp_path / "run")


def run_of_python(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-W", "error", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        timeout=600,
    )


@pytest.mark.process
def test_the_commands_load_neither_torch_nor_each_other(runs):
    register = "import atexit, sys; atexit.register(lambda: print('loaded:', *sys.modules))"
    program = f"{register}; from gradwatch.cli import main; main()"
    loaded = set(run_of_python("-c", program, "--help").stdout.split())
    assert "gradwatch.cli" in loaded
    assert loaded.isdisjoint({"torch", "numpy", "rich", "tensorboard", "gradwatch.cli.report", "gradwatch.cli.demo"})
    for options in ((), ("--json",), ("--html", runs / "page.html")):
        done = run_of_python("-c", program, "report", *options, runs / "sick")
        loaded = set(done.stdout.rpartition("loaded:")[2].split())
        assert "gradwatch.event_files.reader" in loaded
        assert loaded.isdisjoint({"torch", "tensorflow", "gradwatch.cli.demo"})


@pytest.mark.process
def test_python_m_gradwatch_reports_and_fails_for_ci(runs):
    done = run_of_python("-m", "gradwatch", "report", runs / "sick", "--fail-on", "exploding,nonfinite")
    assert done.returncode == 1
    assert "nonfinite in 2.bias" in done.stdout
    assert done.stderr == ""


@pytest.mark.process
def test_a_terminal_without_bars_is_no_fault(runs):
    done = run_of_python("-m", "gradwatch", "report", runs / "sick", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (done.returncode, done.stderr) == (0, "")


def test_help_and_version_tell_of_every_command():
    text = gradwatch("--help").stdout
    assert "report" in text
    assert "demo" in text
    assert gradwatch("--version").stdout.startswith("gradwatch ")
    assert gradwatch("unheard").exit_code == 2


@pytest.mark.process
def test_the_demonstration_leaves_runs_that_the_report_reads(tmp_path):
    forge(tmp_path / "runs" / "healthy", event(4, finding=FINDING))  # of an earlier one
    (tmp_path / "runs" / "healthy" / "mine.pt").touch()
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "gradwatch",
        "demo",
        "--log-dir",
        tmp_path / "runs",
        "--steps",
        "10",
    ]
    done = run(command)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "healthy" / "mine.pt").exists()
    assert json.loads(report("--json", tmp_path / "runs" / "healthy").stdout)["findings"] == []
    told = json.loads(report("--json", tmp_path / "runs").stdout)
    assert {each["run"].rpartition("/")[2] for each in told} == {"healthy", "vanishing", "exploding", "nonfinite"}


@pytest.mark.process
def test_the_demonstration_without_scikit_learn_says_what_to_install(tmp_path):
    (tmp_path / "sklearn.py").write_text("raise ModuleNotFoundError('no sklearn', name='sklearn')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = run_of_python("-m", "gradwatch", "demo", "--log-dir", tmp_path / "runs", PYTHONPATH=path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.splitlines() == [
        "The demonstration trains on scikit-learn's digits. Run: pip install 'gradwatch[demo]'"
    ]
