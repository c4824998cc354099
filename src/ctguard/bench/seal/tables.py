"""Tables of the seal over all scans, rates with exact intervals."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ctguard.bench.metrics import exact_share
from ctguard.bench.seal.measure import Measured
from ctguard.bench.seal.trials import Row
from ctguard.core.records import Table

Cells = dict[str, Any]
Line = tuple[str, str, list[Row]]

TITLES = {
    "digest": "The digest: cubes of 8 mm changed by 31 HU",
    "benign": "Benign operations",
    "size": "The pattern: smallest region, measured and predicted",
    "generators": "Forged sites of 32 mm",
    "informed": "Forgers who know the method, sites of 32 mm",
    "oracle": "A forger who asks verify",
    "whole": "What is done to whole scans",
    "null": "The null: other keys",
    "price": "Price",
}


@dataclass(frozen=True)
class SealResults:
    """Rows of all scans. missing: generators that have no weights. checkpoints: label to hash."""

    measured: Sequence[Measured]
    run_id: str
    missing: tuple[str, ...] = ()
    checkpoints: dict[str, str] | None = None

    def lines(self, table: str) -> list[Line]:
        """Rows of all scans by name and judge, in the order in which they were first measured."""
        rows = [row for scan in self.measured for row in scan.rows if row.table == table]
        order = list(dict.fromkeys((row.name, row.judge) for row in rows))
        return [(name, judge, [r for r in rows if (r.name, r.judge) == (name, judge)]) for name, judge in order]

    def table(self, name: str, rows: Iterable[Cells]) -> Table:
        """A table with the counts of all scans."""
        out = tuple(rows)
        columns = tuple(dict.fromkeys(column for row in out for column in row))
        n = {"patients": len({scan.patient for scan in self.measured}), "scans": len(self.measured)}
        return Table(TITLES[name], columns, out, n, self.run_id, self.checkpoints or {})


def _sum(rows: Sequence[Row], name: str) -> int:
    return int(sum(float(row.values[name]) for row in rows))


def _mean(rows: Sequence[Row], name: str) -> float:
    values = [float(row.values[name]) for row in rows if name in row.values]
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def _found(rows: Sequence[Row]) -> Cells:
    """Sites, misses with their rate, and regions away from all sites for 100 scans."""
    sites = _sum(rows, "sites")
    missed = sites - _sum(rows, "found")
    rate = exact_share(missed, sites) if sites else None
    return {"sites": sites, "missed": missed, "miss rate": rate, "false regions per 100 scans": _per_100(rows)}


def _per_100(rows: Sequence[Row]) -> float:
    return 100 * _sum(rows, "outside") / len(rows)


def _states(rows: Sequence[Row], name: str = "state") -> str:
    """The states that were told, and how often where they differ."""
    told = [str(row.values[name]) for row in rows if row.values.get(name)]
    counts = sorted(((told.count(state), state) for state in set(told)), reverse=True)
    return counts[0][1] if len(counts) == 1 else ", ".join(f"{state} {count}" for count, state in counts)


def found_table(results: SealResults, name: str) -> Table:
    """Digest, generators and informed forgers: misses by judge."""
    rows: list[Cells] = [
        {"what": what, "judged": judge, **_found(rows), "verdict": _states(rows)}
        for what, judge, rows in results.lines(name)
    ]
    if name == "generators":
        rows += [{"what": label, "judged": "no weights: not forged"} for label in results.missing]
    return results.table(name, rows)


def benign_table(results: SealResults) -> Table:
    """How often something that changes no content raised an alarm: any state but intact."""
    rows = []
    for what, judge, found in results.lines("benign"):
        alarms = sum(row.values["state"] != "intact" for row in found)
        cells: Cells = {"operation": what, "judged": judge, "alarms": exact_share(alarms, len(found))}
        told = _states(found)
        rows.append({**cells, "verdict": told, "regions per 100 scans": _per_100(found), "gain": _mean(found, "gain")})
    return results.table("benign", rows)


def size_table(results: SealResults) -> Table:
    """Regions of the pattern by size, and how many of them their evidence predicts to be found."""
    rows = []
    for size, judge, found in results.lines("size"):
        cells = _found(found)
        predicted = exact_share(cells["sites"] - _sum(found, "predicted"), cells["sites"]) if cells["sites"] else None
        cells = {**cells, "predicted miss rate": predicted, "sigmas": _mean(found, "sigmas")}
        rows.append({"size": size, "judged": judge, **cells})
    return results.table("size", rows)


def oracle_table(results: SealResults) -> Table:
    """How much of a change a forger gets past `verify` when he bisects."""
    rows = []
    for what, judge, found in results.lines("oracle"):
        cells: Cells = {"forger": what, "judged": judge, "sites": _sum(found, "sites")}
        most = max(float(row.values["most"]) for row in found)
        cells |= {"passes, HU": _mean(found, "passed"), "most, HU": most, "wanted, HU": _mean(found, "wanted")}
        rows.append(cells)
    return results.table("oracle", rows)


def whole_table(results: SealResults) -> Table:
    """Verdicts on whole scans, and with one site of 32 mm replaced besides."""
    rows = [
        {"what": what, "judged": judge, "verdict": _states(found), "with a forged site": _states(found, "forged")}
        for what, judge, found in results.lines("whole")
    ]
    return results.table("whole", rows)


def null_table(results: SealResults) -> Table:
    """False regions of scans sealed again with other keys, and how far evidence by a strange key spreads."""
    rows: list[Cells] = []
    for what, judge, found in results.lines("null"):
        cells: Cells = {"what": what, "judged": judge, "keys": len(found)}
        if "outside" in found[0].values:
            scans = sum(float(row.values["share"]) for row in found)
            regions = _sum(found, "outside")
            cells |= {"whole scans": scans, "regions": regions, "false regions per 100 scans": 100 * regions / scans}
            cells["verdict"] = _states(found)
        else:
            cells["SD of sigmas, scan"] = float(np.std([float(row.values["sigmas"]) for row in found]))
            cells["SD of sigmas, tile"] = _mean(found, "tile sd")
        rows.append(cells)
    return results.table("null", rows)


def price_table(results: SealResults) -> Table:
    """What the pattern adds, the mean and the worst scan."""
    rows: list[Cells] = []
    found = [row for _, _, rows_ in results.lines("price") for row in rows_]
    for name, words in (
        ("max", "max |d|, HU"),
        ("sd", "SD of d where it is, HU"),
        ("lung", "95th percentile of SD of d over local noise, lung"),
        ("soft tissue", "the same, soft tissue"),
        ("other", "the same, all else of the body"),
        ("restored", "restored to the last bit, share of scans"),
    ):
        values = [float(row.values[name]) for row in found if name in row.values]
        if values:
            worst = min(values) if name == "restored" else max(values)
            rows.append({"what": words, "mean": float(np.mean(values)), "worst scan": worst})
    return results.table("price", rows)


MAKERS: dict[str, Callable[[SealResults], Table]] = {
    "digest": lambda results: found_table(results, "digest"),
    "benign": benign_table,
    "size": size_table,
    "generators": lambda results: found_table(results, "generators"),
    "informed": lambda results: found_table(results, "informed"),
    "oracle": oracle_table,
    "whole": whole_table,
    "null": null_table,
    "price": price_table,
}


def seal_tables(results: SealResults) -> list[Table]:
    """A table for everything that was measured."""
    measured = {row.table for scan in results.measured for row in scan.rows}
    return [make(results) for name, make in MAKERS.items() if name in measured]
