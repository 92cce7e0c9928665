"""A row for each of two teams in every table that belongs to a team, whatever tables there are."""
# ruff: noqa: S608 - names out of the catalogue, no values

import json
from typing import Any

from psycopg import sql

from tests.access.logins import Psql

OURS = "nspname IN ('public', 'access', 'metadata', 'metrics', 'audit')"
OWN, FOREIGN = 901, 902

# What a CHECK wants to see; everything else is made from the column's type.
_VALUES: dict[str, object] = {
    "channels.disabled_reason": "",
    "channels.enabled": True,
    "channels.kind": "webhook",
    "decisions.action": "accept",
    "decisions.override_to": "",
    "deliveries.state": "waiting",
    "experiments.status": "draft",
    "kpi_changes.job": "fold",
    "metric_schedules.expected": {"every_s": 3_600},
    "outages.ends_at": "2026-11-02T00:00:00Z",
    "outages.metrics": ["visits"],
    "refresh_log.status": "running",
    "sources.kind": "file",
    "sources.url_env": "",
    "variants.weight": 1,
    "target_kpis.role": "goal",
}
_BY_TYPE: dict[str, object] = {
    "bool": False,
    "timestamptz": "2026-11-01T00:00:00Z",
    "date": "2026-11-01",
    "jsonb": "{}",
    "bytea": b"x",
    "float8": 0.5,
    "inet": "192.0.2.1",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "interval": "1 second",
}


def team_tables(db: Psql) -> dict[str, str]:
    """Every ordinary or partitioned table of a team, and the column that says which; partitions are not listed."""
    return dict(
        db.execute(
            f"""
            SELECT c.oid::regclass::text, CASE WHEN c.relname = 'teams' THEN 'id' ELSE 'team_id' END
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace AND {OURS}
            WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND (c.relname = 'teams' OR EXISTS (
              SELECT FROM pg_attribute a WHERE a.attrelid = c.oid AND a.attname = 'team_id' AND NOT a.attisdropped))
            ORDER BY 1"""
        ).fetchall()
    )


def lay_out(db: Psql) -> None:
    """One row for OWN and one for FOREIGN in each of them. As superuser: constraints between tables and triggers are asleep."""
    with db.transaction():
        db.execute("SET LOCAL session_replication_role = replica")
        for table, column in team_tables(db).items():
            for team in (OWN, FOREIGN):
                _insert(db, table, {**_row(db, table, team), column: team})


def _row(db: Psql, table: str, seed: int) -> dict[str, object]:
    columns = db.execute(
        """
        SELECT a.attname, t.typname, CASE WHEN a.atttypmod > 4 THEN a.atttypmod - 4 END
        FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
        WHERE a.attrelid = %s::regclass AND a.attnum > 0 AND NOT a.attisdropped AND a.attnotnull AND NOT a.atthasdef
          AND a.attgenerated = '' AND a.attidentity <> 'a'""",
        [table],
    ).fetchall()
    return {name: _value(f"{table.rpartition('.')[2]}.{name}", kind, size, seed) for name, kind, size in columns}


def _value(column: str, kind: str, size: int | None, seed: int) -> Any:
    if column in _VALUES:
        return _VALUES[column]
    if kind.startswith("_"):
        return []
    if kind.startswith("int"):
        return seed
    if kind in ("text", "varchar"):
        return f"x{seed}"[: size or 100]
    if kind == "bytea":
        return str(seed).encode()
    return _BY_TYPE[kind]


def _insert(db: Psql, table: str, row: dict[str, object]) -> None:
    db.execute(
        sql.SQL("INSERT INTO {} ({}) OVERRIDING SYSTEM VALUE VALUES ({})").format(
            sql.Identifier(*table.split(".")),
            sql.SQL(", ").join(map(sql.Identifier, row)),
            sql.SQL(", ").join(sql.Placeholder() * len(row)),
        ),
        [json.dumps(value) if isinstance(value, dict) else value for value in row.values()],
    )
