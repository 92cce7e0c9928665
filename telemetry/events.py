"""CloudEvents in: understood ones become rows or experiments, the others wait in quarantine, none is taken in twice.

Like rows, events are decoded straight into typed values; only when that fails is the body read again, event by event, to say
exactly which value is wrong.
"""

import base64
import binascii
import datetime as dt
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Annotated, Any

import msgspec
from django.db import connection, transaction
from django.db.models import Max
from msgspec import Meta

from decisioning.access.models import Team
from decisioning.access.nesting import MAX_DEPTH, is_too_deep
from decisioning.literals import number_or_key
from decisioning.refusals import Fault, Refused
from experiments.models import Experiment, Metric, TargetKpi
from telemetry import ingest, row
from telemetry.models import QuarantinedEvent
from telemetry.row import MAX_ROWS, Row
from telemetry.schemas import TYPES, ExperimentCreated, ExperimentRef, ExposureCounted, MetricObserved, MetricsObserved

MAX_EVENTS = 1_000
EXPOSURES = "exposures"
_EXPOSURES_EVERY_S = 3600
_LONGEST = {"specversion": 20, "source": 400, "id": 200, "type": 200}


class Observed(Row, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One row of one experiment, as it is stored."""

    experiment: ExperimentRef


class ManyObserved(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rows of one experiment, as they are stored."""

    experiment: ExperimentRef
    rows: list[Row]


class _Counted(ExposureCounted, frozen=True, forbid_unknown_fields=True):
    """As it is when it says nothing else."""


Data = Observed | ManyObserved | ExposureCounted | Mapping[str, Any]


class EventsRefused(Refused):
    """Nothing of the request was stored."""


@dataclass(frozen=True)
class Event:
    """One event as it came. `at`: where its data stands in the body. `data` is None when the event was not understood, `body`
    then the whole of it and `reason` why. ignored: fields of its rows that mean nothing here."""

    index: int
    at: str
    source: str
    id: str
    type: str
    data: Data | None = None
    body: Mapping[str, Any] | None = None
    reason: str = ""
    ignored: tuple[str, ...] = ()


@dataclass(frozen=True)
class Received:
    """Counts of events, and of the rows in them. `duplicates` had come before; `refused` only when not atomic."""

    accepted: int = 0
    duplicates: int = 0
    quarantined: int = 0
    new_rows: int = 0
    changed_rows: int = 0
    duplicate_rows: int = 0
    last_ts: dt.datetime | None = None
    ignored: tuple[str, ...] = ()
    refused: tuple[Fault, ...] = field(default=())


# Reading ------------------------------------------------------------------------------------------------------------------


class _Envelope(msgspec.Struct, frozen=True):
    source: Annotated[str, Meta(min_length=1, max_length=_LONGEST["source"])]
    id: Annotated[str, Meta(min_length=1, max_length=_LONGEST["id"])]
    type: str
    specversion: str
    data: msgspec.Raw
    datacontenttype: str = "application/json"
    time: Annotated[dt.datetime, Meta(tz=True)] | None = None


_EXACT: Mapping[type[msgspec.Struct], type[msgspec.Struct]] = {
    MetricObserved: Observed,
    MetricsObserved: ManyObserved,
    ExposureCounted: _Counted,
}
"""What data is decoded into when it says no more than what is stored."""
_one, _many = msgspec.json.Decoder(_Envelope), msgspec.json.Decoder(list[_Envelope])
_data: Mapping[str, msgspec.json.Decoder[Any]] = {
    name: msgspec.json.Decoder(_EXACT[shape]) for name, shape in TYPES.items() if shape in _EXACT
}


def decode(body: bytes, *, batch: bool) -> list[Event] | None:
    """The events of a body that holds nothing but well-formed rows, else None: `check` then reads it with care."""
    if b"\\u0000" in body:
        return None
    try:
        envelopes = _many.decode(body) if batch else [_one.decode(body)]
        return [_typed(index, e, f"/{index}/data" if batch else "/data") for index, e in enumerate(envelopes)]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError):
        return None


def decode_binary(attributes: Mapping[str, str], body: bytes) -> list[Event] | None:
    """As `decode`, of binary mode: attributes come from headers, the body is the data."""
    if b"\\u0000" in body or "\x00" in "".join(attributes.values()):
        return None
    try:
        return [_typed(0, msgspec.convert({**attributes, "data": msgspec.Raw(body)}, _Envelope), "")]
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, KeyError):
        return None


