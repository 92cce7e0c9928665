"""The portal's own settings with one other address, so that its authentication, scopes, row security, idempotency and rate limit stand before it."""

from decisioning.settings import *  # noqa: F403

ROOT_URLCONF = "tests.benchmarks.naive.urls"
