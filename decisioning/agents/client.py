"""The portal over HTTP, for programs: one class, plain dicts in and out, refusals as exceptions. Imports no Django."""

import hashlib
import json
import math
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from email.utils import parsedate_to_datetime
from itertools import batched
from typing import Any, Self
from urllib.parse import quote

import httpx

from decisioning.literals import rfc3339

type Json = dict[str, Any]
"""A JSON object as docs/api.md shows it."""

ROWS_A_BATCH = 10_000
_LATER = frozenset({429, 502, 503, 504})


def place(*parts: str | int) -> str:
    """An address under /api/ out of its parts, whatever characters a key was given with.

    >>> place("experiments", "a/b?", "kpis")
    '/api/experiments/a%2Fb%3F/kpis'
    """
    return "/".join(["/api", *(quote(str(part), safe=":") for part in parts)])


class PortalError(Exception):
    """The portal refused. `code` is stable, `detail` says what to do; `errors` is a list of {pointer, code, detail}."""

    def __init__(self, status: int, code: str, detail: str, errors: Sequence[Json] = ()) -> None:
        super().__init__(detail)
        self.status, self.code, self.detail, self.errors = status, code, detail, list(errors)

    def __str__(self) -> str:
        if len(self.errors) < 2:  # then the detail says it all
            return f"{self.detail} ({self.code}, {self.status})"
        where = "; ".join(f"{e.get('pointer', '')}: {e.get('detail') or e.get('code', '')}" for e in self.errors[:5])
        return f"{self.detail} ({self.code}, {self.status}): {where}"


class Unreachable(Exception):
    """No portal answered at that address within the patience given."""


@dataclass(frozen=True)
class Receipt:
    """What became of rows that were sent. `refused` maps the position of a row to (code, detail); `ignored` are fields that mean nothing there."""

    accepted: int = 0
    changed: int = 0
    duplicates: int = 0
    refused: dict[int, tuple[str, str]] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()

    def __add__(self, other: Self) -> "Receipt":
        return Receipt(
            self.accepted + other.accepted,
            self.changed + other.changed,
            self.duplicates + other.duplicates,
            self.refused | other.refused,
            tuple(sorted({*self.ignored, *other.ignored})),
        )


