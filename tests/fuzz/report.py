"""What a part of the fuzz command found: outcomes by kind of input, times, memory, and each finding with its input."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

LIMIT_S = 10.0
"""For one input. Where what is tested has a machine to itself; else it counts the processor time that it took."""
CLOCK_S = 100.0
"""By the clock, however busy the machine is."""


def cpu_s(pid: int) -> float:
    """Processor time that a process has taken."""
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


@dataclass
class Report:
    """findings: one sentence each; their inputs lie in folder/NNNNN. memory_mb: peak of what was tested."""

    part: str
    folder: Path
    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    notes: dict[str, int] = field(default_factory=dict)
    slowest_s: float = 0.0
    slowest: int = 0
    memory_mb: float = 0.0
    seconds: float = 0.0

    @property
    def count(self) -> int:
        """Inputs so far."""
        return sum(sum(counts.values()) for counts in self.outcomes.values())

    def add(self, kind: str, outcome: str, seconds: float = 0.0) -> None:
        """One more input."""
        self.outcomes.setdefault(kind, Counter())[outcome] += 1
        if seconds > self.slowest_s:
            self.slowest_s, self.slowest = seconds, self.count

    def found(self, number: int, what: str, content: bytes | Path) -> None:
        """A defect, and the bytes, file or folder that shows it."""
        place = self.folder / f"{number:05d}"
        place.mkdir(parents=True, exist_ok=True)
        with (place / "finding.txt").open("a", encoding="utf-8") as stream:
            stream.write(what + "\n")
        if isinstance(content, bytes):
            (place / "input.bin").write_bytes(content)
        elif content.is_dir():
            shutil.copytree(content, place / "input", dirs_exist_ok=True)
        else:
            shutil.copy(content, place / f"input{''.join(content.suffixes)}")
        self.findings.append(f"{self.part} {number}: {what.strip().splitlines()[-1]}")

    def to_json(self) -> dict[str, Any]:
        """Figures."""
        return {
            "count": self.count,
            "outcomes": {kind: dict(counts) for kind, counts in sorted(self.outcomes.items())},
            "notes": self.notes,
            "findings": self.findings,
            "seconds": round(self.seconds, 1),
            "slowest_s": round(self.slowest_s, 2),
            "slowest": self.slowest,
            "memory_mb": round(self.memory_mb),
        }
