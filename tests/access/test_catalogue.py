"""What PostgreSQL's catalogue says about rights. A new table, view, function or grant that nobody thought about fails here."""
# ruff: noqa: S608 - names out of the catalogue, no values

from typing import Any

import pytest
from django.db import connection

from tests.access.scene import OURS

pytestmark = pytest.mark.django_db

# Tables without a team, and why that is right.
NO_TEAM = {
    "public.auth_user", "public.auth_group", "public.auth_permission", "public.auth_group_permissions", "public.auth_user_groups",
    "public.auth_user_user_permissions", "public.django_session", "public.django_admin_log", "public.django_content_type",
    "public.django_migrations",  # Django's own: people, not teams
    "public.login_attempts",  # asked before anybody is known
    "public.auditlog_logentry",  # auditlog's stock table: unused, granted to nobody
    "access.locks", "audit.noted", "audit.to_erase",  # granted to nobody
    "audit.erased",  # which entries were erased of whom, by number: the worker's alone
    "audit.heartbeats", "audit.seals", "audit.mark", "audit.verification", "audit.reads", "access.restored",  # about the portal itself
}  # fmt: skip

# Who, beside the owner, may call what.
WEB, WORKER, READER = "decisioning_web", "decisioning_worker", "decisioning_reader"
CALLABLE = {
    "access.bind": {WEB, WORKER},
    "access.bind_key": {WEB, WORKER},
    "access.bind_api_key": {WEB, WORKER},
    "access.bind_user": {WEB, WORKER},
    "access.end_readers": {WORKER},
    "access.experiment_key_taken": {WEB, WORKER},
    "access.is_admin": {WEB, WORKER},
    "access.key_problem": {WEB, WORKER},
    "access.lock": {WORKER},
    "access.reader_teams": {READER},
    "access.setting": {WEB, WORKER},
    "access.standing": {WEB, WORKER},
    "access.teams": {WEB, WORKER},
    "audit.erase": {WORKER},
    "audit.hash": {WEB, WORKER, READER},
    "audit.refusal": {WEB, WORKER},
    "audit.reading": {WEB, WORKER},
    "audit.seal": {WORKER},
    "audit.signed": {WEB, WORKER},
    "audit.verify": {WORKER},
    "metadata.metric_users": {WEB, WORKER},
    "metadata.place_is_free": {WEB, WORKER},
    "metadata.policy_in_force": {WEB, WORKER},
    "metrics.answered": {WEB, WORKER},
    "metrics.default_partition_rows": {WORKER},
    "metrics.drop_partition": {WORKER},
    "metrics.due_after": {WEB, WORKER},
    "metrics.due_before": {WEB, WORKER},
    "metrics.due_nearest": {WEB, WORKER},
    "metrics.dues": {WEB, WORKER},
    "metrics.expected_after": {WEB, WORKER},
    "metrics.drop_partitions": {WORKER},
    "metrics.freshness": {WEB, WORKER},
    "metrics.latencies": {WEB, WORKER},
    "metrics.make_partitions": {WORKER},
    "metrics.not_copied": {READER},
    "metrics.old_partitions": {WORKER},
    "metrics.outage_until": {WEB, WORKER},
    "metrics.watermark": {WEB, WORKER},
    "metrics.watermark_beside": {WEB, WORKER},
}


def rows(sql: str) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql)
        return list(cursor.fetchall())


def test_every_table_is_under_forced_row_security_or_known_to_have_no_team() -> None:
    found = dict(
        rows(
            f"""
            SELECT n.nspname || '.' || c.relname, c.relrowsecurity AND c.relforcerowsecurity
            FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace AND {OURS} WHERE c.relkind IN ('r', 'p', 'f', 'm')"""
        )
    )
    assert len(found) > 40
    assert {name for name, secured in found.items() if not secured} - NO_TEAM == set()


def test_a_table_without_a_policy_for_a_role_is_not_granted_to_it() -> None:
    assert not rows(
        f"""
        SELECT c.oid::regclass::text, role FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace AND {OURS},
          unnest('{{{WEB},{WORKER},{READER}}}'::text[]) AS role
        WHERE c.relrowsecurity AND has_any_column_privilege(role, c.oid, 'SELECT')
          AND NOT EXISTS (SELECT FROM pg_policy p WHERE p.polrelid = c.oid AND role::regrole = ANY (p.polroles))"""
    )


def test_no_policy_is_for_everybody_and_only_owner_and_worker_have_one_without_a_condition() -> None:
    # The registry of metrics is shared by all teams, and with it when their rows are due.
    assert set(
        rows(
            """
            SELECT c.relname, r::regrole::text FROM pg_policy p JOIN pg_class c ON c.oid = p.polrelid, unnest(p.polroles) AS r
            WHERE r = 0 OR (r::regrole::text NOT IN ('decisioning_owner', 'decisioning_worker') AND pg_get_expr(p.polqual, p.polrelid) = 'true')"""
        )
    ) == {(table, role) for table in ("metrics", "metric_schedules", "due_instants") for role in (WEB, READER)}


