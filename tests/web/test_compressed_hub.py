"""The tests of a Hub's streams once more, with streams that are compressed and clients that decompress them."""

from __future__ import annotations

import pytest

from aiohttp_interceptors import Compression, compression, start_topic_stream
from tests.web.test_isolation import *  # noqa: F403
from tests.web.test_latest_values import *  # noqa: F403
from tests.web.test_opening_topic_streams import *  # noqa: F403
from tests.web.test_presence import *  # noqa: F403
from tests.web.test_topic_stream_requests import *  # noqa: F403


@pytest.fixture(autouse=True)
def compressed(monkeypatch):
    """Make the option on by default, also for streams with ``select``, and share from two streams on."""
    monkeypatch.setitem(start_topic_stream.__kwdefaults__, "compress", Compression(with_select=True))
    monkeypatch.setattr(compression, "MIN_SHARED", 2)
