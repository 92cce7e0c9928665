"""Calls to addresses that people name (webhooks, sources): never to this machine, its network or a cloud's metadata.

`access.calls` looks once more when it connects, so that a name which answers otherwise the second time gains nothing. It is apart since
it loads an HTTP client, which most processes never need. DECISIONING_OUTBOUND_ALLOW names the networks an installation needs all the same.
"""

import ipaddress
import re
import socket
from urllib.parse import urlsplit

from django.conf import settings

from decisioning.access.proxies import Address, networks, within

_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class Blocked(Exception):
    """The address is one that nobody outside may make us call. The message is for people."""


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
    import httpx  # only where a URL is new: it says what the client would look up

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
