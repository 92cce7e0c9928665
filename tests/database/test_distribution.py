"""Tables that grow with experiments could be distributed by experiment: docs/scale.md says how."""

from django.db import connection

OF_EXPERIMENTS = {
    "metrics.experiment_kpis",
    "metrics.kpi_hours",
    "metrics.kpi_changes",
    "metadata.cursors",
    "metadata.claims",
    "metadata.steps",
    "metadata.evaluations",
    "metadata.evidence",
    "metadata.recommendations",
    "metadata.decisions",
    "metadata.variants",
    "metadata.target_kpis",
    "metadata.pauses",
}
_KEYS = """
SELECT n.nspname || '.' || r.relname, i.relname, array_agg(a.attname::text ORDER BY a.attname) FROM pg_index x
JOIN pg_class r ON r.oid = x.indrelid JOIN pg_namespace n ON n.oid = r.relnamespace JOIN pg_class i ON i.oid = x.indexrelid
JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum = ANY (x.indkey)
WHERE x.indisunique AND NOT r.relispartition GROUP BY 1, 2
"""


def test_every_unique_key_of_what_grows_with_experiments_holds_the_experiment_or_numbers_a_row(db: None) -> None:
    with connection.cursor() as cursor:
        cursor.execute(_KEYS)
        keys = cursor.fetchall()
    found = {table for table, _, _ in keys}
    others = {
        (table, columns[0])
        for table, _, columns in keys
        if table in OF_EXPERIMENTS and "experiment_id" not in columns and columns != ["id"]
    }

    assert found >= OF_EXPERIMENTS
    assert others == {("metadata.decisions", "recommendation_id")}, "a decision lies where its recommendation does"
