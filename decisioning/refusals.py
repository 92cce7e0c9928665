"""What is not taken, and why: a stable code for programs, words for people. docs/api.md lists the codes.

A domain raises its own kind of `Refused`; whoever asked shows it. `decisioning.api.problems` makes a problem document of any.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self


@dataclass(frozen=True, slots=True)
class Fault:
    """One bad value. pointer: JSON pointer into what was sent, or `?name` of a parameter. code: stable. detail: what is wrong, with the
    value, and what to do. index: which one of many things that were sent, such as rows."""

    pointer: str
    code: str
    detail: str
    index: int = 0

    def under(self, place: str, index: int = 0) -> "Fault":
        """The same fault in something larger, as its `index`th part.

        >>> Fault("/value", "invalid", "No.").under("/rows/3").pointer
        '/rows/3/value'
        """
        return replace(self, pointer=f"{place}{self.pointer}", index=index)


class Refused(Exception):
    """Nothing was done. code: stable. message: what happened, with the value, and what to do. status: the HTTP status that docs/api.md
    gives it, `usual_status` where nothing is said. errors: every bad value. extra: what else programs are told, such as `allowed` of a transition."""

    usual_status: ClassVar[int] = 422

    def __init__(
        self,
        code: str,
        message: str,
        *,
        status: int | None = None,
        errors: Sequence[Fault] = (),
        extra: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(message)
        self.code, self.message, self.status = code, message, status or self.usual_status
        self.errors, self.extra = tuple(errors), dict(extra or {})

    @classmethod
    def of(cls, *errors: Fault, code: str = "invalid", status: int = 422) -> Self:
        """A refusal of bad values, one at least: its message is the first one's."""
        return cls(code, errors[0].detail, status=status, errors=errors)
