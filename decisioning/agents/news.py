"""What changed on the board between two looks at it, under the names that webhooks use. Pure."""

from collections.abc import Iterator, Mapping

from decisioning.agents.client import Json

_WORDS = ("name", "hypothesis", "owner", "status")


def news(before: Mapping[str, Json], after: Mapping[str, Json]) -> Iterator[Json]:
    """Events of the rows of GET /api/experiments by key, now and at the last look: {type, experiment, as_of, ...}."""
    for key, now in after.items():
        was = before.get(key)
        for kind, data in _of_one(was, now):
            yield {"type": kind, "experiment": key, "as_of": now["as_of"], **data}


def _of_one(was: Json | None, now: Json) -> Iterator[tuple[str, Json]]:
    if was is None:
        yield "experiment.changed", {"status": now["status"], "changed": ["created"]}
        return
    changed = [word for word in _WORDS if was[word] != now[word]]
    if changed:
        yield "experiment.changed", {"status": now["status"], "changed": changed}
    yield from _of_recommendations(was["recommendation"], now["recommendation"])
    stale_before, stale_now = was["freshness"]["state"] == "stale", now["freshness"]["state"] == "stale"
    if stale_before != stale_now:
        kind = "freshness.breached" if stale_now else "freshness.recovered"
        yield kind, {"state": now["freshness"]["state"], "data_watermark": now["freshness"]["data_watermark"]}
    failed_before = _failed_guards(was)
    for gate, variant in sorted(_failed_guards(now) - failed_before):
        yield "guard.failed", {"gate": gate, "variant": variant or None}


def _of_recommendations(was: Json, now: Json) -> Iterator[tuple[str, Json]]:
    told = {name: now[name] for name in ("action", "code", "variant", "evidence_digest")}
    one = ("action", "variant", "proposed_at", "state")
    if [was[name] for name in one] == [now[name] for name in one]:
        return
    if now["state"] == "proposed":
        yield "decision.proposed", told
    elif now["state"] == "answered":
        yield "decision.answered", told


def _failed_guards(row: Json) -> set[tuple[str, str]]:
    return {(g["gate"], g["variant"] or "") for g in row["gates"] if g["kind"] == "guard" and g["verdict"] == "fail"}
