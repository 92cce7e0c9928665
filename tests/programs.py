"""Programs of other projects that some tests run. Where one is absent its tests are skipped, under CI=true they fail."""

import os
import shutil

import pytest


def needs_program(name: str, package: str = "") -> str:
    """Its path. Skips the test, or fails it in CI, where it is not installed. package: Debian's, if of another name."""
    found = shutil.which(name)
    if found is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{name} is missing: apt-get install {package or name}")
        pytest.skip(f"{name} is not installed")
    return found
