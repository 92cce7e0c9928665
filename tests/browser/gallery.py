"""A board with something of everything: long names, every action, every status, stale data, nothing yet."""

import datetime as dt
import uuid

from django.contrib.auth.models import User

from decisioning.access.models import Membership, Team
from decisioning.ledger import channels
from decisioning.ledger.delivery import Outcome, deliver
from decisioning.ledger.models import Alarm, Channel
from decisioning.ledger.outbox import EVENTS, publish
from experiments import feeds
from experiments.models import Experiment, Metric, Variant
from gates.engine.policy import DEFAULT_BODY
from gates.models import Backtest, Cursor, Decision, Policy, PolicyVersion, Recommendation
from telemetry.models import Outage, QuarantinedEvent, RefreshRun, Source
from tests.board.scenes import HOUR, Scene
from tests.conftest import as_role

LONG = "Seasonal-creative-rotation-with-per-market-hero-images-and-localised-call-to-action-copy-that-does-not-break-anywhere"


UNBROKEN = "Anzeigenmotivwechselzurweihnachtszeitmitmarktspezifischembild"[:60]


def rename(scene: Scene) -> None:
    """Call everything that has a name by 60 characters without a blank: what a card, a head or a table has to bear."""
    hang(scene)
    proposal = Recommendation.objects.filter(experiment__key="scene-3")
    with as_role("owner"):
        Experiment.objects.update(name=UNBROKEN, hypothesis=UNBROKEN, owner=UNBROKEN)
        Metric.objects.update(name=UNBROKEN, unit=UNBROKEN[:20])
        Variant.objects.filter(control=False).update(name=UNBROKEN)
        Team.objects.update(name=UNBROKEN)
        Policy.objects.filter(team__isnull=False).update(name=UNBROKEN.lower())
        Source.objects.filter(path="rows.csv").update(path=f"{UNBROKEN}.csv", metrics=[UNBROKEN.lower()])
        RefreshRun.objects.update(job_name=UNBROKEN, error=UNBROKEN)
        User.objects.update(first_name=UNBROKEN, email=f"{UNBROKEN}@example.org")
        Decision.objects.exclude(reason="").update(reason=UNBROKEN, by=UNBROKEN)
        proposal.update(rationale=[UNBROKEN], blockers=[UNBROKEN])
        User.objects.create_user(UNBROKEN)
        Membership.objects.create(team=scene.team, user=User.objects.get(username=UNBROKEN), role="viewer")
        QuarantinedEvent.objects.create(
            team=scene.team, source=UNBROKEN, event_id="1", type=UNBROKEN, reason=UNBROKEN, body={UNBROKEN: UNBROKEN}, received_at=scene.now
        )  # fmt: skip
    with as_role("worker"):
        Channel.objects.update(name=UNBROKEN)


