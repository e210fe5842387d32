"""The detection benchmark's own words: what counts as proven, detected, right, early."""

import dataclasses
import fnmatch
import logging

import numpy as np
import pytest

from benchmarks.detection import faulty, healthy, others, table
from benchmarks.detection.bare import Bare, run_bare, start
from benchmarks.detection.program import PROGRAMS, Program
from benchmarks.detection.prove import prove
from benchmarks.detection.run import Verdict, judge


@pytest.fixture(autouse=True)
def _the_log_is_as_it_was():
    level = logging.getLogger("gradwatch").level
    yield
    logging.getLogger("gradwatch").setLevel(level)  # ``judge`` silences it


FOLDERS = faulty, healthy, others  # importing them registers every program


def bare(norms, losses=None, nonfinite=None, sizes=1.0):
    norms = np.array(norms, dtype=float)
    losses = np.ones(len(norms)) if losses is None else np.array(losses, dtype=float)
    counts = np.zeros(norms.shape, dtype=int) if nonfinite is None else np.array(nonfinite)
    names = tuple("abcdef"[: norms.shape[1]])
    ones = np.ones(norms.shape)
    return Bare(names, norms, norms / sizes, counts, ones, ones * 1e-2, losses, np.isfinite(losses) | True)


def claim(kind, **rest):
    return Program("p", lambda seed: None, kind, **rest)


def verdict(kind, alarms, onset=0, layers=("a",), first_nonfinite=None, also=()):
    return Verdict("p", 0, kind, also, "tune", onset, layers, first_nonfinite, "gradwatch", tuple(alarms), True, 50)


def test_nonfinite_begins_at_the_first_sick_entry_and_names_its_tensors():
    proof = prove(claim("nonfinite"), bare([[1, 1]] * 4, nonfinite=[[0, 0], [0, 0], [0, 2], [3, 2]]))
    assert (proof.holds, proof.onset, proof.layers) == (True, 2, ("b",))
    assert not prove(claim("nonfinite"), bare([[1, 1]] * 4)).holds


def test_a_loss_that_is_nan_alone_is_nonfinite_too():
    proof = prove(claim("nonfinite"), bare([[1, 1]] * 3, losses=[1, np.nan, 1]))
    assert (proof.holds, proof.onset, proof.layers) == (True, 1, ("",))


@pytest.mark.parametrize(("losses", "holds"), [([1] * 6 + [100] * 6, True), ([1] * 6 + [0.5] * 6, False)])
def test_exploding_needs_growth_and_harm(losses, holds):
    rows = [[1, 1]] * 6 + [[12, 6]] * 6
    proof = prove(claim("exploding"), bare(rows, losses))
    assert proof.holds == holds
    if holds:
        assert (proof.onset, proof.layers) == (6, ("a", "b"))


def test_growth_that_begins_with_the_nan_is_no_explosion():
    counts = [[0, 0]] * 3 + [[1, 1]] * 3
    assert not prove(claim("exploding"), bare([[1, 1]] * 3 + [[99, 99]] * 3, nonfinite=counts)).holds


@pytest.mark.parametrize(("attainable", "holds"), [(0.1, True), (1.0, False)])
def test_vanishing_lasts_and_keeps_the_loss_from_what_a_cured_run_attains(attainable, holds):
    proof = prove(claim("vanishing", attainable=attainable), bare([[1, 1]] * 5 + [[1e-5, 1]] * 15))
    assert proof.holds == holds
    if holds:
        assert (proof.onset, proof.layers) == (5, ("a",))


def test_a_healthy_program_must_learn():
    falling = np.geomspace(1, 0.1, 40)
    assert prove(claim(None, falls_to=0.3), bare([[1, 1]] * 40, falling)).holds
    assert not prove(claim(None, falls_to=0.05), bare([[1, 1]] * 40, falling)).holds


def test_layers_of_a_label_narrow_what_the_proof_finds():
    rows = [[1e-5, 1e-5, 1]] * 20
    assert prove(claim("vanishing", layers=("b",)), bare(rows)).layers == ("b",)
    assert not prove(claim("vanishing", layers=("c",)), bare(rows)).holds


def test_a_verdict_is_judged_by_its_first_alarms():
    right = verdict("exploding", [("exploding", "a", 3), ("nonfinite", "b", 5)], onset=2, first_nonfinite=5)
    assert table.is_detected(right)
    assert table.is_right_kind(right)
    assert table.is_right_layer(right)
    assert table.leads(right)
    assert table.delay(right) == 1
    late = verdict("exploding", [("nonfinite", "a", 5), ("exploding", "b", 6)], first_nonfinite=5)
    assert table.is_detected(late)
    assert not table.is_right_kind(late)
    assert not table.is_right_layer(late)
    assert not table.leads(late)
    assert not table.is_detected(verdict("vanishing", [("exploding", "a", 1)]))
    assert table.is_right_kind(verdict("vanishing", [("stalled", "", 1)], also=("stalled",)))


