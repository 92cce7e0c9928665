"""An event loop of its own for a test: the browser's driver leaves one running in the thread that tests run in."""

from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor

import anyio


def run[T](work: Callable[[], Awaitable[T]]) -> T:
    """What `work` returns, run to its end in another thread."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(anyio.run, work).result()
