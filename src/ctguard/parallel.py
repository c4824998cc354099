"""Map a function over cases: in this process, in a pool of local processes, or on a Dask cluster.

Dask is imported only where a cluster is asked for; it comes with the extra `cluster`.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from itertools import islice
from typing import Any, Generic, TypeVar

from ctguard.core.console import progress
from ctguard.core.errors import CtguardError, MissingExtraError, RecipeError

T = TypeVar("T")
R = TypeVar("R")

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "ITK_NUM_THREADS")
_ITK_THREADS = "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"
_CONNECT_SECONDS = 10


@dataclass(frozen=True)
class Result(Generic[T, R]):
    """What became of one item: a value, or the error that it failed with."""

    item: T
    value: R | None = None
    error: CtguardError | OSError | None = None

    @property
    def ok(self) -> bool:
        """Whether the item did not fail."""
        return self.error is None

    def unwrap(self) -> R:
        """The value; raises the item's error where it failed."""
        if self.error is not None:
            raise self.error
        return self.value  # type: ignore[return-value]  # R itself may be None


def map_cases(
    function: Callable[[T], R],
    items: Iterable[T],
    *,
    jobs: int = 1,
    label: str,
    quiet: bool = False,
    cluster: str | None = None,
    key: Callable[[T], str] | None = None,
) -> Iterator[Result[T, R]]:
    """Yield one Result per item, in the order of the items, as they are done.

    jobs: 1 works in this process; more starts that many processes, each with one thread for torch and BLAS. Then
        `function` must be importable (no lambda) and items and values must pickle.
    cluster: a Dask cluster instead: "local" and "slurm" start `jobs` workers, "tcp://host:port" takes those of a
        running scheduler. Workers see the same files under the same paths.
    key: on a cluster, the name of an item's task. Two tasks of one name are one: a task that is done is not repeated.
    A CtguardError or OSError fails its item alone and stands in the Result; any other exception is raised here.
    Leaving the loop early, or Ctrl-C, ends the processes at once; so does the death of this process.

    Raises RecipeError for jobs < 1 and for another cluster, MissingExtraError where Dask is not installed, and
    CtguardError where a process died.
    """
    if jobs < 1:
        raise RecipeError(f"{jobs} jobs", remedy="give --jobs 1 or more")
    todo: Sequence[T] = list(items)
    if cluster is not None:
        results = _clustered(function, todo, jobs, cluster, key)
    elif jobs == 1 or len(todo) < 2:
        results = (_guarded(function, item) for item in todo)
    else:
        results = _pooled(function, todo, min(jobs, len(todo)))
    yield from progress(results, label, len(todo), quiet)


def _guarded(function: Callable[[T], R], item: T) -> Result[T, R]:
    try:
        return Result(item, value=function(item))
    except (CtguardError, OSError) as error:
        return Result(item, error=error)


def _pooled(function: Callable[[T], R], items: Sequence[T], jobs: int) -> Iterator[Result[T, R]]:
    ours_before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), initializer=_one_thread)
    rest = iter(items)
    waiting: deque[Future[Result[T, R]]] = deque()
    finished = False
    try:
        # A window of two per process: results that wait for their turn stay few.
        waiting.extend(pool.submit(_guarded, function, item) for item in islice(rest, 2 * jobs))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(_guarded, function, item) for item in islice(rest, 1))
            yield result
        finished = True
    except BrokenProcessPool as error:
        raise CtguardError("a worker process died", remedy="memory may be short: give fewer --jobs") from error
    finally:
        if not finished:
            for process in set(multiprocessing.active_children()) - ours_before:
                process.terminate()
        pool.shutdown(wait=True, cancel_futures=True)


def _clustered(
    function: Callable[[T], R], items: Sequence[T], jobs: int, cluster: str, key: Callable[[T], str] | None
) -> Iterator[Result[T, R]]:
    """One task per item, submitted in windows of two per worker, so that a large archive never waits in a scheduler."""
    if not items:
        return
    with ExitStack() as stack:
        client = _client(cluster, jobs, stack)
        killed_worker = _extra("distributed").KilledWorker
        rest = iter(items)
        waiting: deque[Any] = deque()

        def submit(count: int) -> None:
            for item in islice(rest, count):
                name = None if key is None else key(item)
                waiting.append(client.submit(_on_worker, function, item, key=name, pure=False))

        submit(2 * max(len(client.nthreads()), jobs))
        try:
            while waiting:
                result: Result[T, R] = waiting.popleft().result()
                submit(1)
                yield result
        except killed_worker as error:
            raise CtguardError("a worker of the cluster died", remedy="give its workers more memory") from error
        finally:
            client.cancel(list(waiting), force=True)


def _client(cluster: str, jobs: int, stack: ExitStack) -> Any:
    """A client of the named cluster; what is started here ends with the stack."""
    if cluster not in ("local", "slurm") and "://" not in cluster:
        raise RecipeError(f"there is no cluster {cluster!r}", remedy="give local, slurm or tcp://HOST:PORT")
    distributed = _extra("distributed")
    if cluster == "local":
        quiet = {"dashboard_address": None, "silence_logs": logging.ERROR}
        workers = distributed.LocalCluster(n_workers=jobs, threads_per_worker=1, **quiet)
        return stack.enter_context(distributed.Client(stack.enter_context(workers)))
    if cluster == "slurm":
        # Queue, memory and time are those of the user's jobqueue.yaml.
        slurm = stack.enter_context(_extra("dask_jobqueue").SLURMCluster(cores=1, processes=1))
        slurm.scale(jobs)
        client = stack.enter_context(distributed.Client(slurm))
        client.wait_for_workers(1)
        return client
    try:
        return stack.enter_context(distributed.Client(cluster, timeout=_CONNECT_SECONDS))
    except (OSError, TimeoutError, ValueError) as error:
        what = f"no scheduler answers ({' '.join(str(error).split())})"
        raise CtguardError(what, where=cluster, remedy="start one with `dask scheduler`") from error


def _extra(module: str) -> Any:
    """A module of the extra `cluster`, which nothing else imports."""
    try:
        return import_module(module)
    except ImportError as error:
        what = f"--cluster needs {module.replace('_', '-')}, which is not installed"
        raise MissingExtraError(what, remedy="pip install ctguard[cluster], or use --jobs") from error


def _on_worker(function: Callable[[T], R], item: T) -> Result[T, R]:
    _one_thread_variables()
    return _guarded(function, item)


def _one_thread() -> None:
    """Runs first in each process of a pool: one thread, an end with the parent, a Ctrl-C without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _one_thread_variables()


def _end_with_parent() -> None:
    """A pool whose parent was killed waits for work for ever."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)


def _one_thread_variables() -> None:
    for name in (*_THREADS, _ITK_THREADS):
        os.environ[name] = "1"
    torch = sys.modules.get("torch")
    if torch is not None:  # already loaded with the main script; later imports follow the variables
        torch.set_num_threads(1)
