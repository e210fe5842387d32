"""The two collections of sick programs: our own, and those that others wrote. Each has its results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.cures import forms, results
from benchmarks.cures.form import Named
from benchmarks.external.execute import Places


@dataclass(frozen=True)
class Collection:
    """Sick programs, and where it is written what was found out about them.

    Attributes:
        programs: returns them in the order in which they are worked on.
        searched: lines of JSON of the search for any cure.
        measured: lines of JSON of what ``prescribe`` ranks first, on fresh seeds.
    """

    programs: Callable[[], Sequence[Named]]
    searched: Path
    measured: Path

    def chosen(self, half: str) -> list[Named]:
        """Return the programs of a half: ``measured``, ``tune`` or ``all``."""
        return [each for each in self.programs() if half == "all" or each.is_measured == (half == "measured")]

    def curable(self, half: str) -> list[Named]:
        """Return the programs of a half for which the search found a cure, in the order in which it did."""
        by_name = {each.name: each for each in self.chosen(half)}
        return [
            by_name[name] for row in self.read_searched() if row.get("cure") and (name := row["program"]) in by_name
        ]

    def read_searched(self) -> list[dict[str, Any]]:
        """Return what the search has found so far."""
        return results.read(self.searched)

    def read_measured(self) -> list[dict[str, Any]]:
        """Return what was measured so far."""
        return results.read(self.measured)


_HERE = Path(__file__).parent

OWN = Collection(forms.programs, _HERE / "searched.jsonl", _HERE / "measured.jsonl")


def of_others(places: Places | None = None) -> Collection:
    """Return the programs that others wrote, run at ``places``; without places their results alone can be read."""

    def programs() -> Sequence[Named]:
        from benchmarks.external.forms import programs as sick_programs

        assert places is not None
        return sick_programs(places)

    return Collection(programs, _HERE / "searched_external.jsonl", _HERE / "measured_external.jsonl")
