"""The permission table: every address of the portal, by method, and what one has to hold there.

The views refuse by themselves; this is what they are held against. `tests.access.test_table` walks every address the
router knows: one without a row here fails, and so does a row whose word does not hold for each role of two teams.
Addresses are written as in the URL files. An object of another team is 404 wherever one is named, unless SHARED.
"""

from enum import StrEnum
from types import MappingProxyType

from decisioning.access.scopes import Scope


class Need(StrEnum):
    """What is asked where no scope is."""

    NOTHING = "nothing"  # answers anybody
    KEY_OR_SESSION = "key or session"  # whoever is somebody
    SESSION = "session"  # a person who is signed in; a person in no team sees no rows
    STAFF = "staff"  # the admin: Django's own rights, behind row security like everybody


type Row = dict[str, Scope | Need]
READ, WRITE, KEYS = Scope.READ, Scope.WRITE, Scope.KEYS

# Under /api/ and, the same, under /api/v1/.
API: MappingProxyType[str, Row] = MappingProxyType({
    "experiments": {"GET": READ, "POST": WRITE},
    "experiments/<str:ref>": {"GET": READ, "PATCH": WRITE},
    "experiments/<str:ref>/kpis": {"GET": READ, "POST": Scope.TELEMETRY},
    "experiments/<str:ref>/transitions": {"POST": WRITE},
    "experiments/<str:ref>/decision": {"GET": READ, "POST": Scope.REVIEW},
    "experiments/<str:ref>/decisions": {"GET": READ},
    "experiments/<str:ref>/gates": {"GET": READ},
    "experiments/<str:ref>/forecast": {"GET": READ},
    "experiments/<str:ref>/evaluations": {"GET": READ},
    "experiments/<str:ref>/kpis/<str:metric>/doubt": {"GET": READ, "POST": Scope.REVIEW},
    "experiments/<str:ref>/evaluate": {"POST": WRITE},
    "experiments/<str:ref>/evidence/<str:digest>": {"GET": READ},
    "experiments/<str:ref>/evidence/<str:digest>/verify": {"POST": READ},  # recomputes, writes nothing
    "experiments/<str:ref>/audit": {"GET": READ},
    "experiments/<str:ref>/assets": {"GET": READ},
    "metrics": {"GET": READ, "POST": WRITE},
    "metrics/<str:key>": {"GET": READ, "PATCH": WRITE},
    "metrics/<str:key>/schedule": {"GET": READ},
    "refresh-log": {"GET": READ},
    "freshness": {"GET": READ},
    "policies": {"GET": READ, "POST": Scope.POLICIES},
    "policies/<str:name>": {"GET": READ},
    "policies/<str:name>/versions": {"GET": READ, "POST": Scope.POLICIES},
    "policies/<str:name>/versions/<int:number>": {"GET": READ},
    "policies/<str:name>/versions/<int:number>/backtest": {"GET": READ, "POST": Scope.POLICIES},
    "policies/<str:name>/versions/<int:number>/activate": {"POST": Scope.POLICIES},
    "keys": {"GET": KEYS, "POST": KEYS},
    "keys/<str:ref>": {"GET": KEYS, "DELETE": KEYS},
    "webhooks": {"GET": KEYS, "POST": KEYS},
    "webhooks/<int:pk>": {"GET": KEYS, "DELETE": KEYS},
    "webhooks/<int:pk>/test": {"POST": KEYS},
    "webhooks/<int:pk>/deliveries": {"GET": KEYS},
    "webhooks/<int:pk>/deliveries/<int:delivery>/redeliver": {"POST": KEYS},
    "alarms": {"GET": READ},
    "alarms/<int:pk>": {"GET": READ},
    "alarms/<int:pk>/snooze": {"POST": WRITE, "DELETE": WRITE},
    "alarms/<int:pk>/acknowledgement": {"POST": WRITE, "DELETE": WRITE},
    "events": {"POST": Scope.TELEMETRY},
    "lineage": {"POST": Scope.LINEAGE},
    "lineage/batch": {"POST": Scope.LINEAGE},
    "quarantine": {"GET": READ},
    "quarantine/<int:pk>/replay": {"POST": Scope.TELEMETRY},
    "slo": {"GET": READ},
    "outages": {"GET": READ, "POST": Scope.TELEMETRY},
    "outages/<int:pk>": {"GET": READ, "PATCH": Scope.TELEMETRY, "DELETE": Scope.TELEMETRY},
    "sources": {"GET": READ, "POST": WRITE},
    "sources/<str:key>": {"GET": READ},
    "sources/<str:key>/refresh": {"POST": Scope.TELEMETRY},
    "openapi.json": {"GET": Need.NOTHING},
    "docs": {"GET": Need.NOTHING},
    "schemas": {"GET": Need.NOTHING},
    "schemas/<str:type_>": {"GET": Need.NOTHING},
    "": {},  # any other address: 404
})  # fmt: skip

