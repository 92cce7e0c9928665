"""What a backtest costs: a candidate policy beside the live one over recorded experiments of 28 days of hourly looks, on one core.

    uv run python -m tests.benchmarks.backtest [--experiments 200]

Each experiment has two variants, a goal, a guard and a threshold, and an effect of its own. CPU seconds; wanted for 200: 10.
"""

import argparse
import time

from gates.engine.backtest import backtest, figures
from tests.benchmarks.fold import HOURS
from tests.benchmarks.scene import say
from tests.gates.histories import CAP, DENSITY, ERRORS, GOAL, GUARD, HOUR, SPEED, START, VALUE, plan, policy, rows_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--experiments", type=int, default=200, metavar="N")
    count = parser.parse_args().experiments
    live = policy(GOAL, GUARD, DENSITY, CAP, min_days=7, max_days=28)
    candidate = policy(GOAL, GUARD, DENSITY, CAP, min_days=14, max_days=28, persist=8)
    of = plan(VALUE, SPEED, ERRORS)
    effects = (-0.05, 0.0, 0.01, 0.03)
    recorded = [rows_of(of, hours=HOURS, effect=effects[k % len(effects)], seed=k) for k in range(count)]
    began = time.process_time()
    found = [backtest(candidate, live, of, rows, to=START + HOURS * HOUR) for rows in recorded]
    seconds = time.process_time() - began
    total = figures(found)
    say(
        f"{count} experiments by two policies: {seconds:.2f} CPU seconds, {1000 * seconds / count:.1f} ms each; "
        f"{total.flips} flips, {total.gained} gained, {total.lost} lost"
    )


if __name__ == "__main__":
    main()
