"""The log against a list of all records that ever were, at every moment; the ids of strangers; what reading costs."""

import tracemalloc

import pytest
from hypothesis import note, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from aiohttp_interceptors.hub import history as module
from aiohttp_interceptors.hub.history import LOOKS, History, conflated, first
from aiohttp_interceptors.hub.record import GapReason
from aiohttp_interceptors.hub.topic_history import RetentionPolicy
from aiohttp_interceptors.sse import Decoder, Event
from tests.hub.reference import matches

UNBOUNDED = RetentionPolicy(10**9, None, None)
TOPICS = ["a", "b", "a.b", "a.c", "b.b", "a.b.c", "a.c.c"]
NAMES = [*TOPICS, "*", ">", "a.*", "*.b", "a.>", "*.*", "*.>", "a.*.c", "nobody", "nobody.>"]

names = st.lists(st.sampled_from(NAMES), max_size=4, unique=True)


def positions_of(records):
    return [record.offset for record in records]


class LogAgainstAList(RuleBasedStateMachine):
    """Records come, under many topics, and go, by every bound; what any stream would read is read."""

    def __init__(self):
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.now = 1000.0
        self.everything = []
        self.kept = []
        self.made_up_for = set()  # positions: when these were evicted, another one of the topic and key was there
        self.known = set()
        self.forgotten = 0  # the latest record of a topic whose name was forgotten
        self.unforgettable = set(NAMES)  # that were known when a name was forgotten first, and ever since

    def teardown(self):
        self.patch.undo()

    @initialize(
        history=st.integers(0, 4) | st.just(1000),
        history_bytes=st.none() | st.integers(40, 250),
        history_age=st.none() | st.integers(1, 5),
        emptied=st.integers(0, 3) | st.just(4096),
    )
    def begin(self, history, history_bytes, history_age, emptied):
        self.patch.setattr(module, "EMPTIED", emptied)
        self.emptied = emptied
        self.bounds = RetentionPolicy(history, history_bytes, history_age)
        self.log = History(self.bounds)

    # What happens.

    @rule(topic=st.sampled_from(TOPICS), size=st.integers(0, 80), key=st.sampled_from([None, None, "k", "l"]))
    def append(self, topic, size, key):
        if self.emptied < len(TOPICS):
            self.expire()  # or else a name may be forgotten and known again at once, which nobody sees
        event = Event("x" * size)
        record = self.log.append(topic, event, key, self.now)
        self.expire_list()
        assert (record.topic, record.event, record.key, record.time) == (topic, event, key, self.now)
        assert record.offset == len(self.everything) + 1 == self.log.end
        assert record.id == self.log.id_of(record.offset)
        assert Decoder().feed(record.frame) == [Event("x" * size, id=record.id)]
        self.everything.append(record)
        self.kept.append(record)
        while of_topic := [kept for kept in self.kept if kept.topic == topic]:
            most = self.bounds.history_bytes
            size = sum(len(kept.frame) for kept in of_topic)
            if len(of_topic) <= self.bounds.history and (most is None or size <= most):
                break
            self.evict(of_topic[0])
        self.see_what_was_forgotten(topic)

    @rule(seconds=st.sampled_from([0.25, 1.0, 1.0, 2.5, 20.0]))
    def pass_time(self, seconds):
        self.now += seconds

    @rule()
    def expire(self):
        """Hold to the exact moment: nothing goes before it is that old, and everything goes then."""
        self.log.expire(self.now)
        self.expire_list()
        self.see_what_was_forgotten()

    @rule()
    @precondition(lambda self: self.log.next_expiry() is not None)
    def expire_when_it_is_time(self):
        self.now = max(self.now, self.log.next_expiry())
        self.expire()

    # The list.

    def expire_list(self):
        age = self.bounds.history_age
        for record in self.kept[:]:
            if age is not None and record.time + age <= self.now:
                self.evict(record)

    def evict(self, record):
        self.kept.remove(record)
        if record.key is not None and any(
            (kept.topic, kept.key) == (record.topic, record.key) and kept.offset > record.offset for kept in self.kept
        ):
            self.made_up_for.add(record.offset)

    def see_what_was_forgotten(self, *appended):
        """Which names the log no longer knows is its own affair, as long as they are not too few."""
        if not self.forgotten:
            self.unforgettable = self.known.copy()
        self.known.update(appended)
        gone = {topic for topic in self.known if topic not in self.log}
        with_records = {record.topic for record in self.kept}
        assert gone.isdisjoint(with_records)
        self.known -= gone
        assert len(self.known - with_records) <= self.emptied
        if gone:
            assert len(self.known - with_records) == self.emptied, "a name was forgotten too early"
            latest = [record.offset for record in self.everything if record.topic in gone]
            self.forgotten = max(self.forgotten, *latest)
            self.unforgettable -= gone
        elif not self.forgotten:
            self.unforgettable = set(NAMES)

    def wanted(self, records, offset, topics, since):
        """Return those that somebody with these topics and positions has not had."""
        return [
            record
            for record in records
            if any(matches(name, record.topic) and record.offset > max(offset, since.get(name, 0)) for name in topics)
        ]

    def agree(self, reported, missing, offset, topics, since):
        """Hold to the exact truth, unless a name was forgotten that it may concern: then a gap may be told too much."""
        may_be_forgotten = self.forgotten > offset and not self.unforgettable.issuperset(topics)
        truth = max(positions_of(missing), default=0)
        note(f"{reported=} {truth=} {self.forgotten=}")
        if may_be_forgotten:
            assert reported == truth or offset < reported <= self.forgotten
            assert reported >= truth
        else:
            assert reported == truth

    # What is read.

    @rule(
        topics=names,
        back=st.integers(-2, 12),
        most=st.none() | st.integers(0, 200),
        since=st.lists(st.none() | st.integers(0, 12), max_size=4),
    )
    def read(self, topics, back, most, since):
        offset = max(self.log.end - back, 0)
        pairs = zip(topics, since, strict=False)
        since = {name: max(self.log.end - back, 0) for name, back in pairs if back is not None}
        reading = self.log.after(offset, topics, most, since or None)
        evicted = [record for record in self.everything if record not in self.kept]
        expected = self.wanted(self.kept, offset, topics, since)
        missing = self.wanted(evicted, offset, topics, since)
        if most is None:
            assert reading.records == expected
            assert not reading.more
        else:
            assert reading.records == expected[: len(reading.records)]
            sizes = [len(record.frame) for record in reading.records]
            assert sum(sizes[:-1]) < max(most, 1)
            assert len(sizes) == len(expected) or (reading.more and sum(sizes) >= most)
            assert bool(sizes) == bool(expected)
        assert reading.frames == b"".join(record.frame for record in reading.records)
        self.agree(reading.missing, missing, offset, topics, since)
        lost = [record for record in missing if record.offset not in self.made_up_for]
        self.agree(reading.lost, lost, offset, topics, since)
        assert reading.lost <= reading.missing

    @rule(topics=names, back=st.integers(0, 30), most=st.integers(1, 200))
    def read_in_pages(self, topics, back, most):
        """Peer bug 53: paging drains everything, and comes to an end."""
        start = offset = max(self.log.end - back, 0)
        expected, drained = self.wanted(self.kept, start, topics, {}), []
        while records := self.log.after(offset, topics, most).records:
            drained += records
            offset = records[-1].offset
            assert len(drained) <= len(expected)
        assert drained == expected

    @rule(topics=names, count=st.integers(0, 6), widen=st.integers(2, 5))
    def ask_for_the_newest(self, topics, count, widen):
        self.patch.setattr(module, "WIDEN", widen)
        offset = self.log.newest(topics, count)
        reading = self.log.after(offset, topics)
        assert reading.missing == reading.lost == 0
        evicted = [record for record in self.everything if record not in self.kept]
        last_gap = max(positions_of(self.wanted(evicted, 0, topics, {})), default=0)
        possible = self.wanted(self.kept, last_gap, topics, {})
        newest = possible[len(possible) - min(count, len(possible)) :]
        if self.forgotten and not self.unforgettable.issuperset(topics):
            assert reading.records == newest[len(newest) - len(reading.records) :]
        else:
            assert reading.records == newest
        assert offset <= self.log.end

    # What holds.

    @invariant()
    def it_keeps_exactly_what_the_bounds_say(self):
        """Peer bug 56: retention by count, bytes and age holds exactly, at all times."""
        if not hasattr(self, "log"):
            return
        assert self.log.end == len(self.everything)
        assert self.log.records == len(self.kept)
        assert self.log.bytes == sum(len(record.frame) for record in self.kept)
        assert self.log.topics == len({record.topic for record in self.kept})
        assert self.log.after(0, [">"]).records == self.kept

    @invariant()
    def it_knows_when_the_next_one_is_too_old(self):
        if not hasattr(self, "log"):
            return
        age, due = self.bounds.history_age, self.log.next_expiry()
        if age is None:
            assert due is None
        elif self.kept:
            assert due is not None
            assert due <= self.kept[0].time + age


