"""The groups that a user names: what must hold of them."""

from collections.abc import Collection

from hyperopt_dl.errors import StudyError


def check_structure(structure: object) -> None:
    """Check the argument `structure` of a tuner, as far as that needs no study.

    Raises:
        StudyError: It is no word that is known and no list of lists of names, or repeats a name.
    """
    if isinstance(structure, str) and structure in ("learned", "full", "additive"):
        return
    groups = structure if isinstance(structure, (list, tuple)) else None
    if groups is None or not all(
        isinstance(group, (list, tuple)) and all(isinstance(name, str) for name in group)
        for group in groups
    ):
        raise StudyError(
            f"structure must be 'learned', 'full', 'additive' or a list of lists of names, such as "
            f"[['lr', 'momentum'], ['width']], got {structure!r}."
        )
    names = [name for group in groups for name in group]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise StudyError(
            f"The groups of structure must be disjoint, got {repeated} more than once in "
            f"{structure!r}. Name each dimension at most once."
        )


def check_names(structure: object, known: Collection[str]) -> None:
    """Check that the groups of a `structure` name dimensions that there are.

    Args:
        structure: One that `check_structure` lets pass.
        known: The names of all dimensions.

    Raises:
        StudyError: A name is none of them.
    """
    if isinstance(structure, str):
        return
    assert isinstance(structure, (list, tuple))
    unknown = sorted({name for group in structure for name in group} - set(known))
    if unknown:
        raise StudyError(
            f"The groups of structure must name dimensions of the study, {sorted(known)}, got "
            f"{unknown}. Correct the names, or leave them out: a dimension that is not named "
            f"stands alone."
        )
