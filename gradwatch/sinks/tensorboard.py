"""Write rows and findings as TensorBoard event files.

Written through a ``SummaryWriter``, the user's own or the Lightning logger's where there is one: two live event files
in one directory freeze TensorBoard. One ``Summary`` holds all of a row's values, which costs a tenth of
``add_scalar`` for each.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.util.tensor_util import make_tensor_proto
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams, text

from gradwatch import _torch
from gradwatch.event_files import format
from gradwatch.findings import Finding
from gradwatch.hooks.logger import logger
from gradwatch.measure.report import Floats, StepReport
from gradwatch.sinks import Row, is_update
from gradwatch.sinks.jsonl import json_of
from gradwatch.sinks.tags import layer_tags

__all__ = ["TensorBoard"]

_METADATA = SummaryMetadata(
    plugin_data=SummaryMetadata.PluginData(
        plugin_name=format.PLUGIN, content=json_of({"version": format.VERSION}).encode()
    ),
    data_class=2,  # DATA_CLASS_TENSOR
)
_HISTOGRAM_BINS = 64
_MOST_UNFLUSHED = 64  # summaries that are kept until they are safe
_TOTAL_CHARTS = {
    "total gradient norm, before and after clipping": "^grad_norm_(clipped_)?total",
    "loss": "^loss",
    "learning rate": "^learning_rate",
}
_LAYER_CHARTS = {
    "grad_norm": "gradient norm of each layer",
    "update_ratio": "update ratio of each layer",
    "weight_norm": "weight norm of each layer",
}


class TensorBoard:
    """A sink that writes scalars of the whole run, packed rows, histograms, findings, and scalars of layers on request.

    For readers that draw all layers at once, each row holds float32 tensors of the plugin ``gradwatch``, with a
    column per layer in order of registration; their rows are named in ``gradwatch.event_files.format``.
    ``gradwatch/grad_norm`` is (3, P), ``gradwatch/band`` (2, P), ``gradwatch/<name>``, (P,), is each of
    ``format.PACKED_FIGURES`` measured since the last row, and ``gradwatch/totals`` (9,), what concerns the whole run.
    ``gradwatch/layers`` is a string, the table as JSON ``{"layers", "depth", "size"}``, written whenever it changed.
    ``gradwatch/finding`` is a string, a finding as JSON with ``"ended"``: as it opens, as it goes on, and as it ends.
    Steps are made unique because TensorBoard keeps one event per tag and step.
    A directory of its own also gets a layout for the tab "Custom Scalars", and at ``close`` the kinds that were found
    as an entry of "HParams".

    Args:
        where: a directory, or a ``SummaryWriter`` that stays its owner's (flushed, never closed). A directory that
            already holds event files is left alone: its first free ``run_2``, ``run_3``, … is written, said in one
            line, unless ``continues`` was set.
        layer_scalars: which of ``LAYER_TAGS`` to write; True for all, False for none.

    Attributes:
        continues: the run goes on from a checkpoint, in the directory where it began. Files open at the first write.
        opened: the directory that was written, once one was.

    Raises:
        ValueError: for a name that is not in ``LAYER_TAGS``.
    """

    def __init__(self, where: str | Path | SummaryWriter, layer_scalars: bool | Sequence[str] = False) -> None:
        self._tags = layer_tags(layer_scalars)
        self.continues = False
        self.opened: Path | None = None
        # absolute: the program may change its directory
        self._directory = None if isinstance(where, SummaryWriter) else Path(where).absolute()
        self._run: Path | None = None  # chosen once: it holds files of ours if the writer has to be opened again
        self._unflushed: list[tuple[Summary, int]] = []
        self._writer = where if isinstance(where, SummaryWriter) else None
        self._described: set[str] = set()  # tags whose first event, with its metadata, is written
        self._table: tuple[tuple[str, ...], bytes] | None = None
        self._last_finding_step = -1
        self._kinds: dict[str, None] = {}  # of all findings, in order of their first

    def write_row(self, row: Row) -> None:
        report = row.report
        with self._knowing_only_what_was_written():
            values = [Summary.Value(tag=tag, simple_value=value) for tag, value in self._scalars(row)]
            values += [self._tensor(tag, content) for tag, content in self._tensors(row)]
            values += [_histogram(tag, entries) for tag, entries in _histograms(row)]
            self._write(Summary(value=values), report.step)

    def write_finding(self, finding: Finding, ended: bool) -> None:
        self._kinds[finding.kind] = None
        is_new = not ended and not is_update(finding, ended)
        step = max(self._last_finding_step + 1, finding.raised_step if is_new else finding.last_step)
        self._last_finding_step = step
        with self._knowing_only_what_was_written():
            content = self._tensor("gradwatch/finding", json_of({**finding.as_dict(), "ended": ended}))
            self._write(Summary(value=[content]), step)
        if is_new or ended:
            self._write(text("gradwatch/findings", _in_words(finding, ended)), step)
            self.flush()  # what a killed process had not flushed is lost

    def flush(self) -> None:
        if self._writer is None:
            return
        try:
            self._writer.flush()
        except Exception:
            self._abandon()
            raise
        self._unflushed.clear()

    def close(self) -> None:
        if self._writer is not None and self._directory is not None:
            self._write_verdict(self._writer)
            self._writer.close()
            self._writer = None
        self.flush()

    @contextlib.contextmanager
    def _knowing_only_what_was_written(self) -> Iterator[None]:
        """Forget at a fault that the table and the metadata of a tag were written."""
        described, table = set(self._described), self._table
        try:
            yield
        except Exception:
            self._described, self._table = described, table
            raise

    def _write(self, summary: Summary, step: int) -> None:
        """Hand ``summary`` to the writer, and keep it until it was flushed: a writer that fails has lost some."""
        try:
            _torch.file_writer_of(self._open()).add_summary(summary, step)
        except Exception:
            self._abandon()
            raise
        self._unflushed.append((summary, step))
        if len(self._unflushed) >= _MOST_UNFLUSHED:
            self.flush()

    def _abandon(self) -> None:
        """Let go of our own writer, whose thread has ended at a fault of the disk; the next write opens another."""
        if self._directory is None:
            return
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(Exception):
                writer.close()

    def _write_verdict(self, writer: SummaryWriter) -> None:
        """Write one entry of the hyperparameters' table; in a writer of the user's own it would be one too many."""
        verdict = {"gradwatch": ", ".join(self._kinds) or "nothing found"}
        for summary in hparams(verdict, {"grad_norm_total": 0.0}):
            _torch.file_writer_of(writer).add_summary(summary)

    def _open(self) -> SummaryWriter:
        if self._writer is None:
            assert self._directory is not None
            if self._run is None:
                self._run = self._directory if self.continues else _without_run(self._directory)
            self._writer = SummaryWriter(str(self._run))
            self.opened = self._run
            self._writer.add_custom_scalars(_layout(self._tags))
            for summary, step in self._unflushed:
                _torch.file_writer_of(self._writer).add_summary(summary, step)
        return self._writer

    def _scalars(self, row: Row) -> Iterator[tuple[str, float]]:
        report = row.report
        which = f"/optimizer_{report.optimizer}" if report.optimizer else ""  # a GAN's totals are two curves
        yield f"grad_norm_total{which}", report.grad_norm_total
        yield f"grad_norm_clipped_total{which}", report.grad_norm_clipped_total
        yield "skipped_steps", row.skipped_steps
        prefix = "" if self._directory is not None else format.PREFIX  # a writer's owner may have a "loss", too
        if report.loss is not None:
            yield f"{prefix}loss{which}", report.loss
        for group, rate in _rates(report):
            yield f"{prefix}learning_rate{which}{group}", rate
        for statistic in self._tags:
            figure = report.grad_norm if statistic == "grad_norm" else row.figures.get(statistic)
            if figure is None:
                continue
            shown = report.measured & (~np.isnan(figure) | (report.nonfinite > 0))
            for column in np.flatnonzero(shown):
                yield f"{statistic}/{report.layers[column]}", float(figure[column])

    def _tensors(self, row: Row) -> Iterator[tuple[str, Floats | str]]:
        report = row.report
        table = (report.layers, report.depth.tobytes())
        if table != self._table:
            self._table = table
            shape = {"layers": report.layers, "depth": report.depth.tolist(), "size": report.size.tolist()}
            yield "gradwatch/layers", json_of(shape)
        yield "gradwatch/grad_norm", np.stack([report.grad_norm, row.highest, row.lowest])
        yield "gradwatch/totals", _totals(row)
        if row.band is not None:
            yield "gradwatch/band", row.band
        figures = dict(row.figures)
        if (output := figures.get("saturated_output_share")) is not None:
            figures["saturated_share"] = np.fmax(figures.get("saturated_share", output), output)
        for name in format.PACKED_FIGURES:
            if name in figures:
                yield f"gradwatch/{name}", figures[name]

    def _tensor(self, tag: str, content: Floats | str) -> Summary.Value:
        if not isinstance(content, str):
            with np.errstate(over="ignore"):  # a norm of float64 entries beyond float32 is Inf here
                content = content.astype(np.float32)
        metadata = None if tag in self._described else _METADATA
        self._described.add(tag)
        return Summary.Value(tag=tag, tensor=make_tensor_proto(content), metadata=metadata)


def _rates(report: StepReport) -> Iterator[tuple[str, float]]:
    """Yield the largest rate, and that of each group where there are several, with the end of its tag."""
    if report.learning_rate is not None:
        yield "", report.learning_rate
    if len(report.learning_rates) > 1:
        yield from ((f"/group_{group}", rate) for group, rate in enumerate(report.learning_rates))


def _layout(tags: Sequence[str]) -> dict[str, dict[str, list[str | list[str]]]]:
    """Return the charts of the tab "Custom Scalars": title → kind and patterns of tags."""
    charts = {**_TOTAL_CHARTS, **{title: f"^{tag}/" for tag, title in _LAYER_CHARTS.items() if tag in tags}}
    return {"gradwatch": {title: ["Multiline", [pattern]] for title, pattern in charts.items()}}


def _totals(row: Row) -> Floats:
    """Return the entries of ``format.TOTALS``."""
    report = row.report
    loss = np.nan if report.loss is None else report.loss
    values = {
        "grad_norm_total": report.grad_norm_total,
        "highest_total": row.highest_total,
        "lowest_total": row.lowest_total,
        "grad_norm_clipped_total": report.grad_norm_clipped_total,
        "clipped_steps": row.clipped,
        "skipped_steps": row.skipped,
        "loss": loss if report.loss is None or np.isfinite(loss) else np.inf,  # NaN means that none was observed
        "optimizer": report.optimizer,
        "learning_rate": np.nan if report.learning_rate is None else report.learning_rate,
    }
    return np.array([values[name] for name in format.TOTALS], dtype=float)


def _without_run(directory: Path) -> Path:
    """Return ``directory``, or the first of its numbered subdirectories without a run: two would draw one zigzag."""
    numbered = (directory / f"run_{number}" for number in itertools.count(2))
    free = next(each for each in itertools.chain([directory], numbered) if not list(each.glob("*tfevents*")))
    if free != directory:
        logger.warning("gradwatch: %s already holds a run; this one is written to %s.", directory, free)
    return free


def _histograms(row: Row) -> Iterator[tuple[str, Floats]]:
    for kind, samples in row.report.entries.items():
        for name, sample in zip(row.report.layers, samples, strict=True):
            if sample is not None and len(finite := sample[np.isfinite(sample)]):
                yield f"{kind}/{name}", finite.astype(float)


def _histogram(tag: str, entries: Floats) -> Summary.Value:
    """Return the histogram of finite ``entries`` (N,) float64; sums that overflow are Inf there."""
    value = Summary.Value(tag=tag)
    value.histo.min, value.histo.max, value.histo.num = entries.min(), entries.max(), len(entries)
    with np.errstate(over="ignore", invalid="ignore"):
        value.histo.sum, value.histo.sum_squares = entries.sum(), np.square(entries).sum()
        edges = _edges(entries.min(), entries.max())
        value.histo.bucket.extend(np.histogram(entries, bins=edges)[0])
    value.histo.bucket_limit.extend(edges[1:])
    return value


def _edges(lowest: np.floating, highest: np.floating) -> Floats:
    """Return the edges of the bins; there is one bin where no float64 lies between them, or the range overflows."""
    width = highest - lowest
    if width == 0 and abs(lowest) < 2.0**52:
        lowest, highest = lowest - 0.5, highest + 0.5
    edges = np.linspace(lowest, highest, _HISTOGRAM_BINS + 1) if np.isfinite(width) else np.array([lowest, highest])
    if (np.diff(edges) > 0).all():
        return edges
    return np.array([np.nextafter(lowest, -np.inf), np.nextafter(highest, np.inf)])


def _in_words(finding: Finding, ended: bool) -> str:
    """Return Markdown; names are in backticks, so that they are never markup."""
    layer = f"`{finding.layer.replace('`', '')}`" if finding.layer else "the whole run"
    if ended:
        return f"**{finding.kind}** in {layer} ended: steps {finding.step} to {finding.last_step}."
    remedies = "".join(f"\n* {advice.text} (`{advice.name}`)" for advice in finding.remedies)
    return (
        f"**{finding.kind}** ({finding.severity}) in {layer} since step {finding.step}\n\n{finding.measured}\n\n"
        f"Cause: {finding.cause}\n\nWhat to try:\n{remedies}"
    )
