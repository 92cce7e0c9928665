"""What the database itself refuses, whoever asks and however."""

import pytest
from django.db import connection

from decisioning.access.models import Team
from tests.conftest import as_role


def test_a_request_bound_to_nobody_sees_no_team(team: Team) -> None:
    assert not Team.objects.exists()
    with as_role("worker"):
        assert Team.objects.get() == team


@pytest.mark.django_db
def test_every_table_with_a_team_is_under_forced_row_security() -> None:
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT c.oid::regclass::text, c.relrowsecurity AND c.relforcerowsecurity
            FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'team_id' AND NOT a.attisdropped
            JOIN pg_namespace s ON s.oid = c.relnamespace AND s.nspname NOT IN ('pg_catalog', 'information_schema', 'access')
            WHERE c.relkind IN ('r', 'p') ORDER BY 1
            """
        )
        found = dict(cursor.fetchall())
    assert len(found) > 30
    assert [table for table, secured in found.items() if not secured] == []
