"""The HTTP client for addresses that people name: what `access.outbound` refuses is not connected to, whatever a name answers by then."""

import functools
import ssl
from collections.abc import Iterable
from time import monotonic

import httpcore
import httpx

from decisioning.access.outbound import Blocked, addresses


def client(*, timeout_s: float = 5.0, within_s: float | None = None) -> httpx.Client:
    """An HTTP client that connects to public addresses alone, follows no redirect and knows no proxy of the environment.

    timeout_s bounds each step; within_s a connection as a whole, so that a server which sends a byte now and then holds nobody up.
    """
    return httpx.Client(transport=_Guarded(within_s), timeout=timeout_s, follow_redirects=False, trust_env=False)


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
