"""Make texts from event files safe to print: anyone may have written them, and a terminal obeys some characters."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from gradwatch.event_files.decode import UnreadableError
from gradwatch.event_files.run import Environment, FindingEvent, LayerTable
from gradwatch.findings import Advice

__all__ = ["legible", "legible_environment", "legible_event", "legible_name", "legible_table"]

_LONGEST = 2_000  # characters of one text; findings write a few hundred


def legible(text: str) -> str:
    """Return ``text`` without what would move a cursor, turn the direction of reading, or fill the screen."""
    if text.isprintable() and len(text) <= _LONGEST:  # most often, and much sooner
        return text
    shown = "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)
    return shown if len(shown) <= _LONGEST else shown[:_LONGEST] + "…"


def legible_name(name: str) -> str:
    """Return the name of a layer as ``legible`` would, but so that two names do not become alike."""
    if name.isprintable() and len(name) <= _LONGEST:
        return name
    shown = "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in name)
    if len(shown) <= _LONGEST:
        return shown
    return f"{shown[:_LONGEST]}…{hashlib.sha256(shown.encode()).hexdigest()[:8]}"


def legible_table(table: LayerTable) -> LayerTable:
    """Return ``table`` with legible names.

    Raises:
        UnreadableError: if two of them become alike, which gradwatch never writes.
    """
    names = tuple(map(legible_name, table.layers))
    if len(set(names)) < len(names):
        raise UnreadableError("gradwatch/layers: a name is there twice.")
    return replace(table, layers=names)


def legible_environment(environment: Environment) -> Environment:
    """Return ``environment`` with legible texts."""
    return Environment(
        versions={legible(name): legible(version) for name, version in environment.versions.items()},
        devices=legible(environment.devices),
        commit=legible(environment.commit),
        script=legible(environment.script),
    )


def legible_event(event: FindingEvent) -> FindingEvent:
    """Return ``event`` with legible texts."""
    finding = event.finding
    return replace(
        event,
        finding=replace(
            finding,
            layer=legible_name(finding.layer),
            layers=tuple(map(legible_name, finding.layers)),
            cause=legible(finding.cause),
            measured=legible(finding.measured),
            figure=legible(finding.figure),
            actions=tuple(map(legible, finding.actions)),
            remedies=tuple(Advice(legible(each.name), legible(each.text)) for each in finding.remedies),
        ),
    )
