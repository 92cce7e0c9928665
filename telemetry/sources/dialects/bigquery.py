"""BigQuery, by its own driver; its times are UTC. It has no read-only session: give the account `BigQuery Data Viewer` and `Job User`.

Not tried by us.
"""

from telemetry.sources.dialects import Dialect

DIALECT = Dialect(driver="bigquery", extra="bigquery")
