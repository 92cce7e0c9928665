"""Programs of other projects that some tests run. Where one is absent its tests are skipped, under CI=true they fail."""

import os
import shutil

import pytest


def needs_program(name: str, package: str = "") -> None:
    """Skip the test, or fail it in CI, where the program is not installed. package: Debian's, if of another name."""
    if shutil.which(name) is None:
        if os.environ.get("CI") == "true":
            pytest.fail(f"{name} is missing: apt-get install {package or name}")
        pytest.skip(f"{name} is not installed")
