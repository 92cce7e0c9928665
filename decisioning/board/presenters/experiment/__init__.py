"""One experiment's page, as its template takes it."""
