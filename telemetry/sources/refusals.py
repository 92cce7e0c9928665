"""How a source is refused, and how a run of one fails."""

from decisioning.refusals import Refused


class SourceRefused(Refused):
    """A source that cannot be, or cannot be asked now."""


class SourceFailed(Refused):
    """The source did not yield rows: unreachable, too slow, a query it does not take. The message holds no secret."""

    def __init__(self, message: str) -> None:
        super().__init__("source_failed", message)
