"""How values stand in texts that programs exchange: instants, whole numbers, references."""

from datetime import UTC, datetime
from typing import overload

MOST = 2**63 - 1
"""The largest number that PostgreSQL gives to a row."""


@overload
def rfc3339(at: datetime, *, timespec: str = "auto") -> str: ...
@overload
def rfc3339(at: datetime | None, *, timespec: str = "auto") -> str | None: ...
def rfc3339(at: datetime | None, *, timespec: str = "auto") -> str | None:
    """An instant in UTC with Z. timespec: as `datetime.isoformat` has it.

    >>> rfc3339(datetime(2026, 11, 24, 6, tzinfo=UTC)), rfc3339(None)
    ('2026-11-24T06:00:00Z', None)
    """
    return None if at is None else at.astimezone(UTC).isoformat(timespec=timespec).replace("+00:00", "Z")


def whole_number(text: str, *, most: int = MOST) -> int | None:
    """0 to `most` in ASCII digits; None for anything else, however long.

    >>> whole_number("17"), whole_number("-1"), whole_number("１７"), whole_number("9" * 5000), whole_number("")
    (17, None, None, None, None)
    """
    if not (text.isascii() and text.isdigit() and len(text) <= len(str(most))):
        return None
    return number if (number := int(text)) <= most else None


def number_or_key(ref: str) -> int | str:
    """What a reference names: the number of a row, else a key. More digits than a number may have name nothing.

    >>> number_or_key("17"), number_or_key("checkout-2"), number_or_key("9" * 30)[:3]
    (17, 'checkout-2', '999')
    """
    number = whole_number(ref)
    return ref if number is None else number
