"""Calls to addresses that people name (webhooks, sources): never to this machine, its network or a cloud's metadata.

The address is looked at when the connection is made, so that a name which answers otherwise the second time gains nothing.
DECISIONING_OUTBOUND_ALLOW names the networks an installation needs all the same.
"""

import functools
import ipaddress
import re
import socket
import ssl
from collections.abc import Iterable
from time import monotonic
from urllib.parse import urlsplit

import httpcore
import httpx
from django.conf import settings

from decisioning.access.proxies import Address, networks, within

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class Blocked(httpx.TransportError):
    """The address is one that nobody outside may make us call. The message is for people."""


def client(*, timeout_s: float = 5.0, within_s: float | None = None) -> httpx.Client:
    """An HTTP client that connects to public addresses alone, follows no redirect and knows no proxy of the environment.

    timeout_s bounds each step; within_s a connection as a whole, so that a server which sends a byte now and then holds nobody up.
    """
    return httpx.Client(transport=_Guarded(within_s), timeout=timeout_s, follow_redirects=False, trust_env=False)


def check_url(url: str) -> None:
    """Raise Blocked for a URL that would be refused when it is called. A name that does not resolve yet is left to that."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise Blocked(f"{url!r} is no URL: {error}.") from error
    if parts.scheme not in ("http", "https") or not host:
        raise Blocked(f"{url!r} is no http or https URL with a host.")
    _check_host(url, host)
    if parts.username or parts.password:
        raise Blocked("A URL with a user name or a password in it is not taken.")
    try:
        addresses(host, port or (443 if parts.scheme == "https" else 80))
    except OSError:
        return


_LABEL = r"[a-zA-Z0-9_](?:[a-zA-Z0-9_-]{0,61}[a-zA-Z0-9_])?"


def _check_host(url: str, host: str) -> None:
    """Raise Blocked for a host that nobody could look up: an address, or labels of 63 characters at most once it is written in ASCII (IDNA)."""
    try:
        name = httpx.URL(url).raw_host.decode()
        name.encode("idna")  # what looking it up would do
    except (httpx.InvalidURL, UnicodeError) as error:
        raise Blocked(f"{host[:80]!r} is no name that a host can have: {error}.") from error
    if ":" not in name and (len(name) > 253 or not re.fullmatch(rf"{_LABEL}(?:\.{_LABEL})*\.?", name)):
        raise Blocked(f"{host[:80]!r} is no name that a host can have.")


def addresses(host: str, port: int) -> list[str]:
    """The numeric addresses of a host, all of them allowed. Raises Blocked when any is not, OSError when there is none."""
    try:
        told = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise Blocked(f"{host[:80]!r} is no name that a host can have: {error}.") from error
    found = list(dict.fromkeys(str(info[4][0]) for info in told))
    allowed = networks(settings.OUTBOUND_ALLOW)
    for text in found:
        address = ipaddress.ip_address(text.partition("%")[0])
        if not within(address, allowed) and not _public(address):
            raise Blocked(
                f"{host} is {text}, a loopback, link-local, private or reserved address. "
                "DECISIONING_OUTBOUND_ALLOW can name its network."
            )
    return found


def is_public(url: str) -> bool:
    """Whether the whole internet could call this URL, whatever DECISIONING_OUTBOUND_ALLOW says."""
    try:
        parts = urlsplit(url)
        found = socket.getaddrinfo(parts.hostname, parts.port or 443, type=socket.SOCK_STREAM)
    except (OSError, ValueError):
        return False
    return all(_public(ipaddress.ip_address(str(info[4][0]).partition("%")[0])) for info in found)


def _public(address: Address) -> bool:
    """Whether the whole internet has this address; one that carries an IPv4 address is as public as that.

    >>> [_public(ipaddress.ip_address(a)) for a in ("1.1.1.1", "169.254.169.254", "::ffff:10.0.0.1", "64:ff9b::7f00:1")]
    [True, False, False, False]
    """
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo or (None, None))[1]
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return _public(inner)
    return address.is_global and not address.is_multicast


class _Bounded(httpcore.NetworkStream):
    """A connection that ends at an instant of the monotonic clock, whatever goes over it."""

    def __init__(self, stream: httpcore.NetworkStream, until: float) -> None:
        self._stream, self._until = stream, until

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._left(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._left(timeout, httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        left = self._left(timeout, httpcore.ConnectTimeout)
        return _Bounded(self._stream.start_tls(ssl_context, server_hostname, left), self._until)

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)

    def _left(self, timeout: float | None, problem: type[Exception]) -> float:
        left = self._until - monotonic()
        if left <= 0:
            raise problem("The call as a whole took too long")
        return left if timeout is None else min(left, timeout)


class _Backend(httpcore.SyncBackend):
    """Resolves once, looks at every answer, and connects to what it has looked at."""

    def __init__(self, within_s: float | None = None) -> None:
        self._within_s = within_s

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        problem: Exception = httpcore.ConnectError(f"{host} has no address")
        try:
            found = addresses(host, port)
        except OSError as error:
            raise httpcore.ConnectError(str(error)) from error
        until = None if self._within_s is None else monotonic() + self._within_s
        for address in found:
            if until is not None:
                timeout = max(min(until - monotonic(), timeout or self._within_s or 0.0), 0.001)
            try:
                stream = super().connect_tcp(address, port, timeout, local_address, socket_options)
                return stream if until is None else _Bounded(stream, until)
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                problem = error
        raise problem

    def connect_unix_socket(
        self,
        path: str,
        timeout: float | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.NetworkStream:
        raise Blocked(f"{path} is a socket of this machine.")


@functools.cache
def _tls() -> ssl.SSLContext:
    """Made once: reading the certificates takes longer than most calls."""
    return ssl.create_default_context()


class _Guarded(httpx.HTTPTransport):
    """httpx's transport on our backend; the certificate is still checked for the name that was asked for."""

    def __init__(self, within_s: float | None = None) -> None:
        super().__init__(verify=_tls(), trust_env=False)
        self._pool = httpcore.ConnectionPool(ssl_context=_tls(), network_backend=_Backend(within_s))
