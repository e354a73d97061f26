"""What to do about an engine that is not there: go without, but not where everything has to be tested."""

from __future__ import annotations

import os

import pytest


def needs(name: str, found: str | None) -> str:
    """Return what was found of an engine; else skip the test, or fail where ``CI`` is ``true``."""
    if found:
        return found
    if os.environ.get("CI") == "true":
        pytest.fail(f"{name} is not installed, and with CI=true its tests are not skipped")
    pytest.skip(f"{name} is not installed")
