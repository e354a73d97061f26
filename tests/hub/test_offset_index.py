"""The index of records by offset has what a list has, and its cost does not depend on its size."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from aiohttp_interceptors.hub import index as index_module
from aiohttp_interceptors.hub.index import OffsetIndex
from aiohttp_interceptors.hub.record import Record
from aiohttp_interceptors.sse import Event

EVENT = Event("x")


def record(offset):
    return Record(offset, str(offset), "a", EVENT, b"x", None, 0.0)


class OffsetIndexAgainstAList(RuleBasedStateMachine):
    """Records are appended, with holes between their offsets, and removed."""

    def __init__(self):
        super().__init__()
        self.index, self.records, self.end = OffsetIndex(), [], 0

    @rule(steps=st.lists(st.integers(1, 3), max_size=20))
    def append(self, steps):
        for step in steps:
            self.end += step
            self.records.append(record(self.end))
            self.index.append(self.records[-1])

    @rule(data=st.data(), count=st.integers(1, 12))
    def remove(self, data, count):
        for _ in range(min(count, len(self.records))):
            number = data.draw(st.integers(0, len(self.records) - 1) | st.just(0))
            self.index.remove(self.records.pop(number))

    @rule(back=st.integers(0, 60))
    def read(self, back):
        offset = max(self.end - back, 0)
        assert list(self.index.after(offset)) == [r for r in self.records if r.offset > offset]

    @rule()
    def read_all(self):
        assert list(self.index.after(0)) == self.records
        assert list(self.index.after(self.end)) == []


def test_the_index_has_what_a_list_has(monkeypatch):
    monkeypatch.setattr(index_module, "CHUNK", 8)
    monkeypatch.setattr(index_module, "SMALL_CHUNK", 2)
    run_state_machine_as_test(OffsetIndexAgainstAList)


@pytest.mark.parametrize("oldest", [True, False])
def test_the_cost_of_removing_and_reading_does_not_depend_on_the_size(operations, oldest):
    def cost(count):
        index, records = OffsetIndex(), [record(offset) for offset in range(1, count + 1)]
        for each in records:
            index.append(each)
        return (
            operations(index.remove, records[0 if oldest else count // 2 + 5]),
            operations(lambda: next(index.after(count // 2))),
        )

    assert cost(100_000) == cost(5_000)
