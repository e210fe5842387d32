"""Write rows and findings as TensorBoard event files.

Written through a ``SummaryWriter``, the user's own or the Lightning logger's where there is one: two live event files
in one directory freeze TensorBoard. One ``Summary`` holds all of a row's values, which costs a tenth of
``add_scalar`` for each.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import tensorboard.plugins.hparams.metadata  # noqa: F401 (which hparams() would load as the run ends)
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.util.tensor_util import make_tensor_proto
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import custom_scalars, hparams, text

from gradwatch import _torch
from gradwatch.event_files import format
from gradwatch.event_files.run import Coverage, Environment
from gradwatch.findings import Finding
from gradwatch.hooks.logger import logger
from gradwatch.measure.report import Floats, StepReport
from gradwatch.ranks.process import elastic_run, is_restarted
from gradwatch.sinks import Row, is_update
from gradwatch.sinks.disk import sync_file, sync_folder
from gradwatch.sinks.jsonl import json_of
from gradwatch.sinks.locked_directory import locked
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
_HEAD = 40  # bytes of an event file's first record: the version of its format and the time
_VERSION = b"brain.Event:"  # which that record holds
_FLUSH_SECONDS = 5  # a view that follows the run is behind by no more; torch's own default is 120
_MOST_LINES = 8  # of a chart of "Custom Scalars"; more cannot be told apart
_TOTAL_CHARTS = {
    "total gradient norm, before and after clipping": "^grad_norm_(clipped_)?total(/optimizer_[1-3])?$",
    "loss": "^loss(/optimizer_[1-7])?$",
    "learning rate": "^learning_rate(/group_[0-6])?$",
    "learning rate of further optimizers": "^learning_rate/optimizer_[1-7]$",
}
_LAYER_CHARTS = {"grad_norm": "gradient norm", "update_ratio": "update ratio", "weight_norm": "weight norm"}


class TensorBoard:
    """A sink that writes scalars of the whole run, packed rows, histograms, findings, and scalars of layers on request.

    For readers that draw all layers at once, each row holds float32 tensors of the plugin ``gradwatch``, with a
    column per layer in order of registration; their rows are named in ``gradwatch.event_files.format``.
    ``gradwatch/grad_norm`` is (3, P), ``gradwatch/band`` (2, P), ``gradwatch/<name>``, (P,), is each of
    ``format.PACKED_FIGURES`` measured since the last row, and ``gradwatch/totals`` (9,), what concerns the whole run.
    ``gradwatch/layers`` is a string, the table as JSON ``{"layers", "depth", "size"}``, written whenever it changed.
    ``gradwatch/finding`` is a string, a finding as JSON with ``"ended"``: as it opens, as it goes on, and as it ends.
    ``gradwatch/coverage`` is a string, how much was measured as JSON ``{"steps", "measured"}``, where that is not all,
    with ``"unjudged"``, ``[{"kind", "rule", "steps"}]``, where rules have failed; what comes last counts.
    ``gradwatch/environment`` is a string, what the run is made with as JSON ``{"versions", "devices", "commit",
    "script"}``, written first. ``gradwatch/end`` is a string, written at ``close`` as JSON ``{"steps"}``, with
    ``"lost"``, ``{"row": 2, "finding": 1}``, where not all could be written.
    Steps are made unique because TensorBoard keeps one event per tag and step.
    A directory of its own also gets a layout for the tab "Custom Scalars", and at ``close`` the kinds that were found
    as an entry of "HParams".

    Args:
        where: a directory, or a ``SummaryWriter`` that stays its owner's (flushed, never closed). A directory that
            already holds event files is left alone: its first free ``run_2``, ``run_3``, … is written, said in one
            line, unless ``continues`` was set, or ``torchrun`` has started this very run again.
        layer_scalars: which of ``LAYER_TAGS`` to write; True for all, False for none.
        fsync: whether findings and what was flushed are on the disk, and survive a loss of power, in files of this
            machine; what the system was handed survives the end of the process in any case.

    A file that somebody deletes while it is written is missed at the next flush. A directory of its own then gets
    another one, which says by itself what its tags are, and holds all since the flush before. At ``close`` the run says
    how many rows and findings were lost.

    Attributes:
        continues: the run goes on from a checkpoint, in the directory where it began. Files open at the first write.
        opened: the directory that was written, once one was.
        shares_thread: the writer is the loop's own, which calls it, too.

    Raises:
        ValueError: for a name that is not in ``LAYER_TAGS``.
    """

    _run: Path | None  # chosen once: it holds files of ours if the writer has to be opened again
    _unflushed: list[tuple[Summary, int]]
    _described: set[str]  # tags whose first event, with its metadata, is written
    _table: tuple[tuple[str, ...], bytes] | None
    _last_finding_step: int
    _laid_out: tuple[str, ...] | None  # the layers of the layout that was written last
    _kinds: dict[str, None]  # of all findings, in order of their first
    _coverage: Coverage | None
    _steps: int  # attempted updates, as far as it is known
    _lost: dict[str, int]  # what could not be written
    _deleted: Counter[str]  # what was written, and is gone with its file
    _safe: Counter[str]  # what was flushed to the files that are there
    _heads: dict[str, bytes]  # path of each file that was opened → how it begins
    _environment: Summary.Value | None  # as it was flushed last
    _layers: Summary.Value | None  # likewise, the table
    _flushed_at: float

    def __init__(
        self, where: str | Path | SummaryWriter, layer_scalars: bool | Sequence[str] = False, fsync: bool = False
    ) -> None:
        self._tags, self._fsync = layer_tags(layer_scalars), fsync
        self.continues, self.shares_thread = False, isinstance(where, SummaryWriter)
        self.opened: Path | None = None
        # absolute: the program may change its directory
        self._directory = None if isinstance(where, SummaryWriter) else Path(where).absolute()
        self._writer = where if isinstance(where, SummaryWriter) else None
        self._begin()

    def write_row(self, row: Row) -> None:
        report = row.report
        self._steps = max(self._steps, report.step + 1)
        if report.layers != self._laid_out and self._directory is not None:
            self._write(custom_scalars(_layout(self._tags, report.layers)), report.step)
            self._laid_out = report.layers
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
        if is_new:
            self._write(text("gradwatch/findings", _in_words(finding)), step)
        if is_new or ended:
            self.flush()  # what a killed process had not flushed is lost

    def write_coverage(self, coverage: Coverage) -> None:
        self._steps = max(self._steps, coverage.steps)
        if coverage.is_whole:
            return  # a run without it was measured whole
        self._coverage = coverage
        with self._knowing_only_what_was_written():
            content = json_of(coverage.as_dict())
            self._write(Summary(value=[self._tensor("gradwatch/coverage", content)]), max(0, coverage.steps - 1))

    def write_lost(self, lost: Mapping[str, int]) -> None:
        self._lost = dict(lost)  # the mark of the end says it

    def write_environment(self, environment: Environment) -> None:
        with self._knowing_only_what_was_written():
            self._write(Summary(value=[self._tensor("gradwatch/environment", json_of(asdict(environment)))]), 0)

    def flush(self) -> None:
        if self._writer is None:
            return
        try:
            self._writer.flush()
            self._make_sure(self._writer)
            if not self._is_in_its_file(self._writer):
                self._writer = self._begin_another_file(self._writer)
        except Exception:
            self._abandon()
            raise
        if self._fsync:
            _sync(Path(self._writer.log_dir))
        self._note_what_is_safe()
        self._flushed_at = time.monotonic()

    def close(self) -> None:
        if self._directory is None:
            self._write_end()
            self.flush()
        else:
            self._close_own()

    def _close_own(self) -> None:
        """Close our own writer, and forget the run: what comes later is of another."""
        try:
            self._write_end()  # opens again what a fault has closed
            if (writer := self._writer) is not None:
                self._write_verdict(writer)
                self.flush()
                writer.close()
                if self._fsync:
                    _sync(Path(writer.log_dir))
        finally:
            self._writer = None
            self._begin()
            self.continues = False

    def _begin(self) -> None:
        self._run = None
        self._unflushed = []
        self._described = set()
        self._table = None
        self._last_finding_step = -1
        self._laid_out = None
        self._kinds = {}
        self._coverage = None
        self._steps = 0
        self._lost = {}
        self._deleted, self._safe = Counter(), Counter()
        self._heads = {}
        self._environment = self._layers = None
        self._flushed_at = time.monotonic()

    @contextlib.contextmanager
    def _knowing_only_what_was_written(self) -> Iterator[None]:
        """Forget at a fault that the table and the metadata of a tag were written; a new file says them anew."""
        self._open_or_abandon()
        described, table = set(self._described), self._table
        try:
            yield
        except Exception:
            self._described, self._table = described, table
            raise

    def _write(self, summary: Summary, step: int) -> None:
        """Hand ``summary`` to the writer, and keep it until it was flushed: a writer that fails has lost some."""
        writer = self._open_or_abandon()
        try:
            _torch.file_writer_of(writer).add_summary(summary, step)
        except Exception:
            self._abandon()
            raise
        self._unflushed.append((summary, step))
        if len(self._unflushed) >= _MOST_UNFLUSHED or self._is_behind():
            self.flush()

    def _make_sure(self, writer: SummaryWriter) -> None:
        """Raise what TensorBoard's thread has met while it wrote.

        A flush may return between the fault and the moment at which that thread tells of it. An empty record that is
        flushed after that is either written or told of.
        """
        _torch.file_writer_of(writer).add_event(Event())
        writer.flush()

    def _is_in_its_file(self, writer: SummaryWriter) -> bool:
        """Return False where the event file was deleted: TensorBoard opens it for each record, and so makes another."""
        path = _torch.event_file_of(writer)
        head = _head_of(path)
        return not head or head == self._heads.setdefault(path, head)

    def _begin_another_file(self, writer: SummaryWriter) -> SummaryWriter:
        """Return a writer where what was flushed is gone, and with it what the tags are; it holds what came since."""
        path = _torch.event_file_of(writer)
        logger.warning(
            "gradwatch: %s was deleted while the run was writing to it: what it held is lost. What comes from now on "
            "can be read.", path,
        )  # fmt: skip
        if self._directory is None:  # its owner's, who alone may close it
            self._count_deleted()
            self._write_unflushed_anew(writer)
        else:
            self._abandon()
            if _VERSION not in _head_of(path):  # what is in it comes again
                Path(path).unlink(missing_ok=True)
            writer = self._open()
        self._make_sure(writer)
        return writer

    def _count_deleted(self) -> None:
        """Count what was flushed as lost where a file that holds some of it is gone; begin to count anew."""
        gone = [path for path, head in self._heads.items() if _head_of(path) != head]
        if gone:
            self._deleted += self._safe
            self._safe.clear()
            self._heads = {path: head for path, head in self._heads.items() if path not in gone}

    def _is_behind(self) -> bool:
        """Return whether to flush a writer of the user's, which may keep rows for minutes. Ours flushes by itself."""
        return self._directory is None and time.monotonic() - self._flushed_at > _FLUSH_SECONDS

    def _abandon(self) -> None:
        """Let go of our own writer, whose thread has ended at a fault of the disk; the next write opens another."""
        if self._directory is None:
            return
        writer, self._writer = self._writer, None
        if writer is not None:
            with contextlib.suppress(Exception):
                writer.close()

    def _write_end(self) -> None:
        """Write that the run was closed, if anything was written of it."""
        if not self._described:
            return
        with self._knowing_only_what_was_written():
            all_lost = self._deleted + Counter(self._lost)
            lost = {"lost": dict(all_lost)} if all_lost else {}
            content = self._tensor("gradwatch/end", json_of({"steps": self._steps, **lost}))
            self._write(Summary(value=[content]), max(0, self._steps - 1))

    def _write_verdict(self, writer: SummaryWriter) -> None:
        """Write one entry of the hyperparameters' table; in a writer of the user's own it would be one too many."""
        coverage = self._coverage or Coverage(0, 0)
        words = [", ".join(self._kinds) or "nothing found"]
        words += [f"{coverage.unmeasured} steps not measured"] if coverage.unmeasured else []
        words += [coverage.unjudged_in_words()] if coverage.unjudged else []
        verdict = {"gradwatch": "; ".join(words)}
        for summary in hparams(verdict, {"grad_norm_total": 0.0}):
            _torch.file_writer_of(writer).add_summary(summary)

    def _open_or_abandon(self) -> SummaryWriter:
        try:
            return self._open()
        except Exception:
            self._abandon()
            raise

    def _open(self) -> SummaryWriter:
        if self._writer is None:
            assert self._directory is not None
            with locked(self._directory):  # another run may look for a free place now, too
                if self._run is None:
                    self._run = (self.opened or self._directory) if self.continues else _run_to_write(self._directory)
                self._writer = SummaryWriter(str(self._run), flush_secs=_FLUSH_SECONDS, filename_suffix=_suffix())
            self.opened = self._run
            self._count_deleted()
            path = _torch.event_file_of(self._writer)
            self._heads[path] = _head_of(path)
            self._write_unflushed_anew(self._writer)
        return self._writer

    def _write_unflushed_anew(self, writer: SummaryWriter) -> None:
        """Have a file that is opened again say by itself what its tags are: the one before may be deleted."""
        self._described.clear()
        self._table = self._laid_out = None
        self._name_layers()
        for value in self._unflushed_values():
            if value.tag.startswith(format.PREFIX) and value.HasField("tensor"):
                value.metadata.CopyFrom(_METADATA)
                self._described.add(value.tag)
        file = _torch.file_writer_of(writer)
        if self._environment is not None:
            file.add_summary(Summary(value=[self._environment]), 0)
        for summary, step in self._unflushed:
            file.add_summary(summary, step)

    def _name_layers(self) -> None:
        """Have the first row that comes again hold the table of its layers, which an earlier one has held."""
        if self._layers is None:
            return
        for summary, _ in self._unflushed:
            tags = {value.tag for value in summary.value}
            if "gradwatch/grad_norm" in tags:
                if "gradwatch/layers" not in tags:
                    summary.value.append(self._layers)
                return

    def _unflushed_values(self) -> list[Summary.Value]:
        return [value for summary, _ in self._unflushed for value in summary.value]

    def _note_what_is_safe(self) -> None:
        """Count what was flushed, and keep what another file would have to begin with."""
        for value in self._unflushed_values():
            if value.tag == "gradwatch/grad_norm":
                self._safe["row"] += 1
            elif value.tag == "gradwatch/findings/text_summary":
                self._safe["finding"] += 1
            elif value.tag == "gradwatch/environment":
                self._environment = value
            elif value.tag == "gradwatch/layers":
                self._layers = Summary.Value(tag=value.tag, tensor=value.tensor, metadata=_METADATA)
        self._unflushed.clear()

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
    """Yield the largest rate, and that of each group where there are a few, with the end of its tag.

    Where each layer has a group of its own, the largest says enough: nobody has asked for a chart of each layer.
    """
    if report.learning_rate is not None:
        yield "", report.learning_rate
    if 1 < len(report.learning_rates) < _MOST_LINES:
        yield from ((f"/group_{group}", rate) for group, rate in enumerate(report.learning_rates))