def test_at_every_moment_the_log_is_what_a_list_would_be():
    run_state_machine_as_test(
        LogAgainstAList, settings=settings(deadline=None, max_examples=250, stateful_step_count=40)
    )


def filled(*topics, bounds=UNBOUNDED, key=None):
    """Make a log with a record under each of these, in this order."""
    log = History(bounds)
    for topic in topics:
        log.append(topic, Event("x"), key, 0.0)
    return log


class TestWhereSomebodyGoesOn:
    def test_exactly_the_later_records_come_and_none_again(self):
        """Peer bug 47: it is > and not >=."""
        log = filled("a", "b", "a", "a")
        assert [positions_of(log.after(offset, ["a"]).records) for offset in range(6)] == [
            [1, 3, 4], [3, 4], [3, 4], [4], [], []
        ]  # fmt: skip

    def test_who_had_the_one_before_the_oldest_has_no_gap_and_who_had_less_has_one(self):
        """Peer bug 48: the boundary of what is kept."""
        log = filled(*["a"] * 10, bounds=RetentionPolicy(4, None, None))
        just_before = log.after(6, ["a"])
        assert (positions_of(just_before.records), just_before.missing) == ([7, 8, 9, 10], 0)
        too_early = log.after(5, ["a"])
        assert (positions_of(too_early.records), too_early.missing) == ([7, 8, 9, 10], 6)

    def test_a_busy_topic_leaves_no_gap_in_a_quiet_one(self):
        log = filled("quiet", *["busy"] * 10, bounds=RetentionPolicy(2, None, None))
        assert log.after(0, ["quiet"]).missing == 0
        assert log.after(0, ["busy"]).missing == 9
        assert log.after(0, ["quiet", "busy"]).missing == 9
        assert log.after(9, ["*"]).missing == 0

    def test_each_topic_may_count_from_its_own_position(self):
        """Peer bug 58: who hears of a topic since later than of the others is told nothing older of it, and no gap."""
        log = filled("a", "b", "b", "b", "a", bounds=RetentionPolicy(2, None, None))
        reading = log.after(0, ["a", "b"], None, {"b": 3})
        assert (positions_of(reading.records), reading.missing) == ([1, 4, 5], 0)
        reading = log.after(0, ["a", "*", "b"], None, {"b": 5, "*": 4})
        assert positions_of(reading.records) == [1, 5]

    @pytest.mark.parametrize("topics", [["b", "*"], ["*", "b"], ["b", "*", ">"], [">", "*", "b"]])
    def test_of_two_names_that_match_the_one_that_was_there_earlier_counts(self, topics):
        reading = filled("a", "b", "b", "a").after(0, topics, None, {"b": 2, "*": 1, ">": 3})
        assert positions_of(reading.records) == [2, 3, 4]

    def test_a_record_that_a_later_one_made_up_for_is_missing_but_not_lost(self):
        log = History(RetentionPolicy(2, None, None))
        for key in "k", "l", "k", "k":
            log.append("a", Event("x"), key, 0.0)
        reading = log.after(0, ["a"])
        assert (positions_of(reading.records), reading.missing, reading.lost) == ([3, 4], 2, 2)
        assert (log.after(2, ["a"]).missing, log.after(2, ["a"]).lost) == (0, 0)
        log.append("a", Event("x"), None, 0.0)
        assert (log.after(2, ["a"]).missing, log.after(2, ["a"]).lost) == (3, 0)

    def test_a_key_means_something_within_its_topic_only(self):
        log = History(RetentionPolicy(1, None, None))
        for topic in "a", "b", "a":
            log.append(topic, Event("x"), "k", 0.0)
        log.append("a", Event("x"), "l", 0.0)
        assert log.after(0, ["a"]).lost == 3
        assert log.after(0, ["b"]).lost == 0

    def test_what_has_no_name_asked_for_is_empty_and_complete(self):
        reading = filled("a").after(0, [])
        assert (reading.records, reading.missing, reading.lost) == ([], 0, 0)

    def test_a_record_of_two_names_that_match_comes_once(self):
        """Peer bug 39."""
        assert positions_of(filled("a.b", "a.c").after(0, ["a.b", "a.*", ">"]).records) == [1, 2]

    def test_a_record_larger_than_the_bound_is_not_kept_and_is_a_gap(self):
        log = History(RetentionPolicy(10, 100, None))
        log.append("a", Event("x"), None, 0.0)
        record = log.append("a", Event("x" * 200), None, 0.0)
        assert (log.records, log.bytes, log.topics) == (0, 0, 0)
        assert log.after(record.offset - 1, ["a"]).missing == record.offset

    def test_without_history_everything_is_a_gap_for_who_was_away_and_nothing_for_who_was_not(self):
        log = filled("a", "b", bounds=RetentionPolicy(0, None, 3600.0))
        assert log.after(0, ["a"]).missing == 1
        assert log.after(1, ["a"]).missing == 0
        assert log.next_expiry() is None

    def test_the_first_records_are_as_many_as_bytes_were_asked_for(self):
        records = filled("a", "a", "a").after(0, ["a"]).records
        size = len(records[0].frame)
        wanted = [None, 0, 1, size, size + 1, 2 * size, 10**9]
        counts = [(len(some), more) for some, more in (first(records, most) for most in wanted)]
        assert counts == [(3, False), (1, True), (1, True), (1, True), (2, True), (2, True), (3, False)]

    @pytest.mark.parametrize("topics", [["a"], ["a", "b"], ["*"]])
    @pytest.mark.parametrize("most", [100, 1_000, 32 * 1024])
    def test_no_page_takes_itself_for_the_last_one_because_its_records_are_small(self, topics, most):
        """Peer bug 53."""
        log = History(UNBOUNDED, "e")
        for number in range(9_000):
            log.append("ab"[number % 2], Event(comment=""), None, 0.0)
        drained, offset, more = [], 0, True
        while more:
            reading = log.after(offset, topics, most)
            drained += reading.records
            offset, more = drained[-1].offset, reading.more
        assert drained == log.after(0, topics).records

    def test_of_each_topic_and_key_the_latest_one_makes_up_for_the_others(self):
        log = History(UNBOUNDED)
        for topic, key in ("a", "k"), ("a", None), ("b", "k"), ("a", "l"), ("a", "k"), ("a", None), ("a", "k"):
            log.append(topic, Event("x"), key, 0.0)
        assert positions_of(conflated(log.after(0, [">"]).records)) == [2, 3, 4, 6, 7]
        assert conflated([]) == []


