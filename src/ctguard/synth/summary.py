"""What a data set holds, and what was left out of it, with the reasons."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ctguard.core.records import Split, Task
from ctguard.synth.sites import Skipped

Cell = tuple[str, Task, Split]

_SPLITS: tuple[Split, ...] = ("train", "valid", "test")
_TASKS: tuple[Task, ...] = ("inject", "remove")
_SITES = "sites"


@dataclass(frozen=True)
class Summary:
    """Counts by (generator or "sites", task, split). generators: as they were asked for.

    scans: with a record; kept: of these, how many an earlier run had made. failed: scan_id and error of scans that
    could not be read or written. seconds: per stage of forging, summed over what this run forged.
    """

    generators: tuple[str, ...]
    counts: Mapping[Cell, int]
    scans: int
    skipped: tuple[Skipped, ...] = ()
    failed: tuple[tuple[str, str], ...] = ()
    kept: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)

    @property
    def forgeries(self) -> int:
        """Forged scans in all."""
        return sum(n for (name, _, _), n in self.counts.items() if name != _SITES)

    def count(self, generator: str, task: Task | None = None, split: Split | None = None) -> int:
        """Forged scans of a generator, or "sites"; of one task, of one split."""
        return sum(
            n
            for (name, one, part), n in self.counts.items()
            if name == generator and task in (None, one) and split in (None, part)
        )

    def rows(self) -> list[tuple[str, ...]]:
        """The table of counts, as cells of text; a split's cell holds injections and removals."""
        head = ("generator", "inject", "remove", "total", *(f"{split} (inject/remove)" for split in _SPLITS))
        return [head, *(self._row(name) for name in (*self.generators, _SITES))]

    def _row(self, name: str) -> tuple[str, ...]:
        split = ["/".join(str(self.count(name, task, part)) for task in _TASKS) for part in _SPLITS]
        return (name, *(str(self.count(name, task)) for task in _TASKS), str(self.count(name)), *split)

    def reasons(self) -> dict[str, int]:
        """How often what was the reason to leave out a site."""
        return dict(sorted(Counter(one.reason for one in self.skipped).items()))

    def to_json(self) -> dict[str, Any]:
        """What depends on the inputs alone: without seconds, and without what an earlier run made."""
        names = (*self.generators, _SITES)
        return {
            "scans": self.scans,
            "forgeries": self.forgeries,
            "counts": {
                name: {task: {part: self.count(name, task, part) for part in _SPLITS} for task in _TASKS}
                for name in names
            },
            "reasons": self.reasons(),
            "skipped": [vars(one) for one in self.skipped],
            "failed": [{"scan_id": scan, "error": error} for scan, error in self.failed],
        }


def summary_of(
    generators: tuple[str, ...], records: Iterable[Mapping[str, Any]], failed: Sequence[tuple[str, str]] = ()
) -> Summary:
    """Count the records of cases: their rows "forgeries" and "skipped"."""
    counts: Counter[Cell] = Counter()
    skipped: list[Skipped] = []
    scans = 0
    for record in records:
        scans += 1
        sites: set[str] = set()
        for row in record["forgeries"]:
            task, split = row["plan"]["task"], row["split"]
            counts[row["plan"]["generator"], task, split] += 1
            if row["site"] not in sites:
                sites.add(row["site"])
                counts[_SITES, task, split] += 1
        skipped += [Skipped(**one) for one in record["skipped"]]
    return Summary(generators, counts, scans, tuple(skipped), tuple(failed))
