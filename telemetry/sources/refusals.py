"""How a source is refused, and how a run of one fails."""

from collections.abc import Sequence

Fault = tuple[str, str, str]
"""(JSON pointer, code, detail)."""


class SourceRefused(Exception):
    """A source that cannot be, or cannot be asked now."""

    def __init__(self, code: str, message: str, *, status: int = 422, errors: Sequence[Fault] = ()) -> None:
        super().__init__(message)
        self.code, self.status, self.errors = code, status, tuple(errors)


class SourceFailed(Exception):
    """The source did not yield rows: unreachable, too slow, a query it does not take. The message holds no secret."""