class TestTheNewest:
    def test_they_are_the_latest_of_all_topics_together(self):
        log = filled("a", "b", "c", "a", "b")
        assert positions_of(log.after(log.newest(["a", "b"], 3), ["a", "b"]).records) == [2, 4, 5]

    def test_there_is_no_gap_after_them_even_if_a_name_was_forgotten(self, monkeypatch):
        monkeypatch.setattr(module, "EMPTIED", 0)
        log = filled("a", bounds=RetentionPolicy(10, 100, None))
        log.append("gone", Event("x" * 200), None, 0.0)
        log.append("a", Event("x"), None, 0.0)
        for topics in ["a", "never"], [">"]:
            offset = log.newest(topics, 5)
            reading = log.after(offset, topics)
            assert (positions_of(reading.records), reading.missing) == ([3], 0)
        assert log.newest(["a"], 5) == 0, "its own name was known all the time"

    def test_none_are_wanted_or_there_are_none(self):
        log = filled("a", "b")
        assert log.newest(["a"], 0) == log.newest(["nobody"], 5) == log.newest([], 5) == log.end
        assert History(UNBOUNDED).newest([">"], 5) == 0


class TestIds:
    def test_an_id_leads_back_to_its_position(self):
        log = filled(*"aaa")
        assert [log.locate(log.id_of(offset)) for offset in range(4)] == [(n, None) for n in range(4)]

    def test_two_logs_share_no_epoch_and_each_is_foreign_to_the_other(self):
        """Peer bug 50: the same numbers in another life are no place to go on from."""
        log, before = filled(*"aaa"), filled(*"aaa")
        assert log.epoch != before.epoch
        assert log.locate(before.id_of(2)) == (0, GapReason.FOREIGN)
        assert log.locate(before.id_of(2_000)) == (0, GapReason.FOREIGN)

    def test_epochs_are_left_to_chance(self):
        epochs = [History(UNBOUNDED).epoch for _ in range(1_000)]
        assert len(set(epochs)) == 1_000
        assert {len(epoch) for epoch in epochs} == {10}

    @pytest.mark.parametrize(
        ("given", "expected"),
        [
            ("e-0", (0, None)),
            ("e-2", (2, None)),
            ("e-3", (3, None)),
            ("e-002", (2, None)),
            ("e-4", (3, GapReason.FUTURE)),
            ("e-" + "9" * 19, (3, GapReason.FUTURE)),
            ("other-2", (0, GapReason.FOREIGN)),
            ("0-2", (0, GapReason.FOREIGN)),
            ("z" * 32 + "-" + "9" * 19, (0, GapReason.FOREIGN)),
        ],
    )
    def test_an_id_of_a_hub_is_classified(self, given, expected):
        """Peer bug 49."""
        log = History(UNBOUNDED, "e")
        for _ in range(3):
            log.append("a", Event("x"), None, 0.0)
        assert log.locate(given) == expected

    @pytest.mark.parametrize(
        "given",
        [
            *("", "-", "e", "e-", "-2", "2", "e2", "e--2", "e-+2", "e- 2", "e-2 ", " e-2", "e-2\n", "e-2-2", "e-2.0"),
            *("e-0x2", "e-1e0", "e-1_0", "e-\0", "e\0-2", "e-2\0", "E-2", "é-2", "e-\u0662", "e-\uff12", "e-²"),
            *("\ud800-2", "e-\udfff", "\ufeffe-2", "null", "undefined", "NaN", "[object Object]", "e-2,e-3"),
            *("z" * 33 + "-2", "e-" + "0" * 19 + "2", "e-" + "9" * 20, "../../etc/passwd", "' OR 1=1 --"),
        ],
        ids=lambda given: ascii(given[:20]),
    )
    def test_what_is_no_id_of_a_hub_leads_to_the_end(self, given):
        """Peer bug 49: unknown and hostile ids."""
        log = History(UNBOUNDED, "e")
        for _ in range(3):
            log.append("a", Event("x"), None, 0.0)
        assert log.locate(given) == (3, GapReason.UNKNOWN)

    @pytest.mark.parametrize("part", ["9", "e-9", "\0", "e", "\u0662", "\ud800"], ids=ascii)
    def test_an_id_of_ten_megabytes_is_no_id_and_is_not_copied(self, part):
        """Peer bug 49: bounded work; the greatest number of digits that Python reads is never met, either."""
        log = History(UNBOUNDED, "e")
        given = [part * 10_000_000, "e-" + part * 10_000_000, part * 10_000_000 + "-2"]
        tracemalloc.start()
        try:
            located = [log.locate(text) for text in given]
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert located == [(0, GapReason.UNKNOWN)] * 3
        assert most < 10_000

    def test_a_record_that_cannot_be_made_takes_no_place(self, monkeypatch):
        log = filled("a")

        def fail(event):
            raise MemoryError

        with monkeypatch.context() as patch:
            patch.setattr(module, "encode", fail)
            with pytest.raises(MemoryError):
                log.append("a", Event("x"), None, 0.0)
        assert (log.end, log.records) == (1, 1)
        assert log.append("a", Event("x"), None, 0.0).offset == 2


