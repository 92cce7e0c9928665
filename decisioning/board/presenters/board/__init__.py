"""The board, as its template takes it."""
