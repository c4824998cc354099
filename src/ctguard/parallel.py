"""Map a function over cases: in this process, or in a pool of local processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from typing import Generic, TypeVar

from ctguard.core.console import progress
from ctguard.core.errors import CtguardError, RecipeError

T = TypeVar("T")
R = TypeVar("R")

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "ITK_NUM_THREADS")
_ITK_THREADS = "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS"


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
    function: Callable[[T], R], items: Iterable[T], *, jobs: int = 1, label: str, quiet: bool = False
) -> Iterator[Result[T, R]]:
    """Yield one Result per item, in the order of the items, as they are done.

    jobs: 1 works in this process; more starts that many processes, each with one thread for torch and BLAS. Then
        `function` must be importable (no lambda) and items and values must pickle.
    A CtguardError or OSError fails its item alone and stands in the Result; any other exception is raised here.
    Leaving the loop early, or Ctrl-C, ends the processes at once.

    Raises RecipeError for jobs < 1 and CtguardError where a process died.
    """
    if jobs < 1:
        raise RecipeError(f"{jobs} jobs", remedy="give --jobs 1 or more")
    todo: Sequence[T] = list(items)
    if jobs == 1 or len(todo) < 2:
        results: Iterator[Result[T, R]] = (_guarded(function, item) for item in todo)
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


def _one_thread() -> None:
    """Runs first in each process: one thread, and a Ctrl-C that ends it without a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    for name in (*_THREADS, _ITK_THREADS):
        os.environ[name] = "1"
    torch = sys.modules.get("torch")
    if torch is not None:  # already loaded with the main script; later imports follow the variables
        torch.set_num_threads(1)
