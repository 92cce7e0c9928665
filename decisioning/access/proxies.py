"""Where a request comes from. What a proxy says about it is believed only from the proxies an installation names."""

import ipaddress
from collections.abc import Callable, Iterable, Sequence

from django.conf import settings
from django.http import HttpRequest, HttpResponse

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_FORWARDED = ("HTTP_X_FORWARDED_FOR", "HTTP_X_FORWARDED_PROTO", "HTTP_X_FORWARDED_HOST", "HTTP_X_FORWARDED_PORT")


class TrustedProxies:
    """First of all middleware: REMOTE_ADDR becomes the client's address; from anybody else X-Forwarded-* is dropped."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response
        self.trusted = networks(settings.TRUSTED_PROXIES)

    def __call__(self, request: HttpRequest) -> HttpResponse:
        peer = request.META.get("REMOTE_ADDR", "")
        if self.trusted and within(_address(peer), self.trusted):
            request.META["REMOTE_ADDR"] = client_of(peer, request.META.get("HTTP_X_FORWARDED_FOR", ""), self.trusted)
        else:
            dropped = [request.META.pop(name, None) for name in _FORWARDED]
            request.forwarded = any(dropped)  # type: ignore[attr-defined]  # by a proxy nobody named: it hides who asks
        return self.get_response(request)


def client_of(peer: str, forwarded_for: str, trusted: Sequence[Network]) -> str:
    """The nearest address that is no proxy of ours: the list is read from its end, where our own proxies wrote.

    >>> client_of("10.0.0.1", "6.6.6.6, 203.0.113.9, 10.0.0.2", networks(["10.0.0.0/8"]))
    '203.0.113.9'
    >>> client_of("10.0.0.1", "garbage", networks(["10.0.0.0/8"]))
    '10.0.0.1'
    """
    nearest = peer
    for said in reversed([part.strip() for part in forwarded_for.split(",") if part.strip()]):
        address = _address(said)
        if address is None:
            break
        nearest = str(address)
        if not within(address, trusted):
            break
    return nearest


def origin(request: HttpRequest) -> str:
    """Whom to count: an IPv4 address, or the /64 network that one IPv6 household has.

    >>> request = HttpRequest()
    >>> request.META["REMOTE_ADDR"] = "2001:db8::1"
    >>> origin(request)
    '2001:db8::'
    """
    address = _address(request.META.get("REMOTE_ADDR", ""))
    if address is None:
        return "0.0.0.0"  # noqa: S104 - a socket without an address: all of them are counted together
    if address.version == 6:
        return str(ipaddress.ip_network((address, 64), strict=False).network_address)
    return str(address)


def networks(names: Iterable[str]) -> list[Network]:
    """Networks or single addresses; a mistake raises ValueError at start rather than trusting nobody in silence."""
    return [ipaddress.ip_network(name.strip(), strict=False) for name in names if name.strip()]


def within(address: Address | None, trusted: Iterable[Network]) -> bool:
    return address is not None and any(address in network for network in trusted)


def _address(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped or address
