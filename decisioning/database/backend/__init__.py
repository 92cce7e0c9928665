"""Django's PostgreSQL backend on connections that notice when their server is away."""
