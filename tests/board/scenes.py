"""Scenes for the board: experiments as the tick would have left them, without running it. Made as owner, read as web."""

import datetime as dt
import math
import random
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec
from django.contrib.auth.models import User
from django.db import connection

from decisioning.access.models import Membership, Team
from experiments.models import Experiment, Metric, TargetKpi, Variant
from gates.engine.evidence import digest as digest_of
from gates.engine.fold import fold
from gates.engine.plan import from_us, to_us
from gates.loading import load, rows_of, series_of
from gates.models import Cursor, Decision, Evidence, PolicyVersion, Recommendation, Step
from gates.suspension import Cause, suspend
from tests.conftest import as_role

HOUR = dt.timedelta(hours=1)
STEP = 6 * HOUR  # a row every six hours draws the same picture; the last hours are whole, so that it is fresh


def person(name: str, team: Team, role: str = "approver", *, staff: bool = False, admin: bool = False) -> User:
    """Somebody who can sign in with the password `open sesame 7`."""
    with as_role("owner"):
        user = User.objects.create_user(
            name, f"{name}@example.org", "open sesame 7", is_staff=staff or admin, is_superuser=admin
        )
        Membership.objects.create(team=team, user=user, role=role)
    return user


def _saying(cursor: Cursor, said: dict[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = cursor.shown or {}
    return shown | {"recommendation": shown["recommendation"] | said}


@dataclass
class Scene:
    """Makes experiments of one team as of `now`."""

    team: Team
    now: dt.datetime
    metrics: dict[str, Metric] = field(default_factory=dict)
    made: int = 0

    def metric(self, key: str, **fields: Any) -> Metric:
        if key not in self.metrics:
            defaults = {"name": key.replace("_", " ").capitalize(), "created_at": self.now}
            self.metrics[key] = Metric.objects.get_or_create(key=key, defaults=defaults | fields)[0]
        return self.metrics[key]

    def experiment(
        self,
        name: str = "One-page checkout",
        *,
        key: str = "",
        status: str = "running",
        days: int = 16,
        uplift: float = 0.04,
        rows: bool = True,
        action: str = "hold",
        code: str = "collecting",
        treatments: Sequence[str] = ("treatment",),
        hypothesis: str = "Fewer steps raise value per session",
        lag: dt.timedelta = dt.timedelta(0),
    ) -> Experiment:
        """One experiment, with `days` of hourly rows, judged and saying `action`."""
        self.made += 1
        start = None if status == "draft" else self.now - dt.timedelta(days=days)
        closed = status in ("scaled", "deleted", "stopped")
        with as_role("owner"):
            vrps = self.metric(
                "vrps", name="Value per session", unit="usd", expected_every_s=3600, freshness_target_s=3600
            )
            errors = self.metric("error_rate", name="Payment errors", kind="proportion", direction="decrease",
                                 expected_every_s=3600, freshness_target_s=3600)  # fmt: skip
            e = Experiment.objects.create(
                key=key or f"scene-{self.made}", name=name, hypothesis=hypothesis, owner="Ines Duarte", team=self.team, status=status,
                created_at=start or self.now, started_at=start, ended_at=self.now - HOUR if closed else None, expected_units_per_day=48_000,
            )  # fmt: skip
            for i, arm in enumerate(("control", *treatments)):
                Variant.objects.create(experiment=e, key=arm, control=i == 0, position=i)
            TargetKpi.objects.create(experiment=e, metric=vrps, role="goal", position=0, minimum_effect=0.02,
                                     baseline_mean=3.0, baseline_stddev=3.0)  # fmt: skip
            TargetKpi.objects.create(experiment=e, metric=errors, role="guardrail", position=1, max_harm=0.05)
            if start:
                if rows:
                    self._rows(e, start, uplift, treatments, lag)
                    self._hours()
                self._judged(e, action, code, uplift, treatments, started=start)
                if rows:
                    self._read(e)
        return e

    def proposal(self, e: Experiment, action: str = "scale", code: str = "wins", *, ago: dt.timedelta = 3 * HOUR, digest: str = "",
                 variant: str | None = None) -> Recommendation:  # fmt: skip
        """An open proposal for the whole experiment, or for one variant, with its evidence."""
        body = f"{e.pk}{action}{code}{ago}".encode()
        digest = digest or digest_of(body)
        at = self.now - ago
        with as_role("owner"):
            version = PolicyVersion.objects.get(policy__name="default", number=1)
            Evidence.objects.create(experiment=e, digest=digest, body=zlib.compress(body), created_at=at)
            r = Recommendation.objects.create(
                experiment=e, action=action, code=code, slot=at, proposed_at=at, first_stable_at=at - HOUR, knowable_at=at - HOUR / 2,
                variant=Variant.objects.get(experiment=e, key=variant) if variant else None,
                rationale=["Value per session is up 4.1%, and the whole interval, +1.2% to +7.1%, is above 0%.", "Nothing is harmed."],
                blockers=[], evidence_digest=digest, policy_version=version, fold=1,
            )  # fmt: skip
            cursor = Cursor.objects.get(experiment=e)
            said = {
                "action": action,
                "code": code,
                "variant": variant or "treatment",
                "state": "proposed",
                "evidence_digest": digest,
            }
            cursor.shown = _saying(cursor, said)
            cursor.save()
        return r

    def answered(
        self, r: Recommendation, *, by: str = "Mei Tanaka", override_to: str = "", reason: str = ""
    ) -> Decision:
        with as_role("owner"):
            r.answered_at = self.now - HOUR
            r.save()
            return Decision.objects.create(
                experiment=r.experiment, recommendation=r, action="override" if override_to else "accept", override_to=override_to,
                reason=reason, by=by, at=self.now - HOUR, evidence_digest=r.evidence_digest,
            )  # fmt: skip

    def suspend(
        self, e: Experiment, why: str = "vrps of control is 5 h old, its limit is 2 h.", *, late: bool = True
    ) -> None:
        """What the tick shows when the inputs of a proposal have died, or were restated while all of them are fresh."""
        with as_role("owner"):
            cursor = Cursor.objects.get(experiment=e)
            shown = _saying(cursor, {"state": "suspended", "blockers": [why]})
            gates = [g | {"verdict": "stale"} if late and g["kind"] == "freshness" else g for g in shown["gates"]]
            cursor.shown = shown | {"gates": gates}
            cursor.save()

    def break_judging(self, e: Experiment, why: str) -> None:
        """What the tick leaves when it cannot judge an experiment."""
        with as_role("owner"):
            cause = Cause(e.key, why, None)
            suspend(e.pk, cause, now=self.now - HOUR, retry_at=self.now + HOUR)

    def _rows(
        self, e: Experiment, start: dt.datetime, uplift: float, treatments: Sequence[str], lag: dt.timedelta
    ) -> None:
        dice = random.Random(e.name)
        ts = start.replace(minute=0, second=0, microsecond=0) + HOUR
        columns: list[tuple[Any, ...]] = []
        while ts <= self.now - lag:
            beat = 1 + 0.2 * math.sin(ts.weekday() + ts.hour / 24)
            for arm in ("control", *treatments):
                mean = 3.0 * beat * (1 + (uplift if arm != "control" else 0)) + dice.gauss(0, 0.09)
                columns.append((e.pk, ts, "vrps", arm, mean, 1000, 9.0, self.team.pk))
                errors = min(max(0.05 + dice.gauss(0, 0.006), 0), 1)
                columns.append((e.pk, ts, "error_rate", arm, errors, 1000, None, self.team.pk))
            ts += HOUR if ts + STEP > self.now - lag else STEP
        with connection.cursor() as cursor:
            cursor.execute(
                "INSERT INTO metrics.experiment_kpis (experiment_id, ts, metric, variant, value, n, variance, team_id, first_received_at, received_at) "
                "SELECT a, b, c, d, v, n, s, t, b + interval '3 minutes', b + interval '3 minutes' "
                "FROM unnest(%s::bigint[], %s::timestamptz[], %s::text[], %s::text[], %s::float8[], %s::bigint[], %s::float8[], %s::bigint[]) "
                "AS x(a, b, c, d, v, n, s, t)",
                [list(column) for column in zip(*columns, strict=True)],
            )

    def _hours(self) -> None:
        with as_role("worker"):
            from telemetry.hours import rebuild_changed

            while rebuild_changed()[0]:
                pass
            with connection.cursor() as cursor:
                cursor.execute("DELETE FROM metrics.kpi_changes WHERE job = 'fold'")  # as if a tick had judged them

    def _read(self, e: Experiment) -> None:
        """The facts of every look, as the tick stores them."""
        (judging,) = load([e.pk])
        rows = rows_of({e.pk: dict.fromkeys(series_of(judging.plan), judging.plan.started_at)})[e.pk]
        folded = fold(judging.policy, judging.plan, rows, to=to_us(self.now))
        Step.objects.bulk_create(
            Step(experiment=e, team=self.team, slot=from_us(step.slot), body=msgspec.msgpack.encode(step))
            for step in folded.steps
        )

    def _judged(
        self, e: Experiment, action: str, code: str, uplift: float, treatments: Sequence[str], *, started: dt.datetime
    ) -> None:
        at = self.now.replace(minute=self.now.minute // 5 * 5, second=0, microsecond=0)
        since = (at - HOUR * 20).isoformat()
        wins = action == "scale"

        def gate(
            name: str,
            kind: str,
            metric: str | None,
            verdict: str,
            extra: dict[str, Any],
            reading: Any = None,
            variant: str | None = None,
        ) -> dict[str, Any]:
            return {"gate": name, "kind": kind, "variant": variant, "metric": metric, "verdict": verdict, "since": since,
                    "reading": reading, "reason": f"{name} reads as it should, wholly on its side.", "limits": extra}  # fmt: skip

        gates = []
        for arm in treatments:
            reading = {"estimate": uplift, "lower": uplift - 0.03, "upper": uplift + 0.03, "n": 362_000, "running_lower": uplift - 0.02,
                       "running_upper": uplift + 0.03, "p": 0.01, "at": at.isoformat()}  # fmt: skip
            harm = {
                "estimate": 0.009,
                "lower": -0.021,
                "upper": 0.039,
                "n": 362_000,
                "running_lower": -0.02,
                "running_upper": 0.03,
                "p": 1.0,
                "at": at.isoformat(),
            }
            verdict = "pass" if wins else "fail" if action == "delete" else "inconclusive"
            gates += [
                gate(
                    "vrps_uplift",
                    "uplift",
                    "vrps",
                    verdict,
                    {"scale_above": 0.0, "delete_below": 0.02, "effect": "relative", "days_left": 3.2},
                    reading,
                    arm,
                ),
                gate("error_rate_guard", "guard", "error_rate", "pass", {"max_harm": 0.05}, harm, arm),
            ]
        gates += [
            gate("density", "density", None, "pass", {"at_least": 0.95, "observed": 756, "expected": 762}),
            gate("freshness", "freshness", None, "stale" if code == "stale" else "pass", {}),
            gate(
                "srm",
                "srm",
                None,
                "invalid" if code == "invalid" else "pass",
                {
                    "vrps": {
                        "units": {"control": 181_204, "treatment": 180_796},
                        "log_e": 9.1 if code == "invalid" else -3.1,
                    }
                },
            ),
        ]
        said = {"action": action, "code": code, "variant": None, "state": "open", "rationale": ["2 of 7 days and 41,200 units are still to come."],
                "blockers": [], "evidence_digest": None}  # fmt: skip
        lacks = code in ("no_data", "stale", "collecting", "unsafe", "invalid")
        Cursor.objects.update_or_create(
            experiment=e,
            defaults={"team": self.team, "judged_to": at, "readable_at": None if lacks else self.now - 32 * HOUR, "policy_version": PolicyVersion.objects.get(policy__name="default", number=1),
                      "shown": {"as_of": at.isoformat(), "gates": gates, "recommendation": said, "variants": []}},
        )  # fmt: skip
