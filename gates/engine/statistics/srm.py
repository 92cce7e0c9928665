"""Whether units arrived in the planned split: a sequential multinomial test that may be read at any time."""

from __future__ import annotations

import math
from collections.abc import Sequence


def srm_log_e(
    exposed: Sequence[int],
    weights: Sequence[float],
    *,
    concentration: float = 1_000.0,
    prior: Sequence[float] | None = None,
    nearest: Sequence[float] | None = None,
) -> float:
    """Log evidence that `exposed` was not split by `weights`; alarm at log(1000).

    exposed: units per variant so far, shape (k,), k >= 2.   weights: planned split, shape (k,), any positive scale.
    prior: Dirichlet parameters, shape (k,); by default `concentration` times the weights. nearest: shares the counts are held against in
    place of the planned ones, as `nearest_split` gives them; the prior stays that of the plan, so that it is evidence against each of them.
    Raises ValueError when shapes differ or a weight is not positive.
    Source: sequential multinomial test with a Dirichlet prior (Lindon and Malek 2020).

    >>> round(srm_log_e([500, 500], [1, 1]), 3)
    -0.347
    >>> srm_log_e([5200, 4800], [1, 1]) > math.log(20)
    True
    """
    if len(exposed) != len(weights) or len(weights) < 2 or min(weights) <= 0:
        raise ValueError(f"{len(exposed)} counts and weights {list(weights)}, must be as many and positive")
    total_weight = math.fsum(weights)
    shares = [weight / total_weight for weight in weights]
    dirichlet = [concentration * share for share in shares] if prior is None else prior
    mass = math.fsum(dirichlet)
    log_e = math.lgamma(mass) - math.lgamma(mass + sum(exposed))
    for count, share, a in zip(exposed, nearest or shares, dirichlet, strict=True):
        log_e += math.lgamma(a + count) - math.lgamma(a) - (count * math.log(share) if count else 0.0)
    return log_e


def nearest_split(exposed: Sequence[int], weights: Sequence[float], tolerance: float) -> list[float]:
    """Of all splits whose every share is within `tolerance` of the planned one, that under which the counts are likeliest.

    Maximises sum n_i ln w_i over |w_i - planned_i| <= tolerance, sum w_i = 1: each share seen over a level, cut off at its band, the level
    found by bisection (water-filling). So evidence against it is evidence against every split of the band. Shares of sum 1, shape (k,).

    >>> nearest_split([510, 490], [1, 1], 0.02)
    [0.51, 0.49]
    >>> [round(share, 3) for share in nearest_split([600, 400], [1, 1], 0.02)]
    [0.52, 0.48]
    >>> [round(share, 3) for share in nearest_split([500, 300, 200], [1, 1, 1], 0.1)]
    [0.433, 0.333, 0.233]
    """
    total, all_weight = sum(exposed), math.fsum(weights)
    planned = [weight / all_weight for weight in weights]
    if not total:
        return planned
    seen = [count / total for count in exposed]
    bands = [(max(share - tolerance, 0.0), min(share + tolerance, 1.0)) for share in planned]
    if all(low <= share <= high for share, (low, high) in zip(seen, bands, strict=True)):
        return seen

    def cut(level: float) -> list[float]:
        return [min(max(share / level, low), high) for share, (low, high) in zip(seen, bands, strict=True)]

    least, most = 2.0**-60, 2.0**60
    for _ in range(200):
        level = math.sqrt(least * most)
        if math.fsum(cut(level)) > 1.0:
            least = level
        else:
            most = level
    found = cut(most)
    rest = 1.0 - math.fsum(found)
    for i, (_, high) in enumerate(bands):  # what arms with units leave goes to those without, in their bands
        more = min(max(rest, 0.0), high - found[i])
        found[i] += more
        rest -= more
    return found


def srm_log_e_at_most(exposed: Sequence[int], weights: Sequence[float]) -> float:
    """A cheap upper bound of `srm_log_e`: chi-square of the counts. Below the alarm there is nothing to compute.

    The mixture is at most the best likelihood ratio, N KL(observed || planned), and KL <= chi-square / N.

    >>> srm_log_e_at_most([510, 490], [1, 1])
    0.4
    >>> srm_log_e([510, 490], [1, 1]) <= srm_log_e_at_most([510, 490], [1, 1])
    True
    """
    total = sum(exposed)
    if not total:
        return 0.0
    each, bound = total / sum(weights), 0.0
    for count, weight in zip(exposed, weights, strict=True):
        planned = each * weight
        off = count - planned
        bound += off * off / planned
    return bound