# For people, by session.
BOARD: MappingProxyType[str, Row] = MappingProxyType({
    "": {"GET": Need.SESSION},
    "board/news": {"GET": Need.SESSION},
    "board/watch": {"GET": Need.SESSION},
    "board.csv": {"GET": Need.SESSION},
    "new": {"GET": WRITE, "POST": WRITE},
    "new/duration": {"GET": Need.SESSION},
    "experiments/<slug:ref>": {"GET": READ},
    "experiments/<slug:ref>/decision": {"POST": Scope.REVIEW},
    "experiments/<slug:ref>/to/<slug:status>": {"GET": WRITE, "POST": WRITE},
    "experiments/<slug:ref>/doubt/<slug:metric>": {"GET": READ, "POST": Scope.REVIEW},
    "experiments/<slug:ref>/report": {"GET": READ},
    "experiments/<slug:ref>/rows.csv": {"GET": READ},
    "experiments/<slug:ref>/gates.csv": {"GET": READ},
    "experiments/<slug:ref>/effects.csv": {"GET": READ},
    "experiments/<slug:ref>/days.csv": {"GET": READ},
    "experiments/<slug:ref>/timeline.csv": {"GET": READ},
    "experiments/<slug:ref>/evidence/<str:digest>.json": {"GET": READ},
    "experiments/<slug:ref>/evidence/<str:digest>/replay": {"POST": READ},
    "experiments/<slug:ref>/variants/<slug:variant>/picture": {"POST": WRITE},
    "assets/<int:pk>": {"GET": READ},
    "assets/<int:pk>/small": {"GET": READ},
    "charts/<str:token>.png": {"GET": Need.NOTHING},  # the address is signed and holds what it shows
    "alarms": {"GET": Need.SESSION},
    "alarms/<int:pk>": {"GET": READ},
    "alarms/<int:pk>/snooze": {"POST": WRITE},
    "alarms/<int:pk>/wake": {"POST": WRITE},
    "alarms/<int:pk>/acknowledge": {"POST": WRITE},
    "freshness": {"GET": Need.SESSION},
    "freshness/schedules/<str:key>": {"GET": Need.SESSION, "POST": WRITE},
    "freshness.csv": {"GET": Need.SESSION},
    "outages": {"GET": Need.SESSION, "POST": Scope.TELEMETRY},
    "outages/<int:pk>/end": {"POST": Scope.TELEMETRY},
    "outages/<int:pk>/take-back": {"GET": Scope.TELEMETRY, "POST": Scope.TELEMETRY},
    "refresh-log": {"GET": Need.SESSION},
    "refresh-log.csv": {"GET": Need.SESSION},
    "quarantine": {"GET": Need.SESSION},
    "quarantine.csv": {"GET": Need.SESSION},
    "quarantine/<int:pk>/replay": {"POST": Scope.TELEMETRY},
    "sources": {"GET": Need.SESSION},
    "sources.csv": {"GET": Need.SESSION},
    "sources/<int:pk>/try": {"POST": Scope.TELEMETRY},
    "sources/<int:pk>/refresh": {"POST": Scope.TELEMETRY},
    "promises": {"GET": Need.SESSION},
    "policies": {"GET": Need.SESSION},
    "promises.csv": {"GET": Need.SESSION},
    "policies.csv": {"GET": Need.SESSION},
    "policies/<int:pk>": {"GET": READ},
    "policies/<int:pk>/<int:number>": {"GET": READ},
    "policies/<int:pk>/next": {"GET": Scope.POLICIES, "POST": Scope.POLICIES},
    "policies/<int:pk>/<int:number>/copy": {"GET": Scope.POLICIES, "POST": Scope.POLICIES},
    "policies/<int:pk>/<int:number>/backtest.csv": {"GET": READ},
    "policies/<int:pk>/<int:number>/backtest": {"POST": Scope.POLICIES},
    "policies/<int:pk>/<int:number>/activate": {"POST": Scope.POLICIES},
    "audit": {"GET": Need.SESSION},
    "audit.csv": {"GET": Need.SESSION},
    "keys": {"GET": KEYS, "POST": KEYS},
    "keys.csv": {"GET": KEYS},
    "keys/<int:pk>/revoke": {"GET": KEYS, "POST": KEYS},
    "webhooks": {"GET": KEYS, "POST": KEYS},
    "webhooks/<int:pk>": {"GET": KEYS},
    "webhooks.csv": {"GET": KEYS},
    "webhooks/<int:pk>/deliveries.csv": {"GET": KEYS},
    "webhooks/<int:pk>/test": {"POST": KEYS},
    "webhooks/<int:pk>/delete": {"GET": KEYS, "POST": KEYS},
    "webhooks/<int:pk>/deliveries/<int:delivery>/again": {"POST": KEYS},
    "profile": {"GET": Need.SESSION},
    "profile/zone": {"POST": Need.SESSION},
    "teams/<slug:ref>": {"GET": READ, "POST": KEYS},
    "teams/<slug:ref>/members/<int:pk>": {"POST": KEYS},
    "teams/<slug:ref>/members/<int:pk>/remove": {"GET": KEYS, "POST": KEYS},
    "teams/<slug:ref>/invitations/<int:pk>/withdraw": {"POST": KEYS},
    "join": {"GET": Need.NOTHING, "POST": Need.NOTHING},  # ?with= is the invitation
    "sign-in": {"GET": Need.NOTHING, "POST": Need.NOTHING},
    "sign-out": {"POST": Need.NOTHING},
    "password": {"GET": Need.SESSION, "POST": Need.SESSION, "PUT": Need.SESSION},  # Django takes PUT as POST
    "password/changed": {"GET": Need.SESSION},
})  # fmt: skip

