"""What earlier revisions of the rules said, kept only so that evidence made by them replays to the same bytes. Pure.

Nothing new is judged by these: folds, backtests and evaluations of the past use the present rules.
"""

from __future__ import annotations

from gates.rules import REVISION, Judge, Memory, Rules

REVISIONS = range(1, REVISION + 1)


class FirstRules(Rules):
    """Revision 1."""


def rules_of(judge: Judge, memory: Memory) -> Rules:
    """The rules of the judge's revision."""
    return (FirstRules if judge.revision == 1 else Rules)(judge, memory)
