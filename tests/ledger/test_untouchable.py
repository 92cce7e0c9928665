"""History is written by triggers alone: the application's roles can neither write it nor go around it."""

import psycopg
import pytest

from tests.access.logins import psql

pytestmark = pytest.mark.django_db


@pytest.mark.parametrize("role", ["web", "worker"])
@pytest.mark.parametrize(
    "statement",
    [
        """INSERT INTO audit.entries (object_pk, object_repr, action, changes_text, timestamp, content_type_id, actor_kind, actor_name)
           VALUES ('1', 'x', 0, '', now(), 1, 'user', 'me')""",
        "UPDATE audit.entries SET actor_name = 'me'",
        "DELETE FROM audit.entries",
        "TRUNCATE audit.entries",
        "SELECT audit.write('a.b', 0, '1', 'x', NULL, NULL, NULL)",
        "SELECT setval('audit.entries_id_seq', 1)",
        "SELECT nextval('audit.entries_id_seq')",
        "CREATE TRIGGER mine AFTER INSERT ON metadata.teams FOR EACH ROW EXECUTE FUNCTION audit.record()",
        "ALTER TABLE metadata.teams DISABLE TRIGGER ALL",
        "CREATE TEMP TABLE t (id int); CREATE TRIGGER mine AFTER INSERT ON t FOR EACH STATEMENT EXECUTE FUNCTION audit.record('a.b', 'id', 'id', '', '{}', '{}')",
        "UPDATE audit.seals SET digest = ''",
        "DELETE FROM audit.seals",
        "SELECT ids FROM audit.seals",
        "UPDATE audit.mark SET last_id = 0",
        "SET session_replication_role = replica",
        "DROP TRIGGER audit_update ON metadata.teams",
    ],
)
def test_the_applications_roles_cannot_touch_history(role: str, statement: str) -> None:
    with psql(role) as db, pytest.raises(psycopg.errors.InsufficientPrivilege):
        db.execute(statement)


def test_requests_cannot_seal_or_verify() -> None:
    with psql("web") as db:
        for call in ("SELECT audit.seal()", "SELECT audit.verify()", "SELECT audit.digest('', 1, 2, '{}')"):
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                db.execute(call)