def test_intervals_are_wilsons():
    assert table.rate([True] * 10) == "100.0% [72%–100%] (10/10)"
    assert table.rate([True, False]) == "50.0% [9%–91%] (1/2)"
    assert table.rate([]) == "–"


def test_tables_are_written_between_the_markers_alone(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"above\n{table.MARKERS[0]}\nold\n{table.MARKERS[1]}\nbelow\n")
    table.write("| new |", page)
    assert page.read_text() == f"above\n{table.MARKERS[0]}\n| new |\n{table.MARKERS[1]}\nbelow\n"
    page.write_text("no markers")
    with pytest.raises(ValueError, match="markers"):
        table.write("| new |", page)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["sigmoids_of_width_16", "one_bad_pixel", "rate_of_nothing", "ascends", "hinge_satisfied"]
)
def test_a_program_is_proven_and_judged(name):
    program = PROGRAMS[name]
    assert prove(program, run_bare(program, 0)).holds
    ours, silent = judge((name, 0, False))
    assert ours.is_proven
    if program.kind is None:
        assert ours.alarms == silent.alarms == ()
    else:
        assert table.is_right_kind(ours)
        assert table.is_right_layer(ours)


def test_both_halves_hold_sick_and_healthy_programs():
    halves = {(program.is_measured, program.kind is None) for program in PROGRAMS.values()}
    assert len(halves) == 4
    assert not any(fnmatch.fnmatch(name, "*[A-Z]*") for name in PROGRAMS)


OTHERS = [program for program in PROGRAMS.values() if program.half == "others"]


def test_every_pair_has_a_healthy_program_and_every_sick_one_a_cause():
    healthy_pairs = {program.pair for program in OTHERS if program.kind is None}
    assert healthy_pairs == {program.pair for program in OTHERS}
    assert all(program.cause for program in OTHERS if program.kind is not None)
    assert len([program for program in OTHERS if program.kind is not None]) >= 24


@pytest.mark.slow
@pytest.mark.parametrize("program", OTHERS, ids=lambda program: program.name)
def test_a_program_of_a_pair_runs_bare_for_three_steps(program):
    training = start(program, 0)
    first = dataclasses.replace(program, make=lambda seed: dataclasses.replace(program.make(seed), steps=3))
    measured = run_bare(first, 0, with_slopes=False)
    assert len(measured.loss) > 0  # more than 3 under several optimizers, fewer where a loss scaler skips updates
    assert training.score is not None
    patterns = [glob for glob in program.layers if not fnmatch.filter(measured.names, glob)]
    assert patterns == [], "a label names layers that the program has not"


def other(kind, **rest):
    return Program("p", lambda seed: None, kind, pair="p", reaches=0.5, **rest)


def scored(score, norms, **rest):
    return dataclasses.replace(bare(norms), score=score, **rest)


def test_a_healthy_program_of_a_pair_must_reach_its_score_without_nan():
    assert prove(other(None), scored(0.6, [[1, 1]] * 4)).holds
    assert not prove(other(None), scored(0.4, [[1, 1]] * 4)).holds
    assert not prove(other(None), scored(np.nan, [[1, 1]] * 4)).holds
    assert not prove(other(None), scored(0.6, [[1, 1]] * 4, loss=np.array([1, np.nan, 1, 1]))).holds


def test_a_sick_program_of_a_pair_must_miss_it_and_show_its_kind():
    tiny = [[1, 1]] + [[1e-5, 1]] * 7
    proof = prove(other("vanishing", layers=("*",)), scored(0.1, tiny))
    assert (proof.holds, proof.layers) == (True, ("a",))
    assert prove(other("vanishing"), scored(0.1, tiny)).layers == ("",)
    assert not prove(other("vanishing"), scored(0.6, tiny)).holds
    assert not prove(other("vanishing", layers=("b",)), scored(0.1, tiny)).holds
    still = np.array([[0.0, 1e-2]] * 8)
    assert prove(other("stalled", layers=("a", "b")), scored(0.1, tiny, change=still)).layers == ("a",)
    assert prove(other("exploding"), scored(0.1, [[1, 1]] * 4 + [[200, 1]] * 4)).holds
    assert not prove(other("exploding"), scored(0.1, [[1, 1]] * 4 + [[20, 1]] * 4)).holds
    assert prove(other("unstable"), scored(0.1, [[1, 1]] * 14, loss=np.array([1.0, 9.0] * 7))).holds
    assert prove(other("nonfinite"), scored(np.nan, [[1, 1]] * 4)).holds
    flat = {(("a",), 0): np.array([0.9] * 8), (("b",), 0): np.array([0.1] * 8)}
    assert prove(other("saturated", layers=("a",)), scored(0.1, tiny, flat=flat)).holds
    assert not prove(other("saturated", layers=("b",)), scored(0.1, tiny, flat=flat)).holds
