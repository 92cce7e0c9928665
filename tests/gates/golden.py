"""What 300 seeded histories come to, as digests: evidence, state and proposals, so that any change of behaviour or wording shows.

    uv run python -m tests.gates.golden            # write golden.txt anew, and say what has changed
    uv run python -m tests.gates.golden --check    # only say it

Commit the file with the change that meant it, and say there which of the three columns moved and why.
"""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from gates.engine.evidence import canonical_bytes, evidence, outcome
from tests.gates.worlds import folded

FILE = Path(__file__).with_name("golden.txt")
SEEDS = range(300)


class Golden(NamedTuple):
    """evidence: of the newest slot whole, of each slot that changed anything its outcome and facts, sentences included.
    state: where the fold stands. proposals: what is latched."""

    evidence: str
    state: str
    proposals: str


def of(seed: int) -> Golden:
    w, found = folded(seed)
    told = [canonical_bytes([outcome(t.evaluation), msgspec.to_builtins(t.detail)]) for t in found.evaluated_slots]
    newest = (
        canonical_bytes(evidence(w.policy, w.plan, found, found.evaluated_slots[-1].slot))
        if found.evaluated_slots
        else b""
    )
    proposals = canonical_bytes(msgspec.to_builtins(found.proposals))
    state = canonical_bytes(_rounded(msgspec.msgpack.decode(found.checkpoint.body)))
    return Golden(_short(*told, newest), _short(state), _short(proposals))


def _rounded(value: Any) -> Any:
    """12 significant digits, as in evidence: exp and log differ in the last bit between builds."""
    if isinstance(value, float):
        return f"{value:.12g}"
    if isinstance(value, dict):
        return {name: _rounded(inner) for name, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value


def _short(*parts: bytes) -> str:
    return hashlib.sha256(b"\n".join(parts)).hexdigest()[:16]


def kept() -> dict[int, Golden]:
    """The committed digests by seed."""
    lines = (line.split() for line in FILE.read_text().splitlines() if not line.startswith("#"))
    return {int(seed): Golden(*digests) for seed, *digests in lines}


def changes(found: dict[int, Golden]) -> Iterator[str]:
    """What is not as committed, a line for each column: how many histories, and the first of them."""
    before = kept() if FILE.exists() else {}
    for name in Golden._fields:
        moved = [
            seed for seed in found if seed not in before or getattr(before[seed], name) != getattr(found[seed], name)
        ]
        if moved:
            yield f"{name}: {len(moved)} of {len(found)} histories differ, the first is world({moved[0]})"
    if gone := before.keys() - found.keys():
        yield f"{len(gone)} histories are not tried any more"


def main() -> int:
    found = {seed: of(seed) for seed in SEEDS}
    told = list(changes(found))
    sys.stdout.write("\n".join(told) + "\n" if told else "Every digest is as committed.\n")
    if "--check" in sys.argv:
        return int(bool(told))
    lines = [f"# seed {' '.join(Golden._fields)}; made by: uv run python -m tests.gates.golden"]
    FILE.write_text("\n".join([*lines, *(f"{seed} {' '.join(digests)}" for seed, digests in found.items())]) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
