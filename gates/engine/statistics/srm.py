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
) -> float:
    """Log evidence that `exposed` was not split by `weights`; alarm at log(1000).

    exposed: units per variant so far, shape (k,), k >= 2.   weights: planned split, shape (k,), any positive scale.
    prior: Dirichlet parameters, shape (k,); by default `concentration` times the weights.
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
    for count, share, a in zip(exposed, shares, dirichlet, strict=True):
        log_e += math.lgamma(a + count) - math.lgamma(a) - count * math.log(share)
    return log_e


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
