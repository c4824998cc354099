"""map_cases: order, failures as values, processes that end; the same on a Dask cluster."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest

from ctguard.core.errors import CtguardError, MissingExtraError, ReadError, RecipeError
from ctguard.parallel import map_cases


def _square(n: int) -> int:
    time.sleep(0.01 * (n % 3))
    if n == 3:
        raise ReadError("no such slice", where="x.dcm", remedy="look for it")
    if n == 5:
        raise FileNotFoundError(2, "gone", "y.dcm")
    return n * n


def _threads(_: int) -> tuple[str | None, int]:
    return os.environ.get("OMP_NUM_THREADS"), os.getpid()


def _bug(n: int) -> int:
    return 1 // n


def _die(_: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return 0


def _sleep(seconds: float) -> float:
    time.sleep(seconds)
    return seconds


@pytest.mark.parametrize("jobs", [1, 2])
def test_results_come_in_order_with_failures_as_values(jobs: int) -> None:
    results = list(map_cases(_square, range(8), jobs=jobs, label="squares", quiet=True))
    assert [result.item for result in results] == list(range(8))
    assert [result.value for result in results if result.ok] == [0, 1, 4, 16, 36, 49]
    error = results[3].error
    assert isinstance(error, ReadError)
    assert (error.what, error.where, error.remedy) == ("no such slice", "x.dcm", "look for it")
    assert str(error) == "x.dcm: no such slice; look for it"
    assert isinstance(results[5].error, FileNotFoundError)
    assert results[2].unwrap() == 4
    with pytest.raises(ReadError):
        results[3].unwrap()


def test_processes_have_one_thread_each() -> None:
    values = [result.unwrap() for result in map_cases(_threads, range(4), jobs=2, label="t", quiet=True)]
    assert {threads for threads, _ in values} == {"1"}
    assert os.getpid() not in {pid for _, pid in values}


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_bug_is_raised(jobs: int) -> None:
    with pytest.raises(ZeroDivisionError):
        list(map_cases(_bug, [1, 0, 2], jobs=jobs, label="bug", quiet=True))
    assert not multiprocessing.active_children()


def test_a_process_that_dies_is_told(tmp_path: Path) -> None:
    with pytest.raises(CtguardError, match="fewer --jobs"):
        list(map_cases(_die, [1, 2], jobs=2, label="die", quiet=True))


def test_leaving_early_ends_the_processes_at_once() -> None:
    start = time.monotonic()
    results = map_cases(_sleep, [0.0, 60.0, 60.0, 60.0], jobs=2, label="sleep", quiet=True)
    assert next(results).value == 0.0
    results.close()  # type: ignore[attr-defined]
    assert time.monotonic() - start < 20
    assert not multiprocessing.active_children()


def test_ctrl_c_stops_at_once_and_leaves_no_process(tmp_path: Path) -> None:
    script = tmp_path / "loop.py"
    script.write_text(
        "import sys, time\n"
        "from ctguard.parallel import map_cases\n"
        "def work(n):\n"
        "    open(f'{sys.argv[1]}/started{n}', 'w').close()\n"
        "    time.sleep(60)\n"
        "if __name__ == '__main__':\n"
        "    try:\n"
        "        list(map_cases(work, range(4), jobs=2, label='work', quiet=True))\n"
        "    except KeyboardInterrupt:\n"
        "        sys.exit(130)\n"
    )
    process = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)], start_new_session=True, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 30
    while not (tmp_path / "started0").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=20)
    assert process.returncode == 130
    assert "Traceback" not in errors
    with pytest.raises(ProcessLookupError):  # Python's own resource tracker takes a moment to follow
        for _ in range(100):
            os.killpg(process.pid, 0)
            time.sleep(0.05)


def test_processes_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    script = tmp_path / "loop.py"
    script.write_text(
        "import os, sys, time\n"
        "from ctguard.parallel import map_cases\n"
        "def work(n):\n"
        "    open(f'{sys.argv[1]}/{os.getpid()}.pid', 'w').close()\n"
        "    time.sleep(120)\n"
        "if __name__ == '__main__':\n"
        "    list(map_cases(work, range(4), jobs=2, label='work', quiet=True))\n"
    )
    process = subprocess.Popen([sys.executable, str(script), str(tmp_path)], start_new_session=True)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*.pid"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.kill()
    process.wait()
    children = [int(path.stem) for path in tmp_path.glob("*.pid")]
    assert len(children) == 2
    deadline = time.monotonic() + 30
    while any(_alive(pid) for pid in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_alive(pid) for pid in children)


def _alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_jobs_below_one_are_refused() -> None:
    with pytest.raises(RecipeError, match="--jobs"):
        list(map_cases(_square, [1], jobs=0, label="none"))


def _where(number: int) -> tuple[str, str | None]:
    from distributed import get_worker

    if number == 3:
        raise ReadError("no such slice", where="x.dcm", remedy="look for it")
    return str(get_worker().get_current_task()), os.environ.get("OMP_NUM_THREADS")


def _name(number: int) -> str:
    return f"case-{number}"


def test_a_dask_cluster_gives_the_same_and_names_each_task() -> None:
    results = list(map_cases(_where, range(6), jobs=2, label="where", quiet=True, cluster="local", key=_name))
    assert [result.item for result in results] == list(range(6))
    assert [result.unwrap() for result in results if result.ok] == [(_name(n), "1") for n in (0, 1, 2, 4, 5)]
    error = results[3].error
    assert isinstance(error, ReadError) and str(error) == "x.dcm: no such slice; look for it"


def test_a_bug_on_a_cluster_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        list(map_cases(_bug, [1, 0], jobs=1, label="bug", quiet=True, cluster="local"))


def test_dask_is_imported_only_when_a_cluster_is_asked_for() -> None:
    code = (
        "import sys; from ctguard.parallel import map_cases; list(map_cases(abs, [1, 2], label='x', quiet=True));"
        "print([name for name in ('dask', 'distributed') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(("cluster", "module"), [("local", "distributed"), ("slurm", "dask_jobqueue")])
def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch, cluster: str, module: str) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r"pip install ctguard\[cluster\]"):
        list(map_cases(abs, [1], label="x", quiet=True, cluster=cluster))


def test_slurm_starts_one_worker_per_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a local cluster in Slurm's place; the queue itself is the user's jobqueue.yaml."""
    from distributed import LocalCluster

    asked: list[int] = []

    class Slurm(LocalCluster):  # type: ignore[misc]
        def __init__(self, cores: int, processes: int) -> None:
            assert (cores, processes) == (1, 1)
            super().__init__(n_workers=0, threads_per_worker=cores, dashboard_address=None)

        def scale(self, n: int) -> None:
            asked.append(n)
            super().scale(n)

    module = ModuleType("dask_jobqueue")
    module.SLURMCluster = Slurm  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "dask_jobqueue", module)
    assert [r.unwrap() for r in map_cases(abs, [-1, 2], jobs=1, label="x", quiet=True, cluster="slurm")] == [1, 2]
    assert asked[0] == 1


def test_a_cluster_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RecipeError, match="no cluster 'cloud'"):
        list(map_cases(abs, [1], label="x", quiet=True, cluster="cloud"))
    monkeypatch.setattr("ctguard.parallel._CONNECT_SECONDS", 1)
    with pytest.raises(CtguardError, match=r"tcp://127\.0\.0\.1:9: no scheduler answers"):
        list(map_cases(abs, [1], label="x", quiet=True, cluster="tcp://127.0.0.1:9"))
