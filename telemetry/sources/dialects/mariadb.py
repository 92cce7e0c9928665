"""MariaDB, which is read as MySQL is. Tried by us."""

from dataclasses import replace

from telemetry.sources.dialects import mysql

DIALECT = replace(mysql.DIALECT, driver="mariadb+pymysql", extra="mariadb")
