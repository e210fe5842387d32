"""Measure how often gradwatch names the module that made a NaN, and why, beside two other tools.

``python -m benchmarks.why [--write]`` runs every program of ``benchmarks/origins`` (proven there by plain hooks, by
someone who had not seen what gradwatch says), of ``tests/explain/test_origin.py``, and every ``nonfinite`` program of
``benchmarks/detection`` (with the truths in ``KNOWN``, read off the code). Each runs three times: under the default,
which runs the step again, under ``trace_nonfinite=True`` alone (as where an update cannot wait), and under neither
(compiled, sharded). The other tools are anomaly mode, which names a line of Python and is right if it names the
operation, and ``DebugUnderflowOverflow`` of Hugging Face.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

import gradwatch
from benchmarks.detection import faulty  # noqa: F401 - registers the programs
from benchmarks.detection.bare import start
from benchmarks.detection.program import PROGRAMS, Training
from benchmarks.origins import ORIGINS, Truth, is_measured
from tests.explain import test_origin

LOSS, INPUT, BETWEEN = "(loss)", "(input)", "(between calls)"

KNOWN: dict[str, tuple[str, str]] = {
    "deep_relu_started_too_large": ("20", "beyond the largest float32"),
    "log_of_a_difference": (LOSS, "log,"),
    "root_of_zero": (LOSS, "sqrt"),
    "one_bad_pixel": (INPUT, "rows"),
    "masked_row_of_attention": ("attend", "masked entirely"),
    "one_corrupt_weight": ("4", "4.weight already held"),
    "half_precision_overflows": (LOSS, "tocopy"),
    "relu_as_probabilities": (LOSS, "log,"),
    "binary_cross_entropy_of_logits": (LOSS, "log,"),
    "where_hides_a_division_by_zero": (BETWEEN, "between the two"),
    "variational_autoencoder_on_raw_pixels": ("encoder.2", "beyond the largest float32"),
    "softmax_by_hand": (LOSS, "exp"),
    "adam_in_half_precision": ("0", "0.weight already held"),
    "log_sum_exp_without_a_shift": (LOSS, "exp"),
    "poisson_rate_overflows": (LOSS, "exp"),
    "divergence_from_hard_labels": (LOSS, "mul"),
    "padding_masked_by_a_product": (LOSS, "log"),
    "variance_rectified_to_zero": (LOSS, "div"),
    "temperature_annealed_to_zero": (LOSS, "div"),
    "same_item_on_both_sides": (LOSS, "sqrt"),
    "group_lasso_on_a_pruned_row": ("2", "penalty"),
    "cosine_of_a_blank_image": (LOSS, "div"),
    "weight_norm_of_zeros": ("2.parametrizations.weight.0", "_weight_norm"),
    "angle_reaches_zero": (LOSS, "acos"),
    "squashed_actions_inverted": (LOSS, "loss made of them is not"),
    "generalised_mean_of_negatives": (BETWEEN, "computed outside every module"),
    "root_behind_a_where": (BETWEEN, "between the two"),
    "mean_over_an_empty_mask": (BETWEEN, "computed outside every module"),
    "every_label_ignored_in_one_batch": (LOSS, "nllloss"),
    "constant_pixels_standardised": (INPUT, "rows"),
    "batch_norm_by_hand_without_epsilon": ("2", "0 ÷ 0"),
    "deviation_of_a_last_batch_of_one": (BETWEEN, "computed outside every module"),
    "advantages_of_equal_rewards": (LOSS, "div"),
    "root_mean_square_of_padding": (BETWEEN, "computed outside every module"),
    "isolated_node_of_a_graph": (BETWEEN, "computed outside every module"),
    "left_padding_under_a_causal_mask": ("", "masked entirely"),
    "attention_scores_in_float16": ("", "beyond the largest float16"),
    "transcript_longer_than_its_frames": (LOSS, "ctcloss"),
    "loss_scale_doubles_without_a_check": ("2", "beyond the largest float16"),
    "noise_drawn_in_float16": (BETWEEN, "computed outside every module"),
    "gradients_underflow_in_float16": ("0", "0.weight already held"),
    "nan_image_through_batch_norm": (INPUT, "rows"),
    "target_of_minus_infinity": (LOSS, "mseloss"),
    "missing_labels_masked_by_a_product": (LOSS, "mul"),
    "weight_of_a_deep_layer_corrupt": ("blocks.4.1", "blocks.4.1.weight already held"),
    "corrupt_embedding_row_met_late": ("0", "0.weight already held"),
    "auxiliary_branch_fails_late": (LOSS, "sqrt"),
    "one_expert_of_four_overflows": (INPUT, "already held"),
    "adam_without_epsilon": ("0", "0.weight already held"),
    "schedule_starts_at_infinity": ("0", "0.weight already held"),
    "logarithm_of_raw_logits": (LOSS, "log,"),
    "where_after_the_division": (LOSS, "div"),
    # of tests/explain/test_origin.py, which has the module beside each program
    "log of a negative number": ("2", "the logarithm of -"),
    "log of zero": ("2", "the logarithm of"),
    "square root of a negative number": ("2", "the square root of -"),
    "division of zero by zero": ("2", "0 ÷ 0"),
    "exponential that overflows": ("2", "the exponential of 100"),
    "Inf made, NaN two modules on": ("2", "the exponential of 100"),
    "softmax over a masked row": ("2", "masked entirely"),
    "power of a negative number": ("2", "a power of -"),
    "overflow of float16": ("2", "beyond the largest float16"),
    "in place, under a rectifier": ("4", "the logarithm of 0"),
    "in a residual branch": ("2.branch.1", "the logarithm of -"),
    "corrupt weight": ("2", "2.weight already held"),
    "corrupt weight, last": ("4", "4.weight already held"),
    "normalised by a spread of zero": ("2", "0 ÷ 0"),
    "loss of a logarithm": (LOSS, "log"),
    "loss divided by zero": (LOSS, "div"),
    "square root at zero, backward": ("2", "derivative of sqrt"),
    "norm written by hand at zero, backward": ("2", "derivative of sqrt"),
    "where after the division, backward": ("2", "derivative of div"),
    "atan2 at the origin, backward": ("2", "derivative of sqrt"),
    "power at zero, backward": ("2", "derivative of pow"),
    "gradient of the loss alone": (LOSS, "sqrt"),
}
"""Program to (module, a word that its cause must hold). No module is to blame where the loop computes between calls."""

Counts = dict[str, list[int]]
"""What was judged to [right, all]."""

WORDS = {
    LOSS: ("the loss made of them is not", "outside every module"),
    INPUT: ("was given already held NaN or Inf, in ",),
    BETWEEN: ("computed outside every module", "made between the two"),
}


OF_CAUSE = {
    "log": "logarithm|log1p|derivative of log",
    "sqrt": "square root|derivative of sqrt|derivative of norm",
    "division": "÷ 0|÷ the square root|division by 0|std of|derivative of div",
    "exp": "exponential|derivative of exp",
    "softmax": "masked entirely",
    "norm": "norm of entries",
    "pow": "a power of|derivative of pow",
    "acos": "acos",
    "overflow": "beyond the largest|the exponential of|cosh of",
    "diverged": "had diverged before",
    "loss scale": "beyond the largest float16|had diverged before: its loss grew",
}
"""From a cause, as ``benchmarks.origins`` calls it, to a pattern of what gradwatch says of it."""


@dataclass(frozen=True)
class Case:
    """A program and the truth about it.

    Attributes:
        name, make: as registered.
        group: where the truth comes from, and whether anything was tuned on the program.
        module: that made the NaN or Inf, or LOSS, INPUT, BETWEEN.
        words: pattern that the cause must match.
    """

    name: str
    make: Callable[[], Training]
    group: str
    module: str
    words: str


def cases() -> Iterator[Case]:
    """Yield every program of known origin."""
    for name, (make, truth) in ORIGINS.items():
        group = "origins, measured half" if is_measured(name) else "origins, half tuned on"
        place = {"loss": LOSS, "input": INPUT, "between": BETWEEN}.get(truth.place, truth.module)
        yield Case(name, lambda make=make: _seeded(make), group, place, _words_of(truth))
    for name, (module, word) in KNOWN.items():
        start_it = (
            (lambda name=name: start(PROGRAMS[name], 0)) if name in PROGRAMS else lambda name=name: _of_tests(name)
        )
        yield Case(name, start_it, "detection and tests", module, re.escape(word))


def _words_of(truth: Truth) -> str:
    if truth.cause == "input":
        return f"in {len(truth.rows)} of .* rows: {', '.join(map(str, truth.rows))}"
    if truth.cause == "weight":
        return f"{re.escape(truth.weight)} already held"
    if truth.cause == "derivative":
        return f"derivative of {truth.operation.replace('_', '').lower()}"
    return OF_CAUSE[truth.cause]


def _seeded(make: Callable[[int], Training]) -> Training:
    torch.manual_seed(0)
    np.random.seed(0)
    return make(0)


def _of_tests(name: str) -> Training:
    torch.manual_seed(0)
    make, loss_of, _, _ = test_origin.PROGRAMS[name]
    model, x = make(), torch.randn(8, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)

    def step(_: int, observe: Callable[[torch.Tensor], None]) -> None:
        optimizer.zero_grad()
        loss = loss_of(model(x))
        observe(loss)
        loss.backward()
        optimizer.step()

    return Training(model, [optimizer], 2, step)


def said_by_gradwatch(training: Training, how: str) -> str:
    """Return the cause of the first ``nonfinite`` finding."""
    with gradwatch.watch(training.model, training.optimizers, trace_nonfinite=how == "trace") as watcher:
        if how != "default":
            watcher._loop.origins.replay.remove()  # as where an update cannot wait for it
            watcher._loop.origins.replay = None
        for number in range(training.steps):
            training.step(number, watcher.observe_loss)
            found = [finding for finding in watcher.findings if finding.kind == "nonfinite"]
            if found:
                return found[0].cause
    return ""


def said_by_anomaly_mode(training: Training) -> str:
    """Return the first line of the error; ``""`` if the run ends without one."""
    with torch.autograd.set_detect_anomaly(True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(training.steps):
            try:
                training.step(number, lambda _: None)
            except RuntimeError as error:
                return str(error).splitlines()[0]
    return ""


def said_by_debug_underflow_overflow(training: Training) -> str:
    """Return the last frame of its report: the call in which it first saw NaN or Inf."""
    from transformers.debug_utils import DebugUnderflowOverflow

    models = [training.model] if isinstance(training.model, nn.Module) else list(training.model.values())
    printed = io.StringIO()
    cannot_read = NotImplementedError  # a mask of booleans
    with contextlib.redirect_stdout(printed), contextlib.suppress(ValueError, cannot_read):
        tools = [DebugUnderflowOverflow(model) for model in models]
        for number in range(training.steps):
            training.step(number, lambda _: None)
        return "" if tools else "no module"
    heads = [line for line in printed.getvalue().splitlines() if line.startswith(" " * 18)]
    return heads[-1] if heads else ""


def names_module(cause: str, module: str) -> bool:
    """Tell whether an observed ``cause`` blames what is known to be at fault."""
    if module in WORDS:
        return any(words in cause for words in WORDS[module])
    title = re.escape(module or "the model itself")
    written = rf"(made|into) [\d,]+ entr(y|ies) of {title}\.\w+ (NaN or Inf|since)"
    if re.search(written, cause) is not None:  # of its weight, by an update, or by something else
        return True
    given = "was given (finite values|Inf|finite gradients)"
    return re.match(rf"observed: (the backward pass of )?{title} \([^)]*\) {given}", cause, re.IGNORECASE) is not None


def names_inferred(cause: str, module: str) -> bool:
    """Tell whether an inferred ``cause`` names the place among the layers, or the loss."""
    if "made by the loss, or" in cause:
        return module == LOSS or f", or by {module};" in cause
    if (maker := re.search("made between the two, by ([^;]*);", cause)) is not None:
        return maker[1] == (module or "the model itself")
    return module == BETWEEN or f" {module}." in cause


def names_operation(said: str, words: str) -> bool:
    """Tell whether an error about ``LogBackward0`` names the operation: any word of the pattern, as in torch."""
    names = {
        "logarithm": "log",
        "square root": "sqrt",
        "÷ 0": "div",
        "exponential": "exp",
        "masked entirely": "softmax",
    }
    spelt = [names.get(each, each.split()[-1]) for each in words.replace("\\", "").split("|")]
    return any(each.strip(",").lower() in said.lower() for each in spelt)


def judge_gradwatch(case: Case, how: str, counts: Counts, *, prints: bool) -> None:
    """Count whether gradwatch names module and cause of one program."""
    cause = said_by_gradwatch(case.make(), how)
    title = f"{case.group}: gradwatch, {how}"
    if "made in the forward pass, or by the loss" in cause or "the module that made it was not seen" in cause:
        _add(counts, f"{title}: module said to be unknown", True)
        return
    is_observed = cause.lower().startswith("observed")
    names = names_module if is_observed else names_inferred
    has_module = names(cause, case.module)
    has_cause = re.search(case.words, cause, re.IGNORECASE) is not None
    _add(counts, f"{title}, {'observed' if is_observed else 'inferred'}: module", has_module)
    _add(counts, f"{title}: cause", has_cause)
    if prints and not (has_module and has_cause):
        print(f"{case.name} [{case.module}, {case.words}], {how}: {cause}")


def judge_rivals(case: Case, counts: Counts) -> None:
    """Count whether the other tools name module or operation of one program."""
    said = said_by_anomaly_mode(case.make())
    _add(counts, f"{case.group}: anomaly mode: module", False)
    _add(counts, f"{case.group}: anomaly mode: operation or cause", names_operation(said, case.words))
    said = said_by_debug_underflow_overflow(case.make())
    right = case.module not in WORDS and f" {case.module} " in f"{said} "
    _add(counts, f"{case.group}: DebugUnderflowOverflow: module", right)


def main() -> None:
    """Print the table; ``--write`` puts it into ``benchmarks/results/why.md``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--tell", action="store_true", help="print what was said wrongly")
    arguments = parser.parse_args()
    logging.getLogger("gradwatch").setLevel(logging.CRITICAL)
    torch.set_num_threads(1)
    counts: Counts = {}
    for case in cases():
        for how in ("default", "trace", "neither"):
            judge_gradwatch(case, how, counts, prints=arguments.tell and how != "trace")
        judge_rivals(case, counts)
    lines = ["| what was named | right |", "|---|---|"]
    lines += [f"| {what} | {right}/{total} ({right / total:.0%}) |" for what, (right, total) in sorted(counts.items())]
    print("\n".join(lines))
    if arguments.write:
        path = Path(__file__).parent / "results" / "why.md"
        path.parent.mkdir(exist_ok=True)
        title = f"{len(KNOWN) + len(ORIGINS)} programs of known origin, seed 0, torch {torch.__version__}."
        path.write_text("\n".join([title, "", *lines, ""]))


def _add(counts: Counts, what: str, right: bool) -> None:
    tally = counts.setdefault(what, [0, 0])
    tally[0] += right
    tally[1] += 1


if __name__ == "__main__":
    main()
