"""Show a change as a person would write it: as a diff of the user's own functions, where that can be had.

Two kinds of changes can be written so: another activation function in ``make_model``, and another rate in
``make_optimizer`` or ``configure_optimizers``. The edited ``make_model`` is executed, and shown only if its model has
the modules that the trial's had.
"""

from __future__ import annotations

import ast
import difflib
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from gradwatch.explain.replica import as_it_was
from gradwatch.prescription.problem import Problem, copy_loss
from gradwatch.prescription.treatments import Treatment, code_of
from gradwatch.prescription.trial_program import TrialProgram

__all__ = ["own_change"]

_CONTEXT = 1
"""Unchanged lines around a change that a diff shows."""

_ACTIVATION = re.compile(r"replace_activations_\(model, x, nn\.(\w+\(.*\))\)")
_MADE = re.compile(
    r"\b((?:torch\.)?nn\.)(?:Sigmoid|Tanh|ReLU6?|LeakyReLU|ELU|CELU|SELU|GELU|SiLU|Mish|Softplus|Softsign|Hardtanh"
    r"|Hardsigmoid|Hardswish|LogSigmoid|PReLU|Tanhshrink)\([^()]*\)"
)
_FACTOR = re.compile(r'group\["lr"\] \*= ([\d.]+)')
_CYCLE = re.compile("Cycl")  # OneCycleLR and CyclicLR set rates of their own: those of the optimizer do not count
_RATE = re.compile(r"\blr=(\d[\d.]*(?:e[+-]?\d+)?)\b")


@dataclass(frozen=True)
class _Source:
    """The source of a function of the user, with the line of its file at which it begins."""

    function: Callable[..., Any]
    text: str
    file: str
    line: int


def own_change(problem: Problem, treatments: Sequence[Treatment]) -> str:
    """Return a diff of the user's functions and, below, what of the change has to be pasted; empty where none is had.

    Args:
        problem: what was trained.
        treatments: the change.
    """
    diffs, left = [], []
    for treatment in treatments:
        diff, rest = _as_diff(problem, treatment)
        diffs += [diff] if diff else []
        left += [rest] if rest is not None else []
    if not diffs:
        return ""
    return "\n\n".join([*diffs, code_of(tuple(left))]).rstrip()


def _as_diff(problem: Problem, treatment: Treatment) -> tuple[str, Treatment | None]:
    """Return (a diff, what it leaves of the treatment), or ("", the treatment)."""
    lines = treatment.change.lines
    if match := _ACTIVATION.search(lines):
        diff = _diff_of_activation(problem, treatment, match[1])
        rest = _ACTIVATION.sub("", lines).strip()
    elif match := _FACTOR.search(lines):
        diff, rest = _diff_of_rate(problem, float(match[1])), ""
    else:
        return "", treatment
    if not diff:
        return "", treatment
    if not rest:
        return diff, None
    functions = tuple(name for name in treatment.change.functions if f"{name}(" in rest)
    return diff, replace(treatment, change=replace(treatment.change, lines=rest, functions=functions))


def _diff_of_activation(problem: Problem, treatment: Treatment, made: str) -> str:
    source = _source_of(problem.make_model)
    if source is None or not _is_plain_definition(source.text):
        return ""
    edited = _MADE.sub(rf"\g<1>{made}", source.text)
    if edited == source.text or not _makes_what_the_trial_had(problem, treatment, source, edited):
        return ""
    return _diff(source, edited)


def _is_plain_definition(text: str) -> bool:
    """Return whether the text defines one function or class and does nothing else: it is going to be executed."""
    try:
        (statement,) = ast.parse(textwrap.dedent(text)).body
    except (SyntaxError, ValueError):
        return False
    return isinstance(statement, ast.FunctionDef | ast.ClassDef) and not statement.decorator_list


def _makes_what_the_trial_had(problem: Problem, treatment: Treatment, source: _Source, edited: str) -> bool:
    """Return whether the edited function makes a model of the same modules as the trial's code did."""
    try:
        with as_it_was():
            program = TrialProgram(problem.fresh_model(), problem.training[:1], copy_loss(problem.loss_fn), [treatment])
            known = _names_of(source.function)
            exec(compile(textwrap.dedent(edited), source.file, "exec"), known)
            return _modules_of(known[source.function.__name__]()) == _modules_of(program.model)
    except Exception:  # the source stands in a context that is not here
        return False


def _names_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return a copy of the names that a function or class sees where it was defined."""
    if inspect.isclass(function):
        return {**vars(sys.modules[function.__module__])}
    return {**getattr(function, "__globals__", {}), **inspect.getclosurevars(function).nonlocals}


def _modules_of(model: nn.Module) -> list[str]:
    return [repr(module) for module in model.modules() if not [*module.children()]]


def _diff_of_rate(problem: Problem, factor: float) -> str:
    source = _source_of(problem.make_optimizer or getattr(problem.make_model, "configure_optimizers", None))
    rates = [] if source is None else _RATE.findall(source.text)
    if source is None or _CYCLE.search(source.text) or len(rates) != 1 or _rates_of(problem) != {float(rates[0])}:
        return ""
    return _diff(source, _RATE.sub(f"lr={float(rates[0]) * factor:g}", source.text))


def _rates_of(problem: Problem) -> set[float]:
    with as_it_was():
        optimizer = problem.fresh_optimizer(problem.fresh_model(), copy_loss(problem.loss_fn))
    return {float(group["lr"]) for group in optimizer.param_groups}


def _source_of(function: Callable[..., Any] | None) -> _Source | None:
    """Return the source of a function or class; None where there is none, as in an interactive session."""
    if function is None:
        return None
    try:
        lines, line = inspect.getsourcelines(function)
        file = inspect.getsourcefile(function) or ""
    except (OSError, TypeError):
        return None
    return _Source(function, "".join(lines), Path(file).name, max(line, 1))


def _diff(source: _Source, edited: str) -> str:
    """Return the changed lines with one unchanged line around each, below the place where the function begins."""
    before, after = source.text.splitlines(), edited.splitlines()
    lines = difflib.unified_diff(before, after, lineterm="", n=_CONTEXT)
    shown = [line for line in lines if not line.startswith(("---", "+++", "@@"))]
    return "\n".join([f"{source.file}, from line {source.line}:", *shown])
