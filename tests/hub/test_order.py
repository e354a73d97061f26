"""All records in one order, whichever goes first."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from aiohttp_interceptors.hub import index as module
from aiohttp_interceptors.hub.index import Order
from aiohttp_interceptors.hub.record import Record
from aiohttp_interceptors.sse import Event

EVENT = Event("x")


def record(offset):
    return Record(offset, str(offset), "a", EVENT, b"x", None, 0.0)


class OrderAgainstAList(RuleBasedStateMachine):
    """Records come, with holes between their positions, and go."""

    def __init__(self):
        super().__init__()
        self.order, self.records, self.end = Order(), [], 0

    @rule(steps=st.lists(st.integers(1, 3), max_size=20))
    def append(self, steps):
        for step in steps:
            self.end += step
            self.records.append(record(self.end))
            self.order.append(self.records[-1])

    @rule(data=st.data(), count=st.integers(1, 12))
    def remove(self, data, count):
        for _ in range(min(count, len(self.records))):
            number = data.draw(st.integers(0, len(self.records) - 1) | st.just(0))
            self.order.remove(self.records.pop(number))

    @rule(back=st.integers(0, 60))
    def read(self, back):
        offset = max(self.end - back, 0)
        assert list(self.order.after(offset)) == [r for r in self.records if r.offset > offset]

    @rule()
    def read_all(self):
        assert list(self.order.after(0)) == self.records
        assert list(self.order.after(self.end)) == []


def test_what_is_read_is_what_a_list_has(monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 8)
    monkeypatch.setattr(module, "FEW", 2)
    run_state_machine_as_test(OrderAgainstAList)


@pytest.mark.parametrize("oldest", [True, False])
def test_coming_going_and_reading_on_cost_the_same_however_many_there_are(operations, oldest):
    def cost(count):
        order, records = Order(), [record(offset) for offset in range(1, count + 1)]
        for each in records:
            order.append(each)
        return (
            operations(order.remove, records[0 if oldest else count // 2 + 5]),
            operations(lambda: next(order.after(count // 2))),
        )

    assert cost(100_000) == cost(5_000)
