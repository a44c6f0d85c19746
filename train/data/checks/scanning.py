"""Looks at all examples of a split, in several threads and with a progress bar."""

import concurrent.futures
from collections import deque
from collections.abc import Callable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")

_WAITING = 16  # examples for each thread


def scan(look_at: Callable[[int], T], length: int, *, threads: int, title: str) -> Iterator[T]:
    """Calls a function for 0, 1, ..., and yields the results in this order.

    Args:
      look_at: called in the threads.
      length: number of calls.
      threads: number of threads.
      title: of the progress bar.
    """
    with (
        concurrent.futures.ThreadPoolExecutor(threads) as pool,
        tqdm(total=length, desc=title, unit="image", disable=None) as progress,
    ):
        waiting: deque[concurrent.futures.Future[T]] = deque()
        try:
            for index in range(length):
                waiting.append(pool.submit(look_at, index))
                if len(waiting) == threads * _WAITING:
                    yield waiting.popleft().result()
                    progress.update()
            while waiting:
                yield waiting.popleft().result()
                progress.update()
        finally:
            for future in waiting:
                future.cancel()
