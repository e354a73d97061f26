"""Both event loops: who imports ``event_loop_policy`` and is marked ``BOTH_LOOPS`` runs on each of them."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

# pytest-asyncio has no other way for all of its versions that we support.
BOTH_LOOPS = [
    pytest.mark.filterwarnings("ignore:Overriding the .event_loop_policy. fixture is deprecated"),
    pytest.mark.filterwarnings("ignore:.*EventLoopPolicy.* is deprecated:DeprecationWarning"),  # Python 3.14
]


@pytest.fixture(params=["asyncio", "uvloop"])
def event_loop_policy(request):
    return uvloop.EventLoopPolicy() if request.param == "uvloop" else asyncio.DefaultEventLoopPolicy()
