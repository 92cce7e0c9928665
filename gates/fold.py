"""The fold: stored rows in, evaluations out, slot after slot, as GATES.md says. Pure.

`fold` judges every slot up to one, either from the start (a rebuild) or on from the `State` of an earlier fold; both give
exactly the same. It is event-driven: slots at which nothing can change are skipped, never approximated.
"""

from __future__ import annotations

import msgspec

from gates.plan import Plan
from gates.policy import Policy
from gates.rules import Evaluation, Recommendation
from gates.series import Rows, SeriesKey


class Proposal(msgspec.Struct, frozen=True):
    """A latched proposal a person may answer. Identity: (variant, action, code, proposed_slot); variant None: the experiment."""

    variant: str | None
    action: str
    code: str
    proposed_slot: int
    state: str
    first_stable_at: int | None
    knowable_at: int | None


class State(msgspec.Struct, frozen=True):
    """Where a fold stands after `slot`; `to_bytes` and `from_bytes` are exact inverses."""

    slot: int

    def to_bytes(self) -> bytes:
        raise NotImplementedError

    @classmethod
    def from_bytes(cls, data: bytes) -> State:
        raise NotImplementedError

    def needs_rows_after(self) -> dict[SeriesKey, int]:
        """Per series the instant: the next fold has to be given every row of it with ts > that (more does no harm)."""
        raise NotImplementedError

    def judged_to(self, metric: str) -> int:
        """A row of this metric that appears, changes or goes at ts <= this makes the state wrong: use `before(metric, ts)`."""
        raise NotImplementedError

    def before(self, metric: str, ts: int) -> State | None:
        """The newest kept checkpoint that a row of this metric at `ts` cannot have moved; None: rebuild."""
        raise NotImplementedError


class Folded(msgspec.Struct, frozen=True):
    """What one fold found.

    evaluations: oldest first, the slots at which something changed, and always the newest slot judged.
    proposals: what is latched at the end. experiment first_readable_at: the first look that was fresh, dense, and had its
    floors and min_days (GATES.md section 6, the second clock).
    """

    state: State
    evaluations: tuple[Evaluation, ...]
    proposals: tuple[Proposal, ...]
    first_readable_at: int | None


def fold(policy: Policy, plan: Plan, rows: Rows, *, to: int, state: State | None = None) -> Folded:
    """Judge every slot after `state` (or the start) up to and including `to`."""
    raise NotImplementedError


__all__ = ["Evaluation", "Folded", "Proposal", "Recommendation", "State", "fold"]
