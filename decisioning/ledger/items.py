"""One item's exception never ends a batch."""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from celery.exceptions import SoftTimeLimitExceeded
from django.db import InterfaceError, OperationalError, connection

_log = logging.getLogger(__name__)


@contextmanager
def alone(what: str, *, rests: Callable[[str], object] | None = None) -> Iterator[None]:
    """Do one item of a batch: whatever it raises is logged, and the batch goes on.

    rests: called with what went wrong, to note it on the item and let it wait.   What is no item's fault is raised: a server that has
    gone, a task whose time is up.
    """
    try:
        yield
    except SoftTimeLimitExceeded:
        raise
    except Exception as failure:
        if isinstance(failure, (OperationalError, InterfaceError)) and not connection.is_usable():
            raise
        _log.exception("%s failed; the others go on", what)
        if rests is not None:
            with alone(f"Noting that {what} failed"):
                rests(f"{type(failure).__name__}: {failure}"[:2_000])
