"""How an experiment is judged, as docs/gates.md says: pure, without a framework, a clock or a database."""