class TestNamesWithoutRecords:
    def test_they_are_known_up_to_a_number_and_the_one_that_was_emptied_first_goes_first(self, monkeypatch):
        """Peer bug 45: a topic without records is freed."""
        monkeypatch.setattr(module, "EMPTIED", 3)
        log = filled("a", "b", "c", "d", "e", bounds=RetentionPolicy(10, 100, None))
        assert log.topics == 5
        for topic in "b", "a", "e", "d", "c":
            log.append(topic, Event("x" * 200), None, 0.0)
        assert [topic for topic in "abcde" if topic in log] == ["c", "d", "e"]
        assert (log.topics, log.records, log.bytes) == (0, 0, 0)
        log.append("e", Event("x"), None, 0.0)
        log.append("f", Event("x" * 200), None, 0.0)
        assert [topic for topic in "abcdef" if topic in log] == ["c", "d", "e", "f"]

    def test_who_asks_for_a_forgotten_name_is_told_of_a_gap_and_who_asks_for_a_known_one_is_not(self, monkeypatch):
        monkeypatch.setattr(module, "EMPTIED", 1)
        log = filled("quiet", "first", "second", bounds=RetentionPolicy(10, 100, None))
        for topic in "first", "second":
            log.append(topic, Event("x" * 200), None, 0.0)
        assert "first" not in log
        assert log.after(3, ["first"]).missing == log.after(3, ["first"]).lost == 4
        assert log.after(4, ["first"]).missing == 0
        assert log.after(0, ["quiet"]).missing == 0
        assert log.after(3, ["quiet", "second"]).missing == 5
        assert log.after(3, [">"]).missing == 5
        assert log.after(0, ["first"], None, {"first": 4}).missing == 0
        assert log.after(0, ["first", "nobody"], None, {"first": 4}).missing == 4
        log.append("first", Event("x"), None, 0.0)
        assert log.after(3, ["first"]).missing == 4, "that it is known again does not bring back what is gone"
        assert log.after(4, ["first"]).missing == 0

    @pytest.mark.parametrize("names", [["late"], [">"], ["nobody"]])
    def test_what_was_forgotten_last_may_be_older_than_what_was_forgotten_before(self, monkeypatch, names):
        monkeypatch.setattr(module, "EMPTIED", 0)
        log = History(RetentionPolicy(10, 100, 60.0))
        log.append("early", Event("x"), None, 0.0)
        log.append("late", Event("x" * 200), None, 1.0)
        log.expire(60.0)
        assert log.records == 0
        assert log.after(1, names).missing == log.after(1, names).lost == 2
        assert log.after(2, names).missing == 0

    def test_topics_that_come_and_go_leave_no_memory(self, monkeypatch):
        """Peer bug 45."""
        monkeypatch.setattr(module, "EMPTIED", 50)
        log = History(RetentionPolicy(10, 10_000, 1.0))

        def come_and_go(times):
            for _ in range(times):
                now = float(log.end)
                log.append(f"a.{log.end}.b", Event("x" * 200), str(log.end), now)
                log.append(f"a.{log.end}.b", Event("x" * 20_000), None, now)
                log.expire(now + 1.0)

        come_and_go(500)
        tracemalloc.start()
        try:
            come_and_go(500)
            before, _ = tracemalloc.get_traced_memory()
            come_and_go(5_000)
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert after - before < 20_000
        assert (log.topics, log.records, log.bytes) == (0, 0, 0)


