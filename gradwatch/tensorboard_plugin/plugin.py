"""Serve the tab: routes, and what they refuse.

Run and layer names come from event files and from the address bar: they are looked up among those that exist, and sent
as JSON. No file is opened by a name that was asked for.
"""

from __future__ import annotations

import logging
import mimetypes
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tensorboard import plugin_util
from tensorboard.backend.http_util import Respond
from tensorboard.plugins import base_plugin
from werkzeug import wrappers

from gradwatch.event_files import format
from gradwatch.event_files.decode import LARGEST_STEP, UnreadableError
from gradwatch.tensorboard_plugin import answers, is_local
from gradwatch.tensorboard_plugin.cached_run import ArrayCache, CachedRun
from gradwatch.tensorboard_plugin.file_events import FileEvents
from gradwatch.tensorboard_plugin.histograms import on_one_axis
from gradwatch.tensorboard_plugin.provider import ProviderEvents, RunKey, TagVersion
from gradwatch.tensorboard_plugin.statistics import STATISTICS
from gradwatch.tensorboard_plugin.wire import packed_array, plain_json

__all__ = ["GradWatchPlugin"]

STATIC = Path(__file__).parent / "static"
MOST_CELLS = 4_096  # wider than any screen

_logger = logging.getLogger("gradwatch")


class GradWatchPlugin(base_plugin.TBPlugin):  # type: ignore[misc] # TensorBoard ships no types
    """The plugin that TensorBoard calls."""

    plugin_name = format.PLUGIN

    def __init__(self, context: base_plugin.TBContext) -> None:
        self._events, self._cache = _events_of(context), ArrayCache()

    def get_plugin_apps(self) -> dict[str, Any]:
        """Return the answers by route; static files are those that exist now, each with a route of its own."""
        questions = (
            *(self._runs, self._overview, self._findings, self._cells, self._course),
            *(self._curve, self._profile, self._entries),
        )
        files = (path for path in STATIC.rglob("*") if path.is_file())
        return {
            **{f"/{question.__name__.strip('_')}": _app(question) for question in questions},
            **{f"/static/{path.relative_to(STATIC).as_posix()}": _static(path) for path in files},
        }

    def is_active(self) -> bool:
        """Return whether files hold something of gradwatch's.

        TensorBoard itself looks for tags of ``plugin_name``, too, among those that it has loaded.
        """
        return isinstance(self._events, FileEvents) and bool(self._events.versions())

    def frontend_metadata(self) -> base_plugin.FrontendMetadata:
        return base_plugin.FrontendMetadata(es_module_path="/static/index.js", tab_name="GradWatch")

    def _runs(self, request: wrappers.Request) -> list[dict[str, Any]]:
        """Return the runs that hold something of gradwatch's: name, seconds since the last write, and a version.

        The version changes once something was added.
        """
        return [_listed(name, tags) for name, tags in sorted(self._versions(request).items())]

    def _overview(self, request: wrappers.Request) -> dict[str, Any]:
        return answers.overview_of(self._run(request))

    def _findings(self, request: wrappers.Request) -> dict[str, Any]:
        return answers.findings_of(self._run(request))

    def _cells(self, request: wrappers.Request) -> bytes:
        return packed_array(*answers.cells_of(self._run(request), _statistic(request), *_stretch(request)))

    def _course(self, request: wrappers.Request) -> bytes:
        return packed_array(*answers.course_of(self._run(request), *_stretch(request)))

    def _curve(self, request: wrappers.Request) -> bytes:
        run = self._run(request)
        return packed_array(*answers.curve_of(run, _statistic(request), _layer(request, run), *_stretch(request)))

    def _profile(self, request: wrappers.Request) -> bytes:
        step = _number(request, "step", LARGEST_STEP)
        return packed_array(*answers.profile_of(self._run(request), _statistic(request), step))

    def _entries(self, request: wrappers.Request) -> bytes:
        """Return histograms of a layer's entries over time; none where none was logged."""
        run, kind = self._run(request), _one_of(request, "kind", ("grad", "weight"))
        tag = f"{kind}/{_layer(request, run)}"
        events = self._events.tensors(self._key(request), tag, plugin="histograms")
        steps, axis, shares = on_one_axis(events, tag)
        return packed_array({"steps": steps, "axis": axis}, shares)

    def _versions(self, request: wrappers.Request) -> dict[str, dict[str, TagVersion]]:
        return self._events.versions(plugin_util.context(request.environ), plugin_util.experiment_id(request.environ))

    def _key(self, request: wrappers.Request) -> RunKey:
        context, experiment = plugin_util.context(request.environ), plugin_util.experiment_id(request.environ)
        return RunKey(context, experiment, request.args.get("run", ""))

    def _run(self, request: wrappers.Request) -> CachedRun:
        versions = self._versions(request)
        name = _one_of(request, "run", versions)
        return CachedRun(self._events, self._cache, self._key(request), versions[name])


