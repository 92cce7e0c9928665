"""Bodies on their way in: read whole before a thread or the database is asked, within a time, few large ones at a time.

A client that sends slowly holds a connection and nothing else, and that for a bounded time. What is more than a form's worth is read
only of somebody who is known, in places of which one principal and one team have few.
"""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from django.http import HttpRequest

from decisioning.access.principal import Principal
from decisioning.access.proxies import origin

MOST = 8 * 1024 * 1024
SMALL = 64 * 1024
"""Bytes that anybody may send."""
GRACE_S, LEAST_RATE = 10.0, 256 * 1024
"""A body has ten seconds, and those that its size takes at so many bytes a second."""
PATIENCE_S = 2.5
SMALL_OF_ONE, SMALL_OF_ALL = 32, 512
"""Bodies of one address, and of all, that are on their way at a time."""

type Receive = Callable[[], Awaitable[Mapping[str, Any]]]
type Asks = Callable[[HttpRequest], Awaitable[Principal]]
"""Who is behind a request, as far as the database says; anonymous when it cannot say."""


class Refused(Exception):
    """status: 408 it took too long, 413 it is too long, 503 too many are sent at a time."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Gone(Exception):
    """The client hung up."""


class Places:
    """How many are inside, of all and of each. For one event loop."""

    def __init__(self, *, of_all: int, of_one: int) -> None:
        self.of_all, self.of_one = of_all, of_one
        self._inside: Counter[object] = Counter()
        self._left = asyncio.Event()

    def take(self, who: object) -> bool:
        """A place, if there is one now."""
        if self._inside.total() >= self.of_all or self._inside[who] >= self.of_one:
            return False
        self._inside[who] += 1
        return True

    async def wait(self, who: object, seconds: float) -> bool:
        """A place within so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                while not self.take(who):
                    self._left.clear()
                    await self._left.wait()
        except TimeoutError:
            return False
        return True

    def leave(self, who: object) -> None:
        """Make it free."""
        self._inside[who] -= 1
        if not self._inside[who]:
            del self._inside[who]
        self._left.set()


class Intake:
    """Reads bodies. places: large ones at a time, of_one: of one principal and of one team."""

    def __init__(self, asks: Asks, *, places: int = 12, of_one: int = 4) -> None:
        self._asks = asks
        self._strangers, self._known = (Places(of_all=SMALL_OF_ALL, of_one=SMALL_OF_ONE) for _ in range(2))
        self._large = Places(of_all=places, of_one=of_one)

    async def body(self, request: HttpRequest, receive: Receive) -> bytes | None:
        """The whole body. None when it was not read, because nobody is known to send it: he is told so without. Raises Refused, Gone."""
        length = _length(request)
        if length is not None and length > MOST:
            raise Refused(413)
        places, who = await self._place(request)
        try:
            async with asyncio.timeout(GRACE_S + (MOST if length is None else length) / LEAST_RATE):
                return await self._read(request, receive, length)
        except TimeoutError:
            raise Refused(408) from None
        finally:
            places.leave(who)

    async def _place(self, request: HttpRequest) -> tuple[Places, object]:
        """One that is taken. Of strangers an address has few; who is known has others, so that no neighbour behind an address takes them."""
        address = origin(request)
        if self._strangers.take(address):
            return self._strangers, address
        principal = await self._asks(request)
        if principal.is_authenticated and self._known.take(who := whose(principal)):
            return self._known, who
        raise Refused(503)

    async def _read(self, request: HttpRequest, receive: Receive, length: int | None) -> bytes | None:
        if length is not None and length > SMALL:
            return await self._from_known(request, receive, bytearray())
        read = bytearray()
        while await _more(receive, read):
            if len(read) > SMALL:  # it did not say how long it is
                return await self._from_known(request, receive, read)
        return bytes(read)

    async def _from_known(self, request: HttpRequest, receive: Receive, read: bytearray) -> bytes | None:
        principal = await self._asks(request)
        if not principal.is_authenticated:
            return None
        who = whose(principal)
        if not await self._large.wait(who, PATIENCE_S):
            raise Refused(503)
        try:
            while await _more(receive, read):
                pass
            return bytes(read)
        finally:
            self._large.leave(who)


def whose(principal: Principal) -> object:
    """Whom to count a principal's requests for: a person, or the team that all of its keys share.

    >>> whose(Principal("key", id=1, teams={7: frozenset()})) == whose(Principal("key", id=2, teams={7: frozenset()}))
    True
    """
    return (principal.kind, principal.id) if principal.kind == "user" else ("team", frozenset(principal.teams))


async def _more(receive: Receive, read: bytearray) -> bool:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise Gone
    read += message.get("body", b"")
    if len(read) > MOST:
        raise Refused(413)
    return bool(message.get("more_body"))


def _length(request: HttpRequest) -> int | None:
    said = request.META.get("CONTENT_LENGTH") or ""
    return int(said) if said.isdecimal() and len(said) < 20 else None
