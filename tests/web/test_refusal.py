from __future__ import annotations

import pytest
from aiohttp import web

from aiohttp_interceptors import StopReconnecting
from aiohttp_interceptors.web.request import WINDOW, not_acceptable, stopping, too_many, too_slow


@pytest.mark.parametrize(
    ("make", "status", "most"),
    [
        (lambda: stopping(20.0), 503, 20),
        (lambda: stopping(2.5), 503, 3),
        (lambda: stopping(0.0), 503, 1),
        (lambda: too_many(of_one=False), 503, int(WINDOW)),
        (lambda: too_many(of_one=True), 429, int(WINDOW)),
    ],
)
def test_each_who_may_come_back_is_told_another_whole_second(make, status, most):
    """peer bugs 24 and 69: one second for all would bring them back together."""
    answers = [make() for _ in range(100 * most)]
    assert {answer.status for answer in answers} == {status}
    assert {answer.headers["Retry-After"] for answer in answers} == {str(second) for second in range(1, most + 1)}


@pytest.mark.parametrize(("make", "status"), [(not_acceptable, 406), (too_slow, 408), (StopReconnecting, 204)])
def test_who_would_get_the_same_answer_again_is_not_told_to_return(make, status):
    answer = make()
    assert answer.status == status
    assert "Retry-After" not in answer.headers
    assert isinstance(answer, web.HTTPException)
