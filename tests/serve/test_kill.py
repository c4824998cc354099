"""kill -9 of node and worker at random moments; runs/soak_node.py does the same at full size."""

from __future__ import annotations

from pathlib import Path

from tests.serve.parts import needs_orthanc, needs_storescu, orthanc
from tests.serve.soak import soak


@needs_orthanc
@needs_storescu
def test_nothing_is_lost_and_nothing_judged_or_delivered_twice(tmp_path: Path) -> None:
    with orthanc(tmp_path / "orthanc") as archive:
        result = soak(tmp_path, archive, series=4, senders=2, kills=4, slices=6, side=64)
    assert result.wrong == []
    assert sum(result.kills.values()) == 4
    assert result.objects == 16
