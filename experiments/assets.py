"""What variants look like: the only writer of assets."""

from datetime import datetime

from experiments.models import Asset, Variant


def keep(variant: Variant, *, title: str, alt: str, media_type: str, body: bytes, now: datetime) -> Asset:
    """A picture of the variant beside those it has; lists show the newest. body: drawn anew, as `decisioning.access.pictures` does."""
    return Asset.objects.create(
        experiment=variant.experiment,
        variant=variant,
        title=title[:200],
        alt=alt,
        media_type=media_type,
        body=body,
        created_at=now,
    )
