"""MySQL and MariaDB, by PyMySQL. Which of the two answers is asked, not taken from the URL: each limits a statement by a word of its own.

Tried by us with MariaDB.
"""

from typing import Any

from sqlalchemy import URL, Connection

from telemetry.sources.dialects import Dialect
from telemetry.sources.refusals import SourceFailed

_STRONG = ("ALL PRIVILEGES ON *.*", "FILE", "SUPER")


def _connecting(url: URL, limit_s: float) -> dict[str, Any]:
    asked: dict[str, Any] = {"connect_timeout": 5, "read_timeout": int(limit_s) + 5, "local_infile": False}
    if url.password:
        asked["password"] = url.password.encode()  # of a text the driver makes Latin-1, the servers mean UTF-8
    return {"connect_args": asked}


def _begin(connection: Connection, limit_s: float) -> None:
    grants = [str(row[0]) for row in connection.exec_driver_sql("SHOW GRANTS")]
    for held in _STRONG:
        if any(grant.startswith("GRANT") and " ON *.* " in grant and _names(grant, held) for grant in grants):
            raise SourceFailed(
                f"Its login holds {held}, by which it reads files of the server. Use one that may only read."
            )
    version = str(connection.exec_driver_sql("SELECT version()").scalar_one())
    limit = (
        f"max_statement_time = {limit_s:g}"
        if "MariaDB" in version
        else f"max_execution_time = {max(1, int(limit_s * 1000))}"
    )
    # A TIMESTAMP is read in the session's zone. AVG and VAR_SAMP over whole numbers carry four decimals unless told otherwise.
    connection.exec_driver_sql(f"SET SESSION {limit}, time_zone = '+00:00', div_precision_increment = 30")
    connection.exec_driver_sql("SET SESSION TRANSACTION READ ONLY")
    connection.commit()  # the next transaction is the first that is read-only


def _names(grant: str, privilege: str) -> bool:
    held = grant.partition(" TO ")[0].removeprefix("GRANT ").replace(" ON *.*", "")
    return privilege.removesuffix(" ON *.*") in [one.strip() for one in held.split(",")]


DIALECT = Dialect(driver="mysql+pymysql", extra="mysql", connecting=_connecting, begin=_begin, means_utc=True)