def _typed(index: int, envelope: _Envelope, at: str) -> Event:
    odd_time = envelope.time is not None and row.range_fault(envelope.time)
    if odd_time or envelope.specversion != "1.0" or not is_json(envelope.datacontenttype):
        raise KeyError(envelope.specversion)
    data = _data[envelope.type].decode(envelope.data)
    return Event(index, at, envelope.source, envelope.id, envelope.type, data)


def check(payload: object, *, batch: bool, binary: bool = False) -> tuple[list[Event], list[Fault]]:
    """Good events, and every fault of the others.

    payload: strict JSON, decoded. binary: its attributes came as headers, its `data` as the body, and pointers say so.
    """
    if batch and not isinstance(payload, list):
        raise _wrong_body("A batch is a JSON array of events.")
    raws: Sequence[object] = payload if batch and isinstance(payload, list) else [payload]
    _check_count(len(raws))
    good: list[Event] = []
    bad: list[Fault] = []
    for index, raw in enumerate(raws):
        place = f"/{index}" if batch else ""
        attributes, at = ("ce-", "") if binary else (f"{place}/", f"{place}/data")
        try:
            good.append(_read(index, raw, place=place, attributes=attributes, at=at))
        except _Faulty as faulty:
            bad += [fault.under("", index) for fault in faulty.faults]
    return good, bad


class _Faulty(Exception):
    def __init__(self, faults: Iterable[Fault]) -> None:
        super().__init__()
        self.faults = tuple(faults)


def _wrong_body(detail: str) -> EventsRefused:
    return EventsRefused.of(Fault("", "invalid", detail))


def _check_count(events: int, rows: int = 0) -> None:
    if events > MAX_EVENTS:
        raise EventsRefused("batch_too_large", f"{events} events; at most {MAX_EVENTS} go in one request.", status=413)
    if rows > MAX_ROWS:
        raise EventsRefused("batch_too_large", f"{rows} rows; at most {MAX_ROWS} go in one request.", status=413)


def _read(index: int, raw: object, *, place: str, attributes: str, at: str) -> Event:
    """place, at: where event and data stand. attributes: what stands before their names. Raises _Faulty with everything that is wrong."""
    if not isinstance(raw, Mapping):
        raise _Faulty([Fault(place, "invalid", "An event must be an object.")])
    faults = list(_attribute_faults(raw, attributes))
    if faults:
        raise _Faulty(faults)
    event = Event(index, at, raw["source"], raw["id"], raw["type"])
    if raw["specversion"] != "1.0":
        return replace(event, body=raw, reason=f"specversion is {raw['specversion']!r}; 1.0 is understood.")
    if event.type not in TYPES:
        return replace(event, body=raw, reason=f"{event.type!r} is none of {', '.join(TYPES)}.")
    if not is_json(raw.get("datacontenttype") or "application/json"):
        raise _Faulty([Fault(f"{attributes}datacontenttype", "invalid", "datacontenttype must be application/json.")])
    data = _payload(raw, attributes=attributes, at=at)
    if TYPES[event.type] is ExperimentCreated:
        if not isinstance(data, Mapping):
            raise _Faulty([Fault(at, "invalid", _no_object(data))])
        return replace(event, data=data)
    faults = list(_data_faults(TYPES[event.type], data, at))
    if faults:
        raise _Faulty(faults)
    return replace(event, data=_converted(TYPES[event.type], data), ignored=_ignored(TYPES[event.type], data))


def _attribute_faults(raw: Mapping[str, Any], prefix: str) -> Iterator[Fault]:
    for name, longest in _LONGEST.items():
        value = raw.get(name)
        if value is None:
            yield Fault(f"{prefix}{name}", "missing_field", f"The event has no {name}.")
        elif not isinstance(value, str) or not 1 <= len(value) <= longest or "\x00" in value:
            yield Fault(
                f"{prefix}{name}", "invalid_text", f"{name} must be text of 1 to {longest} characters, without NUL."
            )
    if raw.get("time") is not None:
        for code, detail in row.time_faults("time", raw["time"]):
            yield Fault(f"{prefix}time", code, detail)
    if raw.get("datacontenttype") is not None and not isinstance(raw["datacontenttype"], str):
        yield Fault(f"{prefix}datacontenttype", "invalid_text", "datacontenttype must be text.")


def is_json(content_type: str) -> bool:
    """Whether a media type is JSON."""
    media = content_type.partition(";")[0].strip().lower()
    return media in ("application/json", "text/json") or media.endswith("+json")


