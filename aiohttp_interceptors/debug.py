"""An observer that logs what each stage changed in the context."""

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
    """Make an observer that logs, at debug, what each stage added, removed and changed.

    What changed is told by key path: ``("user", "name")`` is the ``name`` in the dictionary under ``user``.
    ``omit`` names paths, or decides by path, whose values are shown as ``...``. With ``changes_only``, stages that
    changed nothing are not logged.
    """
    if not callable(omit) and not all(isinstance(path, tuple) for path in omit):
        raise TypeError(f"omit names paths, tuples of keys as in ('user', 'password'), not {omit!r}")
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
    """Walk nested dictionaries down to what is none, or is omitted."""
    for key, value in values.items():
        here = (*path, key)
        if isinstance(value, dict) and value and not omitted(here):
            yield from _leaves(value, here, omitted)
        else:
            yield here, value


def _changes(
    before: Mapping[Path, object], after: Mapping[Path, object], omitted: Callable[[Path], bool]
) -> dict[str, dict[Path, object]]:
    """Tell two walks apart."""

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
