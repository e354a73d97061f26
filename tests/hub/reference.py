"""A reference implementation of wildcards, as NATS specifies them, and strategies for topics and patterns."""

from __future__ import annotations

from hypothesis import strategies as st


def matches(pattern: str, topic: str) -> bool:
    """Return whether a pattern matches a topic: ``*`` is any one token, a final ``>`` is one or more."""
    return _match(pattern.split("."), topic.split("."))


def _match(pattern: list[str], topic: list[str]) -> bool:
    if not pattern or not topic:
        return pattern == topic
    if pattern == [">"]:
        return True
    return pattern[0] in ("*", topic[0]) and _match(pattern[1:], topic[1:])


tokens = st.sampled_from(["a", "b", "c", "a*", ">b", "é"])
topics = st.lists(tokens, min_size=1, max_size=4).map(".".join)


@st.composite
def patterns(draw: st.DrawFn) -> str:
    """Draw a topic or a wildcard."""
    parts = draw(st.lists(tokens | st.just("*"), min_size=1, max_size=4))
    if draw(st.booleans()):
        parts[-1] = ">"
    return ".".join(parts)
