"""Runs that differ in their seed alone belong together: which these are, and what sets them apart from the others."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

SEED = "seed"


def value_word(value: Any) -> str:
    """Word a setting: text as it is, all else as JSON.

    >>> value_word("lwe"), value_word(0.1), value_word(None), value_word({"shortcut": "B"})
    ('lwe', '0.1', 'null', '{"shortcut": "B"}')
    """
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)


def differ_in_seed_alone(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Tell whether two recipes are the same but for their seed.

    >>> differ_in_seed_alone({"model": "resnet20", "seed": 0}, {"model": "resnet20", "seed": 1})
    True
    >>> differ_in_seed_alone({"model": "resnet20", "seed": 0}, {"model": "resnet32", "seed": 0})
    False
    """
    return {**first, SEED: None} == {**second, SEED: None}


def differing_fields(recipes: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the fields that are not the same in all recipes, in the order in which they first stand there.

    >>> differing_fields([{"model": "resnet20", "excitation": None}, {"model": "resnet20", "excitation": "lwe"}])
    ['excitation']
    """
    fields = dict.fromkeys(field for recipe in recipes for field in recipe)
    return [field for field in fields if any(recipe.get(field) != recipes[0].get(field) for recipe in recipes)]


def seed_groups(recipes: Mapping[str, Mapping[str, Any]]) -> dict[str, list[str]]:
    """Put runs together that differ in their seed alone, under words for what sets them apart from the others.

    `recipes` are given by the runs' names; a run of another program, which has none, is alone. Returns the runs' names
    by title: the fields in which the recipes differ, else the model.

    >>> recipes = {f"{kind}-{seed}": {"excitation": kind, "seed": seed} for kind in ("none", "lwe") for seed in (0, 1)}
    >>> seed_groups(recipes)
    {'excitation none': ['none-0', 'none-1'], 'excitation lwe': ['lwe-0', 'lwe-1']}
    """
    differing = [field for field in differing_fields([*recipes.values()]) if field != SEED]
    groups: dict[str, list[str]] = {}
    for name, recipe in recipes.items():
        twins = (title for title, names in groups.items() if recipe and differ_in_seed_alone(recipes[names[0]], recipe))
        if (title := next(twins, None)) is None:
            words = ", ".join(f"{field} {value_word(recipe[field])}" for field in differing if field in recipe)
            title = words or str(recipe.get("model", name))
            title = f"{title} ({name})" if title in groups else title
            groups[title] = []
        groups[title].append(name)
    return groups
