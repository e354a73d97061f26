"""``debug_observer``: logs what each stage changed in the context."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TypeAlias

from ._logging import log
from .facts import Observer, StageRan

__all__ = ["debug_observer"]


Path: TypeAlias = tuple[object, ...]
Omit: TypeAlias = Callable[[Path], bool] | Collection[Path]

OMITTED = "..."
_ABSENT = object()


def debug_observer(*, omit: Omit = (), changes_only: bool = False) -> Observer:
    """Make an observer that logs, at DEBUG, which values each stage added, removed and changed.

    Values are identified by their path: ``("user", "name")`` is the ``name`` in the dictionary under ``user``.

    Args:
        omit: The paths whose values are logged as ``...``, or a function that returns whether to omit a path.
        changes_only: Do not log stages that changed nothing.

    Returns:
        The observer, for ``context.add_observer``.

    Raises:
        TypeError: ``omit`` has an item that is not a tuple.
    """
    if not callable(omit) and not all(isinstance(path, tuple) for path in omit):
        raise TypeError(f"omit takes paths, which are tuples of keys such as ('user', 'password'), not {omit!r}")
    omitted = omit if callable(omit) else frozenset(omit).__contains__

    def observe(fact: StageRan) -> None:
        changes = _changes(dict(_leaves(fact.before, (), omitted)), dict(_leaves(fact.after, (), omitted)), omitted)
        if changes or not changes_only:
            log.debug(
                "stage_ran",
                interceptor=fact.interceptor,
                stage=fact.stage,
                execution_id=fact.execution_id,
                duration=fact.duration,
                changes=changes or None,
            )

    return observe


def _leaves(
    values: Mapping[object, object], path: Path, omitted: Callable[[Path], bool]
) -> Iterator[tuple[Path, object]]:
    """Yield paths and values of nested dictionaries. An omitted or empty dictionary is a value itself."""
    for key, value in values.items():
        item_path = (*path, key)
        if isinstance(value, dict) and value and not omitted(item_path):
            yield from _leaves(value, item_path, omitted)
        else:
            yield item_path, value


def _changes(
    before: Mapping[Path, object], after: Mapping[Path, object], omitted: Callable[[Path], bool]
) -> dict[str, dict[Path, object]]:
    """Return what was added, removed and changed, by path."""

    def shown(path: Path, value: object) -> object:
        return OMITTED if omitted(path) else value

    added = {path: shown(path, value) for path, value in after.items() if path not in before}
    removed = {path: shown(path, value) for path, value in before.items() if path not in after}
    changed: dict[Path, object] = {
        path: {"from": shown(path, before[path]), "to": shown(path, value)}
        for path, value in after.items()
        if _differs(before.get(path, _ABSENT), value)
    }
    found = {"added": added, "removed": removed, "changed": changed}
    return {kind: paths for kind, paths in found.items() if paths}


def _differs(old: object, new: object) -> bool:
    return old is not _ABSENT and old is not new and old != new
