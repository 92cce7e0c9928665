"""Bodies: read within their limits, inflated, and decoded as strict JSON."""

import contextlib
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import IO, Any

import msgspec
from django.http import HttpRequest
from rest_framework.parsers import BaseParser
from rest_framework.request import Request

from decisioning.access.nesting import MAX_DEPTH, is_too_deep, pruned
from decisioning.api.problems import Problem, invalid
from decisioning.refusals import Fault

MAX_BODY = 8 * 1024 * 1024
MAX_INFLATED = 32 * 1024 * 1024


class StrictJSONParser(BaseParser):
    """JSON as RFC 8259 has it: no NaN, no Infinity, no number a float cannot hold, UTF-8 only, at most 32 deep."""

    media_type = "application/json"

    def parse(
        self, stream: IO[Any], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> Any:
        request: Request = (parser_context or {})["request"]
        return decode(read(request._request, stream))


class FacetedJSONParser(BaseParser):
    """JSON of which most is other people's facets: what nests deeper than 32 is skipped unread, and no text or number of one is refused."""

    media_type = "application/json"

    def parse(
        self, stream: IO[Any], media_type: str | None = None, parser_context: Mapping[str, Any] | None = None
    ) -> Any:
        request: Request = (parser_context or {})["request"]
        body = pruned(read(request._request, stream, nests=False))
        try:
            return msgspec.json.decode(body)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            try:
                return json.loads(body)  # takes NaN and half a surrogate pair
            except (ValueError, RecursionError) as error:
                raise Problem(400, "invalid_json", f"The body is no JSON: {error}") from error


def read(request: HttpRequest, stream: IO[Any] | None = None, *, nests: bool = True) -> bytes:
    """The body as sent, inflated when it is gzip. Raises Problem: 413 `body_too_large`, 415, 400 `too_deep` or for broken gzip.

    nests: it is JSON, or may be.
    """
    length = request.META.get("CONTENT_LENGTH") or "0"
    if not length.isdigit():
        raise Problem(400, "invalid_request", "Content-Length is not a number.")
    if int(length) > MAX_BODY:
        raise Problem(413, "body_too_large", f"The body has {length} bytes; at most {MAX_BODY} are taken. Split it.")
    body = bytes((stream or request).read(MAX_BODY + 1))
    if len(body) > MAX_BODY:
        raise Problem(413, "body_too_large", f"The body has more than {MAX_BODY} bytes. Split it.")
    encoding = request.headers.get("Content-Encoding", "identity").strip().lower()
    if encoding not in ("", "identity", "gzip"):
        raise Problem(415, "unsupported_encoding", f"Content-Encoding {encoding!r} is not taken. Use gzip, or none.")
    plain = _inflated(body) if encoding == "gzip" else body
    if nests and is_too_deep(plain):
        raise Problem(400, "too_deep", f"The body nests deeper than {MAX_DEPTH} levels.")
    return plain


def take_chunks(request: HttpRequest) -> None:
    """Let a body without Content-Length (`Transfer-Encoding: chunked`) be read: Django takes it for empty."""
    if request.META.get("CONTENT_LENGTH") or "chunked" not in request.headers.get("Transfer-Encoding", "").lower():
        return
    body = request.META["wsgi.input"].read(MAX_BODY + 1)  # what is too long is refused by `read`
    request.META["CONTENT_LENGTH"] = str(len(body))
    request._stream = io.BytesIO(body)


def _inflated(body: bytes) -> bytes:
    inflater = zlib.decompressobj(wbits=31)
    try:
        plain = inflater.decompress(body, MAX_INFLATED + 1)
    except zlib.error as error:
        raise Problem(400, "invalid_encoding", "The body is no gzip, though Content-Encoding says so.") from error
    if len(plain) > MAX_INFLATED:
        raise Problem(413, "body_too_large", f"The body inflates to more than {MAX_INFLATED} bytes. Split it.")
    if not inflater.eof or inflater.unused_data:
        raise Problem(400, "invalid_encoding", "The gzip body ends early, or has something after its end.")
    return plain


def decode(body: bytes) -> Any:
    """The value of a JSON text that `read` has let through. Raises Problem: 400 `invalid_json`, 422 `invalid_text`, `duplicate_key`."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        bad = _unpaired_surrogates(body)
        if bad:
            raise invalid(bad) from error
        raise Problem(400, "invalid_json", f"The body is no JSON: {error}") from error
    refuse_duplicates(body)
    bad = list(_unfit_texts(value, ""))
    if bad:
        raise invalid(bad)
    return value


def refuse_duplicates(body: bytes) -> None:
    """Of two values under one name one would win without a word. Raises Problem: 422 `duplicate_key`."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            twice = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
            raise invalid([Fault("", "duplicate_key", f"{twice[:80]!r} stands twice in one object. Send it once.")])
        return found

    with contextlib.suppress(ValueError, RecursionError):
        json.loads(body, object_pairs_hook=once)


def _unfit_texts(value: object, pointer: str) -> Iterator[Fault]:
    """Texts PostgreSQL cannot hold."""
    if isinstance(value, str):
        if "\x00" in value:
            yield Fault(pointer, "invalid_text", "The text holds a NUL character. Remove it.")
        elif not value.isascii() and any("\ud800" <= character <= "\udfff" for character in value):
            yield Fault(pointer, "invalid_text", "The text holds half a surrogate pair. Send whole characters.")
    elif isinstance(value, dict):
        for name, inner in value.items():
            yield from _unfit_texts(name, pointer)
            yield from _unfit_texts(inner, f"{pointer}/{name}")
    elif isinstance(value, list):
        for position, inner in enumerate(value):
            if isinstance(inner, (str, dict, list)):
                yield from _unfit_texts(inner, f"{pointer}/{position}")


def _unpaired_surrogates(body: bytes) -> list[Fault]:
    """msgspec calls half a surrogate pair broken JSON; docs/api.md calls it a bad text, so look again with json."""
    if b"\\u" not in body:
        return []
    try:
        value = json.loads(body.decode(), parse_constant=_refuse, parse_float=_finite)
    except (ValueError, RecursionError):
        return []
    return list(_unfit_texts(value, ""))


def _refuse(constant: str) -> float:
    raise ValueError(constant)


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(digits)
    return value