class Portal:
    """One portal, asked with one key. Methods raise PortalError for a refusal, Unreachable when nobody answers.

    patience_s: for how long a call is repeated while the portal says 429 or 503, or cannot be reached. Repeating is
    harmless: rows are keyed by what they measure, and every POST carries an Idempotency-Key.
    """

    def __init__(
        self,
        url: str,
        key: str,
        *,
        patience_s: float = 30.0,
        timeout_s: float = 30.0,
        transport: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = url.rstrip("/")
        self._patience_s, self._sleep = patience_s, sleep
        self.answered_at: str | None = None
        """When the portal gave its last answer, by its own clock, as RFC 3339."""
        self.http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {key}", "Accept": "application/json, application/problem+json"},
            timeout=timeout_s,
            transport=transport,
            trust_env=False,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_raised: object) -> None:
        self.http.close()

    # Any call ---------------------------------------------------------------------------------------------------------

    def get(self, path: str, **parameters: Any) -> Any:
        """The JSON at a path; parameters that are None are left out."""
        return self._call("GET", path, params={k: v for k, v in parameters.items() if v is not None})

    def post(self, path: str, body: Mapping[str, Any] | None = None, **parameters: Any) -> Any:
        """POST a JSON body; the JSON that comes back, None when there is none."""
        try:
            content = json.dumps(body or {}, allow_nan=False)
        except ValueError:
            content = json.dumps(_with_texts(body))
        return self._call("POST", path, params=parameters, content=content.encode())

    def patch(self, path: str, body: Mapping[str, Any]) -> Any:
        """PATCH with a JSON body; the JSON that comes back."""
        return self._call("PATCH", path, content=json.dumps(body).encode())

    def delete(self, path: str) -> None:
        """Take away what is at a path."""
        self._call("DELETE", path)

    def pages(self, path: str, **parameters: Any) -> Iterator[Json]:
        """Every result of a list, page after page."""
        page = self.get(path, **parameters)
        while True:
            yield from page["results"]
            if not page.get("next"):
                return
            page = self._call("GET", str(page["next"]))

    # Experiments ------------------------------------------------------------------------------------------------------

    def create_experiment(self, plan: Mapping[str, Any]) -> Json:
        """Create an experiment as docs/api.md says under Create; returns its document."""
        made: Json = self.post("/api/experiments", plan)
        return made

    def experiment(self, key: str) -> Json:
        """The experiment document; `key` is the key or the number."""
        found: Json = self.get(place("experiments", key))
        return found

    def experiments(self, **filters: Any) -> Iterator[Json]:
        """Board rows: filter by status, team, owner, recommendation, freshness, metric, search."""
        return self.pages("/api/experiments", limit=200, **filters)

    def transition(self, key: str, to: str, *, reason: str = "") -> Json:
        """Start, pause, resume or stop."""
        why = {"reason": reason} if reason else {}
        moved: Json = self.post(place("experiments", key, "transitions"), {"to": to, **why})
        return moved

    # Telemetry --------------------------------------------------------------------------------------------------------

    def push(
        self,
        key: str,
        rows: Iterable[Mapping[str, Any]],
        *,
        atomic: bool = True,
        sent: Callable[[int], None] = lambda _count: None,
    ) -> Receipt:
        """Send rows of one experiment, 10,000 a call. `sent` hears how many went out with each.

        A row says its spread once: `variance`, `stddev` or `standard_error` beside `value`, or `sum` with `sum_squares` in place of both.

        Not atomic: good rows go in, bad ones are in `Receipt.refused`. Atomic: each call is all or nothing, and bad
        rows raise PortalError.
        """
        total, start = Receipt(), 0
        for batch in batched(rows, ROWS_A_BATCH, strict=False):
            answer = self.post(
                place("experiments", key, "kpis"), {"rows": batch}, **({} if atomic else {"atomic": "false"})
            )
            total += Receipt(
                answer["accepted"],
                answer["changed"],
                answer["duplicates"],
                _refused(answer.get("errors", ()), start),
                tuple(answer.get("ignored", ())),
            )
            start += len(batch)
            sent(len(batch))
        return total

    def report_run(
        self, job: str, *, started_at: datetime, finished_at: datetime, rows: int | None = None, error: str = ""
    ) -> None:
        """Leave a finished run in the refresh log, as OpenLineage. `job` is `namespace/name`."""
        namespace, _, name = job.rpartition("/")
        event: Json = {
            "eventTime": finished_at.isoformat(),
            "eventType": "FAIL" if error else "COMPLETE",
            "run": {"runId": str(uuid.uuid4()), "facets": {"errorMessage": {"message": error}} if error else {}},
            "job": {"namespace": namespace, "name": name},
        }
        if rows is not None:
            facets = {"outputStatistics": {"rowCount": rows}}
            event["outputs"] = [{"namespace": namespace, "name": name, "outputFacets": facets}]
        start = event | {"eventTime": started_at.isoformat(), "eventType": "START"}
        self._call("POST", "/api/v1/lineage/batch", content=json.dumps([start, event]).encode())

    # Decisions --------------------------------------------------------------------------------------------------------

    def decision(self, key: str) -> Json:
        """What is recommended now, for the experiment and each treatment, and what was answered."""
        found: Json = self.get(place("experiments", key, "decision"))
        return found

    def answer(self, key: str, digest: str, action: str = "accept", **more: str) -> Json:
        """Accept or override the recommendation that rests on this evidence."""
        given: Json = self.post(
            place("experiments", key, "decision"), {"evidence_digest": digest, "action": action, **more}
        )
        return given

    def evaluate(self, key: str) -> str:
        """Ask for an evaluation as of the newest slot; returns that slot."""
        return str(self.post(place("experiments", key, "evaluate"))["slot"])

    def ensure_policy(self, name: str, body: Mapping[str, Any], *, team: str | None = None) -> str:
        """A team policy with this body, made when absent; returns its name, which tells bodies apart."""
        canonical = json.dumps(body, sort_keys=True, allow_nan=False)
        mark = hashlib.sha256(canonical.encode()).hexdigest()[:6]
        stem = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:50] or "policy"
        full = f"{stem}-{mark}"
        try:
            self.post("/api/policies", {"name": full, "body": body, **({"team": team} if team else {})})
        except PortalError as refusal:
            if refusal.code != "key_taken":
                raise
        return full

    # The wire ---------------------------------------------------------------------------------------------------------

    def _call(
        self, method: str, path: str, *, params: Mapping[str, Any] | None = None, content: bytes | None = None
    ) -> Any:
        headers = {} if content is None else {"Content-Type": "application/json", "Idempotency-Key": uuid.uuid4().hex}
        waited = 0.0
        while True:
            try:
                response = self.http.request(method, path, params=params or None, content=content, headers=headers)
            except httpx.TransportError as problem:
                wait, final = 1.0, Unreachable(f"{self.url} does not answer: {problem or type(problem).__name__}")
                if waited + wait > self._patience_s:
                    raise final from problem
            else:
                if response.is_success:
                    self.answered_at = _instant(response.headers.get("Date"))
                    return response.json() if response.content else None
                wait = _retry_after(response)
                if response.status_code not in _LATER or waited + wait > self._patience_s:
                    raise _refusal(response)
            self._sleep(wait)
            waited += wait


def _with_texts(value: Any) -> Any:
    """Floats that JSON has no number for as texts, which the portal refuses in the place where they stand."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {name: _with_texts(inner) for name, inner in value.items()}
    return [_with_texts(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _instant(date: str | None) -> str | None:
    """
    >>> _instant("Tue, 24 Nov 2026 06:17:00 GMT")
    '2026-11-24T06:17:00Z'
    """
    return rfc3339(parsedate_to_datetime(date)) if date else None


def _retry_after(response: httpx.Response) -> float:
    text = response.headers.get("Retry-After", "")
    return max(float(text), 0.05) if text.isdigit() else 1.0


def _refusal(response: httpx.Response) -> PortalError:
    try:
        problem = response.json()
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        return PortalError(response.status_code, "no_problem_json", f"HTTP {response.status_code} from {response.url}")
    detail = problem.get("detail") or problem.get("title") or f"HTTP {response.status_code}"
    return PortalError(response.status_code, str(problem.get("code", "")), str(detail), problem.get("errors") or ())


def _refused(errors: Sequence[Json], start: int) -> dict[int, tuple[str, str]]:
    """Bad rows of a 207 by their position among all rows sent."""
    found: dict[int, tuple[str, str]] = {}
    for error in errors:
        index = error.get("index")
        if index is None:  # the pointer names it: /rows/17/value
            index = int(str(error["pointer"]).split("/")[2])
        code = str(error.get("code", ""))
        found.setdefault(start + int(index), (code, str(error.get("detail") or code)))
    return found
