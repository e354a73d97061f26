"""Tests on asyncio's event loop and on uvloop: import ``event_loop_policy`` and use the marks ``BOTH_LOOPS``."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

# An event loop policy is the only way that all supported versions of pytest-asyncio have.
BOTH_LOOPS = [
    pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture is deprecated"),
    pytest.mark.filterwarnings("ignore:.*EventLoopPolicy.* is deprecated:DeprecationWarning"),  # Python 3.14
]


@pytest.fixture(params=["asyncio", "uvloop"])
def event_loop_policy(request):
    return uvloop.EventLoopPolicy() if request.param == "uvloop" else asyncio.DefaultEventLoopPolicy()