# Beside both.
REST: MappingProxyType[str, Row] = MappingProxyType({
    "healthz": {"GET": Need.NOTHING},
    "readyz": {"GET": Need.NOTHING},
    "metrics": {"GET": Need.NOTHING},  # from loopback, else with its own token
    "admin/login/": {"GET": Need.NOTHING, "POST": Need.NOTHING},
    "admin/logout/": {"POST": Need.NOTHING},
})  # fmt: skip

# What a superuser may do to each model in the admin; staff needs Django's permission for it too. Facts are looked at.
ADMIN: MappingProxyType[str, frozenset[str]] = MappingProxyType({
    model: frozenset(may.split())
    for model, may in {
        "access.apikey": "view",  # and the action that revokes
        "access.membership": "view add change delete",
        "access.team": "view add change delete",
        "auth.group": "view add change delete",
        "auth.user": "view add change delete",
        "experiments.asset": "view change",
        "experiments.experiment": "view change",
        "experiments.metric": "view add change",
        "gates.decision": "view",
        "gates.evaluation": "view",
        "gates.policy": "view add",
        "gates.policybinding": "view add change delete",
        "gates.policyversion": "view add",
        "gates.recommendation": "view",
        "ledger.alarm": "view",
        "ledger.channel": "view",
        "ledger.delivery": "view",
        "ledger.entry": "view",
        "ledger.heartbeat": "view",
        "ledger.outboxmessage": "view",
        "telemetry.outage": "view add change delete",
        "telemetry.quarantinedevent": "view",
        "telemetry.refreshrun": "view",
        "telemetry.source": "view add change delete",
        "telemetry.sourceplace": "view add change delete",
    }.items()
})  # fmt: skip

# Named objects that every team reads: the registry of metrics. Changing another team's is 403.
SHARED = frozenset({"freshness/schedules/<str:key>", "metrics/<str:key>", "metrics/<str:key>/schedule"})