def _payload(raw: Mapping[str, Any], *, attributes: str, at: str) -> object:
    if "data_base64" in raw and "data" not in raw:
        with suppress(msgspec.MsgspecError, UnicodeDecodeError, binascii.Error, TypeError, ValueError):
            text = base64.b64decode(raw["data_base64"], validate=True)
            if not is_too_deep(text):
                return msgspec.json.decode(text)
        detail = f"data_base64 must be the base64 of a JSON text, at most {MAX_DEPTH} levels deep."
        raise _Faulty([Fault(f"{attributes}data_base64", "invalid", detail)])
    if "data" not in raw:
        raise _Faulty([Fault(at, "missing_field", "The event has no data.")])
    return raw["data"]


def _data_faults(shape: type[msgspec.Struct], data: object, at: str) -> Iterator[Fault]:
    if not isinstance(data, Mapping):
        yield Fault(at, "invalid", _no_object(data))
        return
    ref = data.get("experiment")
    if ref is None:
        yield Fault(f"{at}/experiment", "missing_field", "experiment is missing: send its number or key.")
    elif isinstance(ref, bool) or not isinstance(ref, (str, int)):
        yield Fault(f"{at}/experiment", "invalid", "experiment must be a number or a key.")
    elif not (1 <= ref < 2**63 if isinstance(ref, int) else 1 <= len(ref) <= 63):
        yield Fault(f"{at}/experiment", "unknown_experiment", f"There is no experiment {str(ref)[:80]!r}.")
    if shape is MetricsObserved:
        rows = data.get("rows")
        if not isinstance(rows, list):
            yield Fault(f"{at}/rows", "missing_field" if "rows" not in data else "invalid", "rows must be a list.")
            return
        _check_count(1, len(rows))
        for index, raw in enumerate(rows):
            yield from _under(f"{at}/rows/{index}", row.row_faults(raw))
    elif shape is ExposureCounted:
        for name in ("variant", "n"):
            if data.get(name) is None:
                yield Fault(f"{at}/{name}", "missing_field", f"{name} is missing.")
        counted = {name: data[name] for name in ("variant", "ts", "n") if name in data}
        yield from _under(at, row.row_faults({**counted, "metric": EXPOSURES, "value": 0}))
    else:
        yield from _under(at, row.row_faults(data))


def _no_object(data: object) -> str:
    if isinstance(data, str):
        return (
            'data is a text. Send the JSON object itself: "data": {"experiment": ..., ...}, not a text that holds one.'
        )
    return "data must be an object."


def _under(at: str, faults: Iterable[Fault]) -> Iterator[Fault]:
    return (fault.under(at) for fault in faults)


def _converted(shape: type[msgspec.Struct], data: object) -> Data:
    assert isinstance(data, Mapping)  # noqa: S101 - _data_faults has seen to it
    if shape is MetricsObserved:
        return ManyObserved(data["experiment"], [row.row_of(raw) for raw in data["rows"]])
    if shape is ExposureCounted:
        return ExposureCounted(data["experiment"], data["variant"], row.instant(data["ts"]), int(data["n"]))
    return Observed(experiment=data["experiment"], **msgspec.structs.asdict(row.row_of(data)))


def _ignored(shape: type[msgspec.Struct], data: object) -> tuple[str, ...]:
    assert isinstance(data, Mapping)  # noqa: S101 - as above
    if shape is MetricsObserved:
        return row.ignored_names(data["rows"])
    known = shape.__struct_fields__
    return row.ignored_names([{name: data[name] for name in data if name not in known or name == "denominator"}])


# Taking in ----------------------------------------------------------------------------------------------------------------

Create = Callable[[Mapping[str, Any]], None]
"""Creates an experiment from data, in the caller's transaction. Raises Refused, with pointers below the data."""


def receive(
    events: Sequence[Event],
    *,
    team: Team,
    create: Create,
    now: dt.datetime,
    bad: Sequence[Fault] = (),
    atomic: bool = True,
    single: bool = False,
) -> Received:
    """Take events in, in the caller's transaction; experiments before rows. An event is taken in whole or not at all.

    bad: faults that reading found already. atomic: refuse all when one is bad. single: the request is one event, whose refusal
    keeps its own code. Raises EventsRefused.
    """
    _check_count(len(events) + len({fault.index for fault in bad}))
    faults = list(bad)
    if faults and atomic:
        raise _refusal(faults, single=single)
    while True:
        with transaction.atomic():
            received, found, own = _take(events, team=team, create=create, now=now)
            if found:
                transaction.set_rollback(True)
        if not found:
            return replace(received, refused=tuple(sorted(faults, key=lambda fault: fault.index)))
        faults += found
        if atomic:
            raise _refusal(faults, single=single, own=own)
        gone = {fault.index for fault in found}
        events = [event for event in events if event.index not in gone]