class TestAge:
    @pytest.mark.parametrize("pairs", [1, 1_000])
    def test_what_was_evicted_for_another_reason_leaves_nothing_to_expire(self, operations, pairs):
        """However often a topic was emptied before, its age is looked at once."""
        log = History(RetentionPolicy(10, 100, 60.0))
        for _ in range(pairs):
            log.append("a", Event("x" * 200), None, 0.0)
            log.append("a", Event("x"), None, 0.0)
        assert operations(log.expire, 60.0) < 50
        assert (log.records, log.next_expiry()) == (0, None)

    def test_without_history_nothing_is_remembered_to_expire(self):
        log = History(RetentionPolicy(0, None, 3600.0))
        tracemalloc.start()
        try:
            log.append("a", Event("x"), None, 0.0)
            before, _ = tracemalloc.get_traced_memory()
            for _ in range(5_000):
                log.append("a", Event("x"), None, 0.0)
            after, _ = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert after - before < 5_000
        assert log.next_expiry() is None

    def test_a_record_goes_when_it_is_as_old_as_was_said_and_not_before(self):
        log = History(RetentionPolicy(10, None, 60.0))
        log.append("a", Event("x"), None, 1.0)
        log.append("b", Event("x"), None, 2.0)
        assert log.next_expiry() == 61.0
        log.expire(60.9)
        assert log.records == 2
        log.expire(61.0)
        assert (log.records, log.next_expiry()) == (1, 62.0)

    def test_publishing_under_one_topic_frees_what_is_too_old_in_all(self):
        log = filled("a", "b", bounds=RetentionPolicy(10, None, 60.0))
        log.append("c", Event("x"), None, 60.0)
        assert positions_of(log.after(2, [">"]).records) == [3]
        assert (log.records, log.topics) == (1, 1)

    def test_what_is_too_old_at_once_goes_in_parts(self):
        log = filled(*[f"t.{number}" for number in range(100)], *["a"] * 50, bounds=RetentionPolicy(100, None, 60.0))
        left = []
        while log.records:
            log.expire(60.0, 40)
            left.append(log.records)
            assert (log.next_expiry() or 0) <= 60.0
        assert left == [110, 70, 30, 0]
        assert log.after(0, [">"]).missing == 150
        assert log.topics == 0


