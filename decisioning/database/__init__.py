"""The connection to PostgreSQL: whether a server answers, and which one is asked."""
