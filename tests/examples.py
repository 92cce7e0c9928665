"""How many examples a property is tried on."""

from collections.abc import Sequence

from hypothesis import HealthCheck, Phase, settings

LONG = "long"


def examples(few: int, *, ignore: Sequence[HealthCheck] = (), fresh: bool = False) -> settings:
    """`few`, the same in every run, or fresh ones; under `--hypothesis-profile=long` what that says, from random seeds.

    ignore: health checks beside its speed.
    """
    checks = [HealthCheck.too_slow, *ignore]
    if settings.get_current_profile_name() == LONG:
        return settings(settings.get_profile(LONG), suppress_health_check=checks)
    phases = (Phase.explicit, Phase.generate)
    return settings(max_examples=few, deadline=None, derandomize=not fresh, phases=phases, suppress_health_check=checks)
