"""Rows and findings as TensorBoard event files.

Written through a ``SummaryWriter``, the user's own or the Lightning logger's where there is one: two live event files
in one directory freeze TensorBoard. One ``Summary`` holds all of a row's values, which costs a tenth of
``add_scalar`` for each.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.util.tensor_util import make_tensor_proto
from torch.utils.tensorboard import SummaryWriter

from gradwatch.findings import Finding
from gradwatch.report import Floats
from gradwatch.sinks import Row
from gradwatch.sinks.log import logger

__all__ = ["LAYER_TAGS", "PLUGIN", "TensorBoard"]

LAYER_TAGS = (
    "grad_norm",
    "weight_norm",
    "update_ratio",
    "grad_max",
    "grad_mean",
    "grad_std",
    "grad_zero_fraction",
    "weight_std",
)
"""Per-layer scalars that ``layer_scalars`` may name."""

PLUGIN = "gradwatch"
FINDINGS_TAG = "gradwatch/findings"
_HISTOGRAM_BINS = 64


class TensorBoard:
    """Scalars ``<statistic>/<parameter>``, totals, histograms, and findings as text.

    Beside the scalars each row holds one packed tensor ``gradwatch/grad_norm`` of shape (3, P): the norm at this step
    and its highest and lowest since the last row. Its first event carries the layer names.

    Args:
        where: a directory, or a ``SummaryWriter`` that stays its owner's (flushed, never closed). A directory that
            already holds event files is left alone: its first free ``run_2``, ``run_3``, … is written, said in one
            line, unless ``continues`` was set.
        layer_scalars: which of ``LAYER_TAGS`` to write; True for all, False for none.

    Attributes:
        continues: the run goes on from a checkpoint, in the directory where it began. Files open at the first write.

    Raises:
        ValueError: for a name that is not in ``LAYER_TAGS``.
    """

    def __init__(self, where: str | Path | SummaryWriter, layer_scalars: bool | Sequence[str] = LAYER_TAGS[:3]) -> None:
        self._tags = layer_tags(layer_scalars)
        self.continues = False
        self._directory = None if isinstance(where, SummaryWriter) else Path(where)
        self._writer = where if isinstance(where, SummaryWriter) else None
        self._described = False

    def write_row(self, row: Row) -> None:
        report = row.report
        values = [Summary.Value(tag=tag, simple_value=value) for tag, value in self._scalars(row)]
        values.append(self._packed("gradwatch/grad_norm", np.stack([report.grad_norm, row.highest, row.lowest]), row))
        values += [_histogram(tag, entries) for tag, entries in _histograms(row)]
        self._open()._get_file_writer().add_summary(Summary(value=values), report.step)

    def write_finding(self, finding: Finding, ended: bool) -> None:
        self._open().add_text(
            FINDINGS_TAG, _in_words(finding, ended), finding.last_step if ended else finding.raised_step
        )
        self.flush()  # what a killed process had not flushed is lost

    def flush(self) -> None:
        if self._writer is not None:
            self._writer.flush()

    def close(self) -> None:
        self.flush()
        if self._writer is not None and self._directory is not None:
            self._writer.close()

    def _open(self) -> SummaryWriter:
        if self._writer is None:
            assert self._directory is not None
            directory = self._directory if self.continues else _without_run(self._directory)
            self._writer = SummaryWriter(str(directory))
        return self._writer

    def _scalars(self, row: Row) -> Iterator[tuple[str, float]]:
        report = row.report
        which = f"/optimizer_{report.optimizer}" if report.optimizer else ""  # a GAN's totals are two curves
        yield f"grad_norm_total{which}", report.grad_norm_total
        yield f"grad_norm_clipped_total{which}", report.grad_norm_clipped_total
        yield "skipped_steps", row.skipped_steps
        for statistic in self._tags:
            figure = report.grad_norm if statistic == "grad_norm" else row.figures.get(statistic)
            if figure is None:
                continue
            shown = report.measured & (~np.isnan(figure) | (report.nonfinite > 0))
            for column in np.flatnonzero(shown):
                yield f"{statistic}/{report.layers[column]}", float(figure[column])

    def _packed(self, tag: str, rows: Floats, row: Row) -> Summary.Value:
        metadata = None
        if not self._described:
            self._described = True
            names = "\n".join(row.report.layers).encode()
            metadata = SummaryMetadata(
                plugin_data=SummaryMetadata.PluginData(plugin_name=PLUGIN, content=names),
                data_class=2,  # DATA_CLASS_TENSOR
            )
        with np.errstate(over="ignore"):  # a norm of float64 entries beyond float32 is Inf here
            packed = make_tensor_proto(rows.astype(np.float32))
        return Summary.Value(tag=tag, tensor=packed, metadata=metadata)


def _without_run(directory: Path) -> Path:
    """``directory``, or the first of its numbered subdirectories that holds no run: two would draw one zigzag curve."""
    numbered = (directory / f"run_{number}" for number in itertools.count(2))
    free = next(each for each in itertools.chain([directory], numbered) if not list(each.glob("*tfevents*")))
    if free != directory:
        logger.warning("gradwatch: %s already holds a run; this one is written to %s.", directory, free)
    return free


def layer_tags(layer_scalars: bool | Sequence[str]) -> tuple[str, ...]:
    """The tags that ``layer_scalars`` names.

    Raises:
        ValueError: for a name that is not in ``LAYER_TAGS``.
    """
    if isinstance(layer_scalars, bool):
        return LAYER_TAGS if layer_scalars else ()
    named = (layer_scalars,) if isinstance(layer_scalars, str) else tuple(layer_scalars)
    if unknown := [name for name in named if name not in LAYER_TAGS]:
        raise ValueError(f"layer_scalars: {unknown[0]!r} is none of {', '.join(LAYER_TAGS)}; True writes all of them.")
    return named


def _histograms(row: Row) -> Iterator[tuple[str, Floats]]:
    for kind, samples in row.report.entries.items():
        for name, sample in zip(row.report.layers, samples, strict=True):
            if sample is not None and len(finite := sample[np.isfinite(sample)]):
                yield f"{kind}/{name}", finite.astype(float)


def _histogram(tag: str, entries: Floats) -> Summary.Value:
    counts, edges = np.histogram(entries, bins=_HISTOGRAM_BINS)
    value = Summary.Value(tag=tag)
    value.histo.min, value.histo.max, value.histo.num = entries.min(), entries.max(), len(entries)
    value.histo.sum, value.histo.sum_squares = entries.sum(), np.square(entries).sum()
    value.histo.bucket_limit.extend(edges[1:])
    value.histo.bucket.extend(counts)
    return value


def _in_words(finding: Finding, ended: bool) -> str:
    """Markdown; names stand in backticks, so that they are never markup."""
    layer = f"`{finding.layer.replace('`', '')}`" if finding.layer else "the whole run"
    if ended:
        return f"**{finding.kind}** in {layer} ended: steps {finding.step} to {finding.last_step}."
    remedies = "".join(f"\n* {remedy}" for remedy in finding.remedies)
    return (
        f"**{finding.kind}** ({finding.severity}) in {layer} since step {finding.step}\n\n{finding.message}\n\n"
        f"Cause: {finding.cause}.\n\nWhat to try:\n{remedies}"
    )