def hang(scene: Scene) -> None:
    """Fill the scene's team."""
    stop = scene.experiment(
        "Price quotes written by the support agent", action="delete", code="unsafe", days=3, uplift=-0.02
    )
    scene.proposal(stop, "delete", "unsafe", ago=0.6 * HOUR)
    win = scene.experiment("One-page checkout", key="checkout-one-page", action="scale", code="wins", days=16)
    scene.proposal(win, "scale", "wins", ago=20.5 * HOUR)
    split = scene.experiment(
        LONG, action="review", code="invalid", days=6, uplift=0.026, hypothesis=f"{LONG} sells better"
    )
    scene.proposal(split, "review", "invalid", ago=9 * HOUR)
    small = scene.experiment("Anchor price beside bundles with a name in plain words that is rather long but wraps", action="review",
                             code="too_small", days=21, uplift=0.009)  # fmt: skip
    scene.proposal(small, "review", "too_small", ago=30 * HOUR)
    bad = scene.experiment("Looping video in the hero", action="delete", code="not_worth_it", days=14, uplift=0.002)
    scene.proposal(bad, "delete", "not_worth_it", ago=2 * HOUR)
    dead = scene.experiment("Checkout with a scan", action="scale", code="wins", days=12, lag=dt.timedelta(hours=5))
    scene.proposal(dead, "scale", "wins", ago=8 * HOUR)
    scene.suspend(dead)
    _overtaken(scene, scene.experiment("Quieter push digest", days=2, uplift=0.016))
    scene.experiment(
        "Receipt QR on store terminals", days=6, code="stale", lag=dt.timedelta(hours=3), treatments=("qr", "nfc")
    )
    scene.experiment("Loyalty points at the cart", status="paused", days=9, uplift=0.008)
    scene.experiment("Handover summary for human agents", status="draft")
    scene.experiment("Nothing sent yet", days=1, rows=False, code="no_data")
    scaled = scene.experiment("Free returns banner", status="scaled", action="scale", code="wins", days=20)
    decided = scene.answered(scene.proposal(scaled, "scale", "wins", ago=6 * HOUR))
    with as_role("owner"):
        said = {str(decided.pk): {"action": "hold", "code": "collecting"}}
        Cursor.objects.filter(experiment=scaled).update(revisions=said)
    over = scene.experiment("Gift wrap upsell", status="deleted", action="scale", code="wins", days=12)
    scene.answered(scene.proposal(over, "scale", "wins", ago=7 * HOUR), override_to="delete",
                   reason="Wrapping stations are full until 15 Dec, we would miss delivery dates.")  # fmt: skip
    _webhooks(scene)
    _sources(scene)
    _feeds(scene)
    _candidate(scene)


def _feeds(scene: Scene) -> None:
    """A feed of weekdays, outages on, ahead and over, one alarm that is open and one that is snoozed, both of feeds that are late."""
    with as_role("owner"):
        errors = Metric.objects.get(key="error_rate")
        feeds.set_out(
            errors, {"every": "weekdays", "at": "06:00", "timezone": "Europe/Berlin"}, since=None, now=scene.now
        )
        for begins, ends, metrics in ((-5, 30, ["error_rate"]), (48, 60, ["vrps"]), (-40, -30, ["vrps"])):
            Outage.objects.create(
                team=scene.team, begins_at=scene.now + begins * HOUR, ends_at=scene.now + ends * HOUR, metrics=metrics, created_at=scene.now,
                reason="The warehouse moves to another hall, and nothing is counted until the shelves stand again",
            )  # fmt: skip
        late = {"experiment": "checkout-one-page", "experiments": ["checkout-one-page", "scene-6"], "experiments_late": 40, "experiments_waiting": 38,
                "proposals_suspended": 1, "feed": {"source": "warehouse", "metrics": ["vrps"]}, "feeds_late": 1, "portal_away": None,
                "kpis": [{"metric": "vrps", "role": "goal", "data_watermark": scene.now.isoformat(), "stale_at": scene.now.isoformat()}]}  # fmt: skip
        common = {
            "team_id": scene.team.pk,
            "type": "freshness.breached",
            "data": late,
            "told": late,
            "began_at": scene.now - HOUR,
            "told_at": scene.now,
        }
        sources = Source.objects.filter(metrics__contains=["vrps"]).order_by("key").values_list("key", flat=True)
        for n, key in enumerate(sources):
            snoozed = (
                {"snoozed_until": scene.now + 20 * HOUR, "snoozed_by": "ada", "snoozed_because": LONG} if n == 0 else {}
            )
            Alarm.objects.create(subject=f"source {key}", **common, **snoozed)


def _overtaken(scene: Scene, e: Experiment) -> None:
    """It runs on after an answer that rows have overtaken; its effect drifts, and its newest rows are not judged yet."""
    decided = scene.answered(
        scene.proposal(e, "scale", "wins", ago=7 * HOUR), override_to="hold", reason="Not in December."
    )
    with as_role("owner"):
        cursor = Cursor.objects.get(experiment=e)
        cursor.revisions = {str(decided.pk): {"action": "review", "code": "too_small"}}
        shown = cursor.shown or {}
        shown["recommendation"] |= {"action": "hold", "code": "open", "state": "open", "evidence_digest": None}
        (goal, *_) = shown["gates"]
        goal["limits"]["drift"] = True
        goal["reading"] |= {"running_lower": 0.03, "running_upper": 0.01, "at": (scene.now - 3 * HOUR).isoformat()}
        cursor.save()


