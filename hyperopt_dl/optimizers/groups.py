"""Parameter groups: patterns of parameter names, and the options that differ there."""

from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any, TypeAlias, final

from hyperopt_dl.errors import TrainingError
from hyperopt_dl.optimizers.options import (
    Interval,
    Option,
    check_option,
    known,
    names_in,
    split_betas,
)

GroupsLike: TypeAlias = Mapping[str, Mapping[str, Option | tuple[Option, Option]]]
"""As written by the user; only ``betas`` is a pair."""


@final
class Groups(Mapping[str, Mapping[str, Option]]):
    """Immutable, ordered and hashable: pattern → {option: value}, the first match decides."""

    __slots__ = ("_items",)

    def __init__(self, groups: Mapping[str, Mapping[str, Option]] | None = None) -> None:
        self._items = tuple(
            (pattern, tuple(options.items())) for pattern, options in (groups or {}).items()
        )

    def __getitem__(self, pattern: str) -> Mapping[str, Option]:
        return MappingProxyType(dict(dict(self._items)[pattern]))

    def __iter__(self) -> Iterator[str]:
        return (pattern for pattern, _ in self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __eq__(self, other: object) -> bool:
        """Equal groups in equal order, since the order decides which pattern wins."""
        if not isinstance(other, Groups):
            return NotImplemented
        return self._items == other._items

    def __hash__(self) -> int:
        return hash(self._items)

    def __repr__(self) -> str:
        return repr({pattern: dict(options) for pattern, options in self._items})

    def __reduce__(self) -> tuple[Any, ...]:
        return Groups, ({pattern: dict(options) for pattern, options in self._items},)


NO_GROUPS = Groups()


def check_all(
    owner: str,
    options: Mapping[str, Option],
    groups: GroupsLike,
    intervals: Mapping[str, Interval],
) -> Groups:
    """Check an optimizer's options and groups; return the groups, frozen, ``betas`` split.

    Args:
        owner: The optimizer's class name, for messages.
        options: Its own options by internal name.
        groups: As written by the user, or already frozen (``dataclasses.replace``).
        intervals: Where the constant of each option must lie.

    Raises:
        TrainingError: An option of the optimizer or of a group is unknown, or is not what
            `check_option` asks for.
    """
    for name, option in options.items():
        check_option(owner, name, option, intervals[name])
    frozen: dict[str, Mapping[str, Option]] = {}
    if not isinstance(groups, Mapping):
        raise TrainingError(
            f"{owner}.groups must map patterns to options, got {groups!r}. Write for example "
            'groups={"*.bias": {"weight_decay": 0.0}}.'
        )
    for pattern, given in groups.items():
        where = f"{owner}.groups[{pattern!r}]"
        if not isinstance(given, Mapping):
            raise TrainingError(
                f"{where} must map options to values, got {given!r}. Write for example "
                '{"weight_decay": 0.0}.'
            )
        changes: dict[str, Any] = dict(given)
        if "betas" in changes and "beta1" in intervals:
            changes["beta1"], changes["beta2"] = split_betas(where, changes.pop("betas"))
        known(where, changes, intervals)
        for name, option in changes.items():
            check_option(where, name, option, intervals[name])
        frozen[pattern] = changes
    return Groups(frozen)


def everywhere(name: str, options: Mapping[str, Option], groups: GroupsLike) -> list[object]:
    """What ``name`` is set to, by the optimizer itself and by every group that sets it."""
    return [options[name], *(changes[name] for changes in groups.values() if name in changes)]


def names_of(options: Mapping[str, Option], groups: GroupsLike) -> frozenset[str]:
    """The hyperparameters that an optimizer and its groups refer to by name."""
    return names_in(options.values()).union(
        *(names_in(changes.values()) for changes in groups.values())  # type: ignore[arg-type]
    )
