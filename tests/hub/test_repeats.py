"""What was published under an idempotency key is known as long as was said, and not remembered for longer."""

import weakref

from hypothesis import given
from hypothesis import strategies as st

from aiohttp_interceptors.hub.broker import IDEMPOTENCY_WINDOW, DeduplicationWindow

W = IDEMPOTENCY_WINDOW


class Result:
    """Something of which is known when it is gone."""


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([0.0, 1.0, W / 2, W - 1, W, W + 1])), max_size=30))
def test_of_all_calls_with_a_key_within_the_window_the_first_one_counts(calls):
    repeats, firsts, now = DeduplicationWindow(), {}, 0.0
    for number, (key, seconds) in enumerate(calls):
        now += seconds
        first = firsts.get(key)
        if first is not None and now > first[0] + W:
            first = None
        found = repeats.find(key, now)
        assert found == (None if first is None else (first[1],))
        if found is None:
            firsts[key] = now, number
            repeats.note(key, number, now)


def test_that_nothing_was_the_result_is_a_result():
    repeats = DeduplicationWindow()
    assert repeats.find("k", 0.0) is None
    repeats.note("k", None, 0.0)
    assert repeats.find("k", 0.0) == (None,)


def test_it_is_found_to_the_end_of_the_window_and_not_after_it():
    repeats = DeduplicationWindow()
    repeats.note("k", 1, 7.0)
    assert repeats.find("k", 7.0 + W) == (1,)
    assert repeats.find("k", 7.5 + W) is None


def test_what_is_over_is_not_kept_whoever_asks_next():
    repeats = DeduplicationWindow()
    results = [Result(), Result(), Result()]
    for number, result in enumerate(results):
        repeats.note(f"k{number}", result, float(number))
    seen = [weakref.ref(result) for result in results]
    del results, result
    assert repeats.find("another", 1.5 + W) is None
    assert [ref() is None for ref in seen] == [True, True, False]