def _refusal(faults: Sequence[Fault], *, single: bool, own: tuple[str, int] | None = None) -> EventsRefused:
    first = min(faults, key=lambda fault: fault.index)
    more = f" And {len(faults) - 1} more, see errors." if len(faults) > 1 else ""
    code, status = ("invalid" if single else "invalid_rows"), 422
    if {fault.code for fault in faults} == {"conflicting_row"}:
        code, status = "conflicting_row", 409
    elif single and own:
        code, status = own
    return EventsRefused(
        code, f"Event {first.index}: {first.detail}{more} Nothing was stored.", status=status, errors=faults
    )


def _take(
    events: Sequence[Event], *, team: Team, create: Create, now: dt.datetime
) -> tuple[Received, list[Fault], tuple[str, int] | None]:
    understood = [event for event in events if event.data is not None]
    strange = [event for event in events if event.data is None]
    new = _first_of(understood, _remember(understood, team, now))
    kept = _first_of(strange, _quarantine(strange, team, now))
    faults: list[Fault] = []
    own: tuple[str, int] | None = None
    for event in new:
        if isinstance(event.data, Mapping):
            try:
                with transaction.atomic():
                    create(event.data)
            except Refused as refusal:
                own = (refusal.code, refusal.status)
                wrong = refusal.errors or (Fault("", refusal.code, refusal.message),)
                faults += [fault.under(event.at, event.index) for fault in wrong]
    done = Received(
        accepted=len(new), duplicates=len(events) - len(new) - len(kept), quarantined=len(kept)
    )  # fmt: skip
    counted, found = _store_rows([e for e in new if not isinstance(e.data, Mapping)], team=team, now=now)
    return (
        replace(
            done,
            new_rows=sum(c.accepted for c in counted),
            changed_rows=sum(c.changed for c in counted),
            duplicate_rows=sum(c.duplicates for c in counted),
            last_ts=max((c.last_ts for c in counted if c.last_ts), default=None),
            ignored=tuple(sorted({name for event in new for name in event.ignored})),
        ),
        faults + found,
        own,
    )


def _first_of(events: Sequence[Event], new: set[tuple[str, str]]) -> list[Event]:
    """Of events that are new, the first with each (source, id)."""
    first: dict[tuple[str, str], Event] = {}
    for event in events:
        if (event.source, event.id) in new:
            first.setdefault((event.source, event.id), event)
    return list(first.values())


_REMEMBER = """
INSERT INTO metadata.events (team_id, source, event_id, type, received_at)
SELECT %s, source, event_id, type, %s FROM unnest(%s::text[], %s::text[], %s::text[]) AS t(source, event_id, type)
ON CONFLICT (team_id, source, event_id) DO NOTHING RETURNING source, event_id
"""
_QUARANTINE = """
INSERT INTO metadata.quarantined_events (team_id, source, event_id, type, received_at, reason, body)
SELECT %s, source, event_id, type, %s, reason, body
FROM unnest(%s::text[], %s::text[], %s::text[], %s::text[], %s::jsonb[]) AS t(source, event_id, type, reason, body)
ON CONFLICT (team_id, source, event_id) DO NOTHING RETURNING source, event_id
"""


def _remember(events: Sequence[Event], team: Team, now: dt.datetime) -> set[tuple[str, str]]:
    """Those nobody has sent before. Sorted, so that two requests with the same events cannot wait for each other."""
    ordered = sorted({(e.source, e.id): e for e in events}.items())
    if not ordered:
        return set()
    with connection.cursor() as cursor:
        columns = [[e.source for _, e in ordered], [e.id for _, e in ordered], [e.type for _, e in ordered]]
        cursor.execute(_REMEMBER, [team.pk, now, *columns])
        return set(cursor.fetchall())


def _quarantine(events: Sequence[Event], team: Team, now: dt.datetime) -> set[tuple[str, str]]:
    ordered = sorted({(e.source, e.id): e for e in reversed(events)}.items())
    if not ordered:
        return set()
    with connection.cursor() as cursor:
        columns = [
            [e.source for _, e in ordered],
            [e.id for _, e in ordered],
            [e.type for _, e in ordered],
            [e.reason[:400] for _, e in ordered],
            [msgspec.json.encode(e.body).decode() for _, e in ordered],
        ]
        cursor.execute(_QUARANTINE, [team.pk, now, *columns])
        return set(cursor.fetchall())