class TestAWildcardOverManyTopics:
    """It is read in pieces, each of which costs what it may cost."""

    @pytest.mark.parametrize("names", [[">"], ["t.*.s"], ["t.>", "t.3.s"], [f"t.{number}.s" for number in range(500)]])
    def test_is_read_in_order_and_nothing_of_it_twice(self, names):
        log = filled(*[f"t.{number % 500}.s" for number in range(2_000)])
        offset, found, more = 0, [], True
        while more:
            reading = log.after(offset, names, 1_000)
            found += positions_of(reading.records)
            assert reading.through > offset
            offset, more = reading.through, reading.more
            assert reading.missing == 0
        assert found == list(range(1, 2_001))

    def test_that_finds_nothing_for_long_goes_on_where_it_was(self):
        log = filled(
            *[f"t.{number}.x" for number in range(LOOKS)], "t.1.s", *[f"t.{number}.x" for number in range(300)]
        )
        reading = log.after(0, ["t.*.s"], 1_000)
        assert (reading.records, reading.more, reading.through) == ([], True, LOOKS)
        assert positions_of(log.after(reading.through, ["t.*.s"], 1_000).records) == [LOOKS + 1]

    @pytest.mark.parametrize("names", [[">"], ["t.*.s"], ["t.*.x"], ["*.*.s", "t.5.s"]])
    @pytest.mark.parametrize("history", [1, 2])
    def test_costs_the_same_however_many_there_are(self, operations, names, history):
        def read(topics):
            log = filled(
                *[f"t.{number}.s" for number in range(topics)] * 2, bounds=RetentionPolicy(history, None, None)
            )
            log.after(0, names, 1_000)  # which notes what was evicted
            return operations(log.after, topics, names, 1_000), operations(log.gone, 0, names)

        many, few = read(20_000), read(5_000)
        assert abs(many[0] - few[0]) < 20
        assert many[1] == few[1]


