"""``gradwatch replay``: run the step of a black box again, or show what its file holds."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gradwatch.views.replay import file_as_text, replay_as_text

if TYPE_CHECKING:
    from torch import nn

__all__ = ["command"]

UNREADABLE, UNREPLAYABLE = 3, 4


@click.command("replay")
@click.argument("file", metavar="FILE", type=click.Path(path_type=Path))
@click.option("--model", metavar="MODULE:CALLABLE", help="Builds the model, or a dict of models, as the run did.")
@click.option(
    "--loss",
    metavar="MODULE:CALLABLE",
    help="Computes the loss from (model, batch). Not needed where the model returns it, nor for Lightning.",
)
@click.option("--step", type=int, help="The step to run; without it, the one that failed.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON; numbers that are not finite are strings.")
def command(file: Path, model: str | None, loss: str | None, step: int | None, as_json: bool) -> None:
    """Run the failed step in FILE again, which gradwatch.watch(black_box=FILE) has written.

    It says whether the failure is reproducible or transient, which module and operation made it, which rows of the
    batch, and whether it still happens in float64, in eager mode, on the CPU, without autocast and without those rows.
    Modules are looked for in the current directory, too. Without --model it shows what FILE holds.

    \b
    Exit status:
      0  shown
      2  the command was used wrongly
      3  FILE cannot be read
      4  the step cannot be run again
    """  # noqa: D301 (click reads the backslash)
    from gradwatch.recover.black_box_file import BlackBoxFileError, read_black_box  # loads torch
    from gradwatch.recover.failed_step import UnreplayableError

    try:
        content = read_black_box(file)
        shown = _contents(content) if model is None else _replayed(content, model, loss, step)
    except BlackBoxFileError as error:
        _fail(str(error), UNREADABLE)
    except UnreplayableError as error:
        _fail(f"the step cannot be run again: {error}", UNREPLAYABLE)
    if as_json:
        click.echo(json.dumps(_without_nan(shown), indent=2 if sys.stdout.isatty() else None))
    else:
        click.echo(file_as_text(shown) if model is None else replay_as_text(shown))


def _fail(message: str, status: int) -> None:
    click.echo(f"gradwatch replay: {message}", err=True)
    raise click.exceptions.Exit(status)


def _contents(content: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the file holds, without the tensors."""
    steps = [
        {
            "step": step["step"],
            "loss": step["figures"].get("loss"),
            "grad_norm_total": step["figures"].get("grad_norm_total"),
            "learning_rates": step["figures"].get("learning_rates", []),
            "nonfinite": step["figures"].get("nonfinite", {}),
            "given": [_shapes([call["args"], call["kwargs"], call["identity"]]) for call in step["calls"]],
            "batches": [_shapes(kept["batch"]) for kept in step["batches"]],
        }
        for step in content["steps"]
    ]
    models = {name: described["type"] for name, described in content["models"].items()}
    state = {name: len(content["state"][name]) for name in ("weights", "buffers", "optimizers")}
    return {
        "reason": content["reason"],
        "step": content["target"],
        "steps": steps,
        "models": models,
        "state": {**state, "before_step": content["state_before"]},
        "about": content["about"],
    }


def _shapes(value: Any) -> Any:
    """Return ``value`` with a line in place of each tensor."""
    if hasattr(value, "shape"):
        return f"{str(value.dtype).removeprefix('torch.')} {tuple(value.shape)}"
    if isinstance(value, dict):
        return {str(key): _shapes(entry) for key, entry in value.items()}
    return [_shapes(entry) for entry in value] if isinstance(value, list | tuple) else _plain(value)


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str | None) else str(value)


def _replayed(content: Mapping[str, Any], model: str, loss: str | None, step: int | None) -> dict[str, Any]:
    from gradwatch.recover.failed_step import step_in
    from gradwatch.recover.step_replay import replay

    failed = step_in(content, step)
    models = _models_of(_imported(model, "--model")())
    loss_fn = None if loss is None else _imported(loss, "--loss")
    return {"reason": content["reason"], **replay(models, failed, loss_fn).as_dict()}


def _models_of(made: Any) -> dict[str, nn.Module]:
    from torch import nn

    models = dict(made) if isinstance(made, Mapping) else {"": made}
    for model in models.values():
        if not isinstance(model, nn.Module):
            raise click.BadParameter(f"it returned {type(model).__name__}; expected a module.", param_hint="--model")
    return models


def _imported(name: str, option: str) -> Callable[..., Any]:
    """Return the callable that ``module:callable`` names."""
    module, colon, path = name.partition(":")
    if not colon or not path:
        raise click.BadParameter(f"{name!r}: expected MODULE:CALLABLE, such as train:make_model.", param_hint=option)
    sys.path.insert(0, "")  # the current directory, where the user's modules are
    try:
        found: Any = importlib.import_module(module)
        for part in path.split("."):
            found = getattr(found, part)
    except ModuleNotFoundError as error:
        raise click.BadParameter(f"{name!r}: there is no module {error.name!r}.", param_hint=option) from error
    except AttributeError as error:
        raise click.BadParameter(f"{name!r}: {error}.", param_hint=option) from error
    finally:
        sys.path.remove("")
    if not callable(found):
        raise click.BadParameter(f"{name!r} is no callable.", param_hint=option)
    function: Callable[..., Any] = found
    return function


def _without_nan(value: Any) -> Any:
    """Return ``value`` with numbers that are not finite as strings, which JSON has no other form for."""
    if isinstance(value, float) and value - value != 0:
        return str(value)
    if isinstance(value, dict):
        return {str(key): _without_nan(entry) for key, entry in value.items()}
    return [_without_nan(entry) for entry in value] if isinstance(value, list | tuple) else value
