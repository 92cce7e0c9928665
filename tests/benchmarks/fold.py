"""What judging costs: one rebuild of 28 days of hourly looks, and one step on from a stored state.

    uv run python -m tests.benchmarks.fold [--repeat 20] [--quick]

Two variants, 672 looks, a goal, a guard and a threshold (density, freshness and split are always on). A step is given the rows production
would read for it: those its state needs, none newer than its look. Beside each: the slow engine of the tests (`tests.gates.naive`), which
judges every slot from the rows (left out with --quick), and a plain loop as a measure of the machine. CPU milliseconds, least and median of the repeats; wanted:
10 and 0.2.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from functools import partial

from gates.engine.fold import fold
from gates.engine.plan import Plan
from gates.engine.policy import Policy
from gates.engine.series import Rows, Series
from tests.benchmarks.scene import say
from tests.gates.histories import (
    CAP,
    DENSITY,
    ERRORS,
    GOAL,
    GUARD,
    HOUR,
    SPEED,
    START,
    VALUE,
    plan,
    policy,
    rows_of,
    without,
)
from tests.gates.naive import Naive

HOURS = 672


def cpu_ms(work: Callable[[], object], repeat: int) -> list[float]:
    """CPU milliseconds of each of `repeat` turns."""
    taken = []
    for _ in range(repeat):
        began = time.process_time_ns()
        work()
        taken.append((time.process_time_ns() - began) / 1e6)
    return taken


def steps(by: Policy, of: Plan, rows: Rows, to: int, count: int) -> list[float]:
    """One look after the other up to `to`, each from the state the one before it left; of each the best of five."""
    state, taken = fold(by, of, rows, to=to - count * HOUR).checkpoint, []
    for look in range(to - (count - 1) * HOUR, to + 1, HOUR):
        needs = state.needs_rows_after()
        given = {key: cut(series, needs[key], look) for key, series in rows.items()}
        taken.append(min(cpu_ms(partial(fold, by, of, given, to=look, checkpoint=state), 5)))
        state = fold(by, of, given, to=look, checkpoint=state).checkpoint
    return taken


def cut(series: Series, after: int, to: int) -> Series:
    return without(series, lambda i: after < series.ts[i] <= to)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=20, metavar="N")
    parser.add_argument("--quick", action="store_true", help="leave out the slow engine, which takes a minute")
    options = parser.parse_args()
    repeat = options.repeat
    by = policy(GOAL, GUARD, DENSITY, CAP, min_days=7, max_days=28)
    end = START + HOURS * HOUR
    for name, effect in (("no effect", 0.0), ("a win", 0.03), ("harm", -0.05)):
        of = plan(VALUE, SPEED, ERRORS)
        rows = rows_of(of, hours=HOURS, effect=effect)
        rebuild = cpu_ms(partial(fold, by, of, rows, to=end), repeat)
        onward = steps(by, of, rows, end, repeat)
        slow = ""
        if not options.quick:
            (taken,) = cpu_ms(partial(Naive(by, of, rows).evaluations, end), 1)
            slow = f" (the slow engine {taken / statistics.median(rebuild):5.0f} times as long)"
        loop = min(cpu_ms(lambda: sum(k for k in range(100_000)), 5)) * 10
        say(
            f"{name:>10}: rebuild of {HOURS} looks {min(rebuild):6.2f}, median {statistics.median(rebuild):6.2f} ms{slow}; "
            f"one look on {min(onward):6.3f}, median {statistics.median(onward):6.3f} ms; a plain loop {loop:4.0f} ns a turn"
        )


if __name__ == "__main__":
    main()