def _layout(tags: Sequence[str], layers: Sequence[str]) -> dict[str, dict[str, list[str | list[str]]]]:
    """Return the charts of the tab "Custom Scalars", of at most ``_MOST_LINES`` lines: title → patterns of tags."""
    charts = {title: [pattern] for title, pattern in _TOTAL_CHARTS.items()}
    for tag, title in _LAYER_CHARTS.items():
        for start in range(0, len(layers) if tag in tags else 0, _MOST_LINES):
            some = layers[start : start + _MOST_LINES]
            charts[f"{title}, layers {start + 1} to {start + len(some)}"] = [
                f"^{re.escape(f'{tag}/{layer}')}$" for layer in some
            ]
    return {"gradwatch": {title: ["Multiline", patterns] for title, patterns in charts.items()}}


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


def _head_of(path: str) -> bytes:
    """Return the first bytes of an event file; none where it is not there or lies where only TensorBoard looks."""
    try:
        with open(path, "rb") as file:
            return file.read(_HEAD)
    except OSError:
        return b""


def _sync(directory: Path) -> None:
    """Have the event files of a directory on the disk, of which there are several where a run went on."""
    for path in directory.glob("*tfevents*"):
        sync_file(path)
    sync_folder(directory)


def _suffix() -> str:
    """Return how the names of our files end: with the run of ``torchrun``, which may have to go on in them."""
    return f".{run}" if (run := elastic_run()) else ""


def _run_to_write(directory: Path) -> Path:
    """Return where to write: where this run was written before ``torchrun`` started it again, else a free place."""
    if is_restarted() and (suffix := _suffix()):
        name = f"*tfevents*{suffix}"
        if earlier := [*directory.glob(name), *directory.glob(f"run_*/{name}")]:
            return max(earlier, key=lambda path: path.stat().st_mtime_ns).parent
    return _without_run(directory)


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


def _in_words(finding: Finding) -> str:
    """Return a short card in Markdown; names are in backticks, so that they are never markup.

    How long a finding lasts, its neighbours and the other remedies are in the GradWatch tab.
    """
    layer = f"`{finding.layer.replace('`', '')}`" if finding.layer else "the whole run"
    lines = [f"**{finding.kind}** ({finding.severity}) in {layer} since step {finding.step}", finding.measured]
    if finding.cause:
        lines.append(f"Why: {finding.cause}")
    lines += [f"Done: {action}" for action in finding.actions]
    if finding.remedies:
        first = finding.remedies[0]
        lines.append(f"Try first: {first.text} (`{first.name}`)")
    return "\n\n".join(lines)