class TestWhatItCosts:
    """Counted, not timed: the same number of steps, however much there is that is not returned."""

    @pytest.mark.parametrize("names", [[">"], ["*"], ["t.>"], ["t.*"], ["*.3"], ["t.3", "*.5", "nobody"]])
    def test_reading_costs_what_is_returned_and_not_the_topics_there_are(self, operations, names):
        """Ten thousand quiet topics are not looked at, neither at the end nor for the last few records."""

        def read(quiet):
            log = filled(*[f"t.{number}" for number in range(quiet)], *[str(number) for number in range(quiet)])
            for topic in "t.3", "5", "t.3", "t.5":
                log.append(topic, Event("x"), None, 0.0)
            end = log.end
            return [operations(log.after, end - back, names, most) for back in (0, 1, 4) for most in (None, 1)]

        assert read(5_000) == read(10)

    def test_reading_costs_what_is_returned_and_not_what_is_kept(self, operations):
        def read(kept):
            log = filled(*["a", "b"] * kept)
            return [operations(log.after, log.end - 6, names) for names in (["a"], ["a", "b"], [">"])]

        assert read(5_000) == read(10)

    @pytest.mark.parametrize("names", [["a"], ["a", "b"], [">"]])
    def test_a_page_costs_a_page_and_not_all_that_follows(self, names):
        log = filled(*["a", "b"] * 20_000)
        tracemalloc.start()
        try:
            reading = log.after(0, names, 1_000)
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert 0 < len(reading.records) < 50
        assert most < 10_000

    @pytest.mark.parametrize("names", [[">"], ["t.*"], ["t.3", "5"]])
    def test_the_newest_cost_what_they_are_and_not_the_topics_there_are(self, operations, names):
        def ask(quiet):
            log = filled(*[f"t.{number}" for number in range(quiet)])
            for topic in "t.3", "t.4", "t.3", "t.5", "5":
                log.append(topic, Event("x"), None, 0.0)
            return operations(log.newest, names, 3)

        assert ask(5_000) == ask(20)

    def test_publishing_costs_neither_what_is_kept_nor_the_topics_there_are(self, operations):
        def publish(kept):
            log = filled(
                *["a"] * kept, *[f"t{number}" for number in range(kept)], bounds=RetentionPolicy(kept, None, 60.0)
            )
            return operations(log.append, "a", Event("x"), "k", 1.0)

        assert publish(5_000) == publish(100)
