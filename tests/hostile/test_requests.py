"""Any request: nothing is a 500, nothing hangs, nothing is logged as a traceback, and nothing is kept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.hostile.client import ENDS
from tests.hostile.profile import fuzz
from tests.hostile.requests import growth, requests, survives
from tests.hostile.site import BODY_ROUTES, OTHER_ROUTES, STREAM_ROUTES


@pytest.fixture(scope="module", params=[False, True], ids=["production", "handler_cancellation"])
def handler_cancellation(request) -> bool:
    return request.param


def test_any_request_is_answered_and_leaves_nothing(runner, site):
    @fuzz(150)
    @given(request=requests(), end=st.sampled_from(ENDS), cut=st.integers(0, 200))
    def check(request, end, cut):
        runner.run(survives(site, request, end, cut))

    for path in STREAM_ROUTES + BODY_ROUTES + OTHER_ROUTES:  # what is made once, or read last, is there from now on
        runner.run(survives(site, b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode()))
    before = runner.run(site.holdings())
    check()
    assert growth(before, runner.run(site.holdings())) == {}
