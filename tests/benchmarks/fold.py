"""What judging costs: one rebuild of 28 days of hourly looks, and one step on from a stored state.

    uv run python -m tests.benchmarks.fold [--repeat 20]

Two variants, 672 looks, a goal, a guard and a threshold (density, freshness and split are always on). Beside each: the slow engine of the
tests (`tests.gates.naive`), which judges every slot from the rows. CPU milliseconds, the median of the repeats; wanted: 10 and 0.2.
"""

import argparse
import statistics
import time
from collections.abc import Callable

from gates.fold import State, fold
from tests.gates.histories import CAP, DENSITY, ERRORS, GOAL, GUARD, HOUR, SPEED, START, VALUE, plan, policy, rows_of
from tests.gates.naive import Naive

HOURS = 672


def cpu_ms(work: Callable[[int], object], repeat: int) -> float:
    """Median CPU milliseconds of `work`, which is given the number of its turn."""
    taken = []
    for turn in range(repeat):
        began = time.process_time_ns()
        work(turn)
        taken.append((time.process_time_ns() - began) / 1e6)
    return statistics.median(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=20, metavar="N")
    repeat = parser.parse_args().repeat
    by = policy(GOAL, GUARD, DENSITY, CAP, min_days=7, max_days=28)
    for name, effect in (("no effect", 0.0), ("a win", 0.03), ("harm", -0.05)):
        of = plan(VALUE, SPEED, ERRORS)
        rows = rows_of(of, hours=HOURS, effect=effect)
        end = START + HOURS * HOUR
        rebuild = cpu_ms(lambda _, of=of, rows=rows: fold(by, of, rows, to=end), repeat)  # type: ignore[misc]
        first = fold(by, of, rows, to=end - repeat * HOUR).state
        states: list[State] = [first]

        def step(turn: int, of: object = of, rows: object = rows, states: list[State] = states) -> None:
            states.append(fold(by, of, rows, to=end - (repeat - turn - 1) * HOUR, state=states[-1]).state)  # type: ignore[arg-type]

        onward = cpu_ms(step, repeat)
        slow = cpu_ms(lambda _, of=of, rows=rows: Naive(by, of, rows).evaluations(end), 1)  # type: ignore[misc]
        print(
            f"{name:>10}: rebuild of {HOURS} looks {rebuild:7.2f} ms ({slow / rebuild:5.0f} times the slow engine's speed), "
            f"one look on {onward:6.3f} ms ({rebuild / onward:4.0f} steps a rebuild)",
            flush=True,
        )


if __name__ == "__main__":
    main()
