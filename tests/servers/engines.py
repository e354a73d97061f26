"""Skip tests whose engine is not installed, except in CI."""

from __future__ import annotations

import os

import pytest


def needs(name: str, found: str | None) -> str:
    """Return the path that was found. Without one, skip the test, or fail it if ``CI`` is ``true``."""
    if found:
        return found
    if os.environ.get("CI") == "true":
        pytest.fail(f"{name} is not installed, and with CI=true its tests must not be skipped")
    pytest.skip(f"{name} is not installed")