def _events_of(context: base_plugin.TBContext) -> FileEvents | ProviderEvents:
    """Read the files themselves where TensorBoard was given one directory of this machine; else ask TensorBoard."""
    others = ProviderEvents(context)
    return FileEvents(Path(context.logdir), others) if is_local(context.logdir) else others


def _listed(name: str, tags: dict[str, TagVersion]) -> dict[str, Any]:
    written = max(tag.last_wall_time for tag in tags.values())
    last_step = max(tag.last_step for tag in tags.values())
    age = min(max(0.0, time.time() - written), 1e12)  # a hostile file may name any time
    return {"run": name, "age": age, "version": f"{written} {last_step} {len(tags)}"}


def _app(question: Callable[[wrappers.Request], Any]) -> Any:
    """Return an app that sends bytes as they are, and anything else as JSON, errors too."""

    @wrappers.Request.application
    def answer(request: wrappers.Request) -> wrappers.Response:
        code, content = 200, None
        try:
            content = question(request)
        except _BadRequestError as error:
            code, content = 400, {"error": str(error)}
        except UnreadableError as error:
            code, content = 422, {"error": str(error)}
        except Exception as error:
            _logger.exception("gradwatch: the GradWatch tab could not answer %s", request.path)
            code = 500
            content = {"error": f"{type(error).__name__} while reading this run. TensorBoard's own output says more."}
        if isinstance(content, bytes):
            return Respond(request, content, "application/octet-stream", code)
        return Respond(request, plain_json(content), "application/json", code)

    return answer


def _static(path: Path) -> Any:
    content_type = "text/javascript" if path.suffix == ".js" else mimetypes.guess_type(path.name)[0] or "text/plain"

    @wrappers.Request.application
    def serve(request: wrappers.Request) -> wrappers.Response:
        return Respond(request, path.read_bytes(), content_type)

    return serve


class _BadRequestError(Exception):
    """The error of an address that holds something else than the front end asks for, or a run that is gone."""


def _one_of(request: wrappers.Request, name: str, known: Any) -> str:
    value = str(request.args.get(name, ""))
    if value not in known:
        raise _BadRequestError(f"{name}: {value!r} is not there (any more). Choose another.")
    return value


def _statistic(request: wrappers.Request) -> str:
    return _one_of(request, "statistic", STATISTICS)


def _layer(request: wrappers.Request, run: CachedRun) -> str:
    return _one_of(request, "layer", set(run.table.layers))


def _stretch(request: wrappers.Request) -> tuple[int, int, int]:
    """Return (first step, last step, most cells)."""
    start, end = _number(request, "from", LARGEST_STEP), _number(request, "to", LARGEST_STEP)
    return start, max(start, end), max(1, _number(request, "width", MOST_CELLS))


def _number(request: wrappers.Request, name: str, most: int) -> int:
    value = str(request.args.get(name, ""))
    if not (value.isascii() and value.isdigit() and len(value) < 20 and int(value) <= most):
        raise _BadRequestError(f"{name}: expected a whole number from 0 to {most:,}, found {value!r}.")
    return int(value)