def test_the_applications_roles_are_ordinary() -> None:
    for name, *powers in rows(
        "SELECT rolname, rolsuper, rolbypassrls, rolcreaterole, rolreplication FROM pg_roles "
        "WHERE rolname ~ '^decisioning_' AND rolname <> 'decisioning_backup'"
    ):
        assert not any(powers), name
    assert not rows(
        f"""
        SELECT c.oid::regclass::text, c.relowner::regrole::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace AND {OURS}
        WHERE c.relowner <> 'decisioning_owner'::regrole"""
    )
    # USAGE: rights that are held without SET ROLE (which the test cluster alone allows).
    for role in (WEB, WORKER, READER):
        for other in ("decisioning_owner", "decisioning_backup", "postgres", "pg_read_all_data", "pg_write_all_data"):
            assert rows(f"SELECT pg_has_role('{role}', '{other}', 'USAGE')") == [(False,)], (role, other)
    assert rows(f"SELECT pg_has_role('{WEB}', '{WORKER}', 'USAGE'), pg_has_role('{READER}', '{WEB}', 'MEMBER')") == [
        (False, False)
    ]


def test_nobody_may_truncate_reference_or_hang_triggers_on_a_table_or_change_a_schema() -> None:
    assert not rows(
        f"""
        SELECT c.oid::regclass::text, role, right_ FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace AND {OURS},
          unnest('{{{WEB},{WORKER},{READER}}}'::text[]) AS role, unnest('{{TRUNCATE,REFERENCES,TRIGGER,MAINTAIN}}'::text[]) AS right_
        WHERE c.relkind IN ('r', 'p', 'v', 'm') AND has_table_privilege(role, c.oid, right_)"""
    )
    assert not rows(
        f"""
        SELECT nspname, role FROM pg_namespace, unnest('{{{WEB},{WORKER},{READER}}}'::text[]) AS role
        WHERE {OURS} AND has_schema_privilege(role, oid, 'CREATE')"""
    )
    assert not rows(
        f"""
        SELECT c.oid::regclass::text, role FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace AND {OURS},
          unnest('{{{WEB},{WORKER},{READER}}}'::text[]) AS role
        WHERE c.relkind = 'S' AND (has_sequence_privilege(role, c.oid, 'UPDATE')
          OR role = '{READER}' AND has_sequence_privilege(role, c.oid, 'USAGE, SELECT'))"""
    )


def test_nothing_is_granted_on_partitions_or_to_everybody() -> None:
    assert not rows(
        f"""
        SELECT c.oid::regclass::text, role FROM pg_class c, unnest('{{{WEB},{WORKER},{READER}}}'::text[]) AS role
        WHERE c.relispartition AND c.relkind = 'r' AND has_any_column_privilege(role, c.oid, 'SELECT, INSERT, UPDATE')"""
    )
    assert not rows(
        f"""
        SELECT c.oid::regclass::text, a.privilege_type FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace AND {OURS}, aclexplode(c.relacl) AS a
        WHERE a.grantee = 0"""
    )


def test_readers_are_granted_nothing_but_reading() -> None:
    assert not rows(
        f"""
        SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace AND {OURS}
        WHERE c.relkind IN ('r', 'p', 'v', 'm') AND has_any_column_privilege('{READER}', c.oid, 'INSERT, UPDATE')"""
    )
    assert not rows(
        f"SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace AND nspname = 'public' WHERE c.relkind IN ('r', 'p', 'v') AND has_any_column_privilege('{READER}', c.oid, 'SELECT')"
    )


def test_functions_are_callable_by_those_meant_and_nobody_else() -> None:
    found: dict[str, set[str]] = {}
    for name, role in rows(
        f"""
        SELECT n.nspname || '.' || p.proname, role FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace AND {OURS},
          unnest('{{{WEB},{WORKER},{READER}}}'::text[]) AS role
        WHERE has_function_privilege(role, p.oid, 'EXECUTE')
          AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.objid = p.oid AND d.deptype = 'e')"""
    ):
        found.setdefault(name, set()).add(role)
    assert found == CALLABLE


def test_functions_that_run_as_their_owner_say_where_names_are_looked_up() -> None:
    assert not rows(
        f"""
        SELECT p.oid::regprocedure::text, p.proconfig::text FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace AND {OURS}
        WHERE p.prosecdef AND NOT EXISTS (SELECT FROM unnest(p.proconfig) AS c WHERE c ~ '^search_path=.*pg_temp"?$')"""
    )


def test_views_ask_with_the_rights_of_who_asks() -> None:
    assert not rows(
        f"""
        SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace AND {OURS}
        WHERE c.relkind = 'm' OR c.relkind = 'v' AND NOT coalesce(c.reloptions @> '{{security_invoker=true}}', false)"""
    )