def _store_rows(events: Sequence[Event], *, team: Team, now: dt.datetime) -> tuple[list[ingest.Ingested], list[Fault]]:
    targets = ingest.targets({_ref(event) for event in events}, team_id=team.pk)
    exposed: dict[int, str] = {}
    faults: list[Fault] = []
    by_experiment: dict[int, list[tuple[Event, str, Row]]] = defaultdict(list)
    for event in events:
        target = targets.get(_ref(event))
        if target is None:
            detail = f"Your team has no experiment {_ref(event)!r}. Create it with POST /api/experiments."
            faults.append(Fault(f"{event.at}/experiment", "unknown_experiment", detail, event.index))
            continue
        pk = target.experiment_id
        if isinstance(event.data, ExposureCounted) and pk not in exposed:
            exposed[pk] = exposure_metric(Experiment.objects.get(pk=pk), now=now)
        by_experiment[pk] += [(event, pointer, one) for pointer, one in _rows(event, exposed.get(pk, EXPOSURES))]
    _check_count(0, sum(map(len, by_experiment.values())))
    done: list[ingest.Ingested] = []
    for pk, rows in sorted(by_experiment.items()):
        ingested = ingest.ingest(
            targets[pk], list(enumerate(one for _, _, one in rows)), now=now, atomic=False, place=partial(_place, rows)
        )
        done.append(ingested)
        for fault in ingested.refused:
            event, pointer, _ = rows[fault.index]
            suffix = fault.pointer.removeprefix(f"/rows/{fault.index}")
            faults.append(Fault(f"{pointer}{suffix}", fault.code, fault.detail, event.index))
    return done, faults


def _place(rows: Sequence[tuple[Event, str, Row]], index: int) -> str:
    """What the sender calls a row."""
    event, pointer, _ = rows[index]
    return f"event {event.index}" if pointer == event.at else f"row {pointer.rpartition('/')[2]} of event {event.index}"


def _ref(event: Event) -> str | int:
    assert not isinstance(event.data, Mapping) and event.data is not None  # noqa: S101, PT018
    ref = event.data.experiment
    return number_or_key(ref) if isinstance(ref, str) else ref


def _rows(event: Event, exposure: str) -> Iterator[tuple[str, Row]]:
    """(place of the row in the body, row)."""
    data = event.data
    if isinstance(data, ManyObserved):
        for index, one in enumerate(data.rows):
            yield f"{event.at}/rows/{index}", one
    elif isinstance(data, Observed):
        yield event.at, data
    elif isinstance(data, ExposureCounted):
        # Units are n; the value repeats it for people, and nothing varies within a count.
        yield (
            event.at,
            Row(metric=exposure, variant=data.variant, ts=data.ts, value=float(data.n), n=data.n, variance=0.0),
        )


def exposure_metric(experiment: Experiment, *, now: dt.datetime) -> str:
    """The metric that counts units assigned to this experiment's variants; the plan gets one when it has none."""
    planned = experiment.targetkpis.filter(role=TargetKpi.Role.EXPOSURE).select_related("metric").first()
    if planned:
        return planned.metric.key
    Metric.objects.bulk_create(
        [
            Metric(
                key=EXPOSURES,
                name="Exposures",
                unit="units",
                direction=None,
                expected_every_s=_EXPOSURES_EVERY_S,
                freshness_target_s=_EXPOSURES_EVERY_S,
                definition="Units assigned to a variant in the bucket.",
                team=experiment.team,
                created_at=now,
            )
        ],
        ignore_conflicts=True,
    )
    last = experiment.targetkpis.aggregate(last=Max("position"))["last"]
    TargetKpi.objects.bulk_create(
        [
            TargetKpi(
                experiment=experiment,
                team=experiment.team,
                metric=Metric.objects.get(key=EXPOSURES),
                role=TargetKpi.Role.EXPOSURE,
                position=0 if last is None else last + 1,
            )
        ],
        ignore_conflicts=True,
    )
    return EXPOSURES


# Quarantine ---------------------------------------------------------------------------------------------------------------


def replay(quarantined: QuarantinedEvent, *, create: Create, now: dt.datetime) -> Received:
    """Take in an event that waits in quarantine. Raises EventsRefused: 409 `not_understood` while it still is not."""
    held = QuarantinedEvent.objects.select_for_update().select_related("team").get(pk=quarantined.pk)
    events, bad = check(held.body, batch=False)
    if events and events[0].data is None:
        raise EventsRefused("not_understood", f"{events[0].reason} It stays in quarantine.", status=409)
    received = receive(events, team=held.team, create=create, now=now, bad=bad, single=True)
    held.replayed_at = held.replayed_at or now
    held.save(update_fields=["replayed_at"])
    return received