def _sources(scene: Scene) -> None:
    """One that is good, and one with a long name that fails."""
    common = {"team": scene.team, "kind": "file", "query": "SELECT :since, :until", "schedule_s": 900,
              "created_at": scene.now - 60 * HOUR, "due_at": scene.now, "metrics": ["vrps"]}  # fmt: skip
    with as_role("owner"):
        Source.objects.create(key="warehouse", path="rows.csv", last_refresh_at=scene.now - HOUR, **common)
        for quarter in range(1, 97):
            if quarter % 31 not in (7, 8):
                began = scene.now - quarter * HOUR / 4
                RefreshRun.objects.create(
                    run_id=uuid.uuid4(), job_name="warehouse", source="warehouse", team=scene.team, started_at=began, finished_at=began,
                    status="failed" if quarter % 29 == 3 else "succeeded",
                )  # fmt: skip
        Source.objects.create(key=LONG[:60].lower().replace(".", "-"), path=f"{LONG}.parquet", failures=3, **common)


def _candidate(scene: Scene) -> None:
    """A policy whose second version has a backtest and waits for somebody else."""
    with as_role("owner"):
        policy = Policy.objects.create(name="careful", team=scene.team, created_at=scene.now)
        common = {"policy": policy, "team": scene.team, "author": "ada", "created_at": scene.now}
        PolicyVersion.objects.create(number=1, body=DEFAULT_BODY, activated_at=scene.now, activated_by="ada", **common)
        version = PolicyVersion.objects.create(number=2, body=DEFAULT_BODY | {"min_days": 10}, **common)
        at = scene.now.isoformat()
        decided = {"action": "scale", "code": "wins", "slot": at}
        told = {
            "experiment": "checkout-one-page",
            "variants": [{"variant": "treatment", "live": decided, "candidate": None, "flip": False, "gained": False, "lost": True, "days_saved": None}],
            "answers": [{"at": at, "variant": None, "person": "scale", "live": "scale", "candidate": "hold"}],
            "stretches": [{"begin": at, "end": at, "live": ["scale", "wins"], "candidate": ["hold", "collecting"]}],
        }  # fmt: skip
        figures = {"flips": 0, "gained": 0, "lost": 1, "days_saved": None, "agreement": 0.0, "live_agreement": 1.0}
        Backtest.objects.create(version=version, team=scene.team, asked_by="ada", asked_at=scene.now, state=Backtest.State.FINISHED,
                                finished_at=scene.now, result=figures | {"experiments": [told]})  # fmt: skip


def _webhooks(scene: Scene) -> None:
    """One that gets everything and fails at it, and one that was turned off."""
    with as_role("worker"):
        url = "https://93.184.216.34/a-rather-long-path-that-does-not-break-by-itself/" + "x" * 60
        channel, _ = channels.open_channel(scene.team, url=url, events=list(EVENTS), by="ada", now=scene.now)
        publish(team_id=scene.team.pk, experiment_id=1, type="experiment.changed", data={"experiment": "checkout-one-page"}, now=scene.now)  # fmt: skip
        channels.try_out(channel, by="ada", now=scene.now)
        failing = Outcome(500, "It answered 500: " + "upstream connect error or disconnect before headers " * 3)
        deliver(lambda _delivery, _now: failing, clock=lambda: scene.now)
        slack = "https://hooks.slack.com/services/T0/B0/x"
        channels.open_channel(scene.team, url=slack, events=["decision.proposed"], by="ada", now=scene.now)
        Channel.objects.filter(kind="slack").update(
            enabled=False, disabled_at=scene.now, disabled_reason="Its receiver answered 410 Gone on 2026-11-20."
        )
