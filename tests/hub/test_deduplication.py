"""The deduplication window finds the first result of a key until the window ends, and keeps no result for longer."""

import weakref

from hypothesis import given
from hypothesis import strategies as st

from aiohttp_interceptors.hub.broker import IDEMPOTENCY_WINDOW, DeduplicationWindow

W = IDEMPOTENCY_WINDOW


class Result:
    """An object that supports weak references."""


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([0.0, 1.0, W / 2, W - 1, W, W + 1])), max_size=30))
def test_the_first_result_of_a_key_is_found_within_the_window(calls):
    window, firsts, now = DeduplicationWindow(), {}, 0.0
    for number, (key, seconds) in enumerate(calls):
        now += seconds
        first = firsts.get(key)
        if first is not None and now > first[0] + W:
            first = None
        found = window.find(key, now)
        assert found == (None if first is None else (first[1],))
        if found is None:
            firsts[key] = now, number
            window.add(key, number, now)


def test_none_is_a_result():
    window = DeduplicationWindow()
    assert window.find("k", 0.0) is None
    window.add("k", None, 0.0)
    assert window.find("k", 0.0) == (None,)


def test_a_result_is_found_up_to_the_end_of_the_window():
    window = DeduplicationWindow()
    window.add("k", 1, 7.0)
    assert window.find("k", 7.0 + W) == (1,)
    assert window.find("k", 7.5 + W) is None


def test_expired_results_are_freed_by_the_next_lookup_of_any_key():
    window = DeduplicationWindow()
    results = [Result(), Result(), Result()]
    for number, result in enumerate(results):
        window.add(f"k{number}", result, float(number))
    seen = [weakref.ref(result) for result in results]
    del results, result
    assert window.find("another", 1.5 + W) is None
    assert [ref() is None for ref in seen] == [True, True, False]
