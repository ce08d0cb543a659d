"""What tells one study or run from the others, in words: the network, how it was trained, its seed, what was measured.

The store calls the last weights of every run alike, and networks by their architecture; what a reader asks for
is in the recipe of the run that they come from. Needs no torch.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weanalysis.cache import Cache, RunFile, safe_name
from weanalysis.errors import TrainingError
from weanalysis.kinds import kind_of
from weanalysis.training import Run

# How networks were trained, as the paper calls it. A network trained without any is the baseline.
BASELINE = "baseline"
WAYS = {
    "none": BASELINE,
    "lwe": "LWE",
    "mwe": "MWE",
    "lwe+mwe": "LWE + MWE",
    "we": "WE",
    "ws": "weight standardization",
    "wn": "weight normalization",
    "sn": "spectral normalization",
}

# What stands in a study's weights where nobody named a file.
_UNNAMED_WEIGHTS = ("", "auto", "none", "default", RunFile.LAST, RunFile.BEST)


@dataclass(frozen=True)
class Identity:
    """A study's or a run's network, `way` of training ("" where it is not known) and `seed`, and what was measured.

    `settings` are the study's own in a few words, such as "5×5" and "250 images"; `renamed` studies are called what
    their reader named them.

    >>> Identity(1, "a", "resnet20", "LWE", 1, "digits", ("5×5", "250 images")).words
    'resnet20 · LWE · seed 1 · 5×5 · 250 images'
    """

    number: int
    name: str
    model: str
    way: str = ""
    seed: int | None = None
    data: str = ""
    settings: tuple[str, ...] = ()
    renamed: bool = False

    @property
    def network(self) -> str:
        """The network in words: "resnet20 · LWE · seed 1"."""
        seed = "" if self.seed is None else f"seed {self.seed}"
        return " · ".join(part for part in (self.model, self.way, seed) if part)

    @property
    def words(self) -> str:
        """Network and study in words: "resnet20 · LWE · seed 1 · 5×5 · 250 images"."""
        return " · ".join((self.network, *self.settings))


def identify_study(about: Mapping[str, Any], cache: Cache) -> Identity:
    """Tell the identity of a study, given what the store says of it (`Store.describe`).

    >>> about = {"id": 1, "name": "a", "kind": "location", "model": "resnet20", "data": "digits", "num_images": 250}
    >>> identify_study({**about, "excitation": "lwe"}, Cache(Path("cache"))).words
    'resnet20 · LWE · 5×5 · 250 images'
    """
    named = identify_network(about, cache)
    renamed = about.get("measured_as", about["name"]) != about["name"]
    return replace(named, number=int(about["id"]), settings=tuple(_settings(about)), renamed=renamed)


def identify_network(about: Mapping[str, Any], cache: Cache) -> Identity:
    """Tell of what network and training something is that was measured, given what it says of itself.

    >>> about = {"name": "a", "model": "resnet20", "data": "digits", "excitation": "lwe"}
    >>> identify_network(about, Cache(Path("cache"))).network
    'resnet20 · LWE'
    """
    recipe = _recipe_of(about.get("checkpoint"), cache)
    known = about.get("excitation") or (recipe or {}).get("excitation")
    if known is None and about.get("checkpoint") and "excitation" in about:
        known = "none"  # what a checkpoint of this program says of one without; an older study says nothing at all
    weights = str(about.get("weights") or "")
    own_weights = [] if recipe or weights in _UNNAMED_WEIGHTS else [Path(weights).name]
    return Identity(
        number=0,
        name=str(about["name"]),
        model=" · ".join([str(about["model"]), *own_weights]),
        way=WAYS.get(str(known), str(known)) if known else "",
        seed=None if recipe is None else int(recipe.get("seed", 0)),
        data=str(about["data"]),
    )


def identify_run(name: str, recipe: Mapping[str, Any]) -> Identity:
    """Tell the identity of a training run of this program, given its name and its recipe's fields.

    >>> identify_run("run", {"model": "resnet20", "excitation": "none", "seed": 2}).network
    'resnet20 · baseline · seed 2'
    """
    excitation = str(recipe.get("excitation", "none"))
    return Identity(
        0,
        name,
        str(recipe.get("model", name)),
        WAYS.get(excitation, excitation),
        int(recipe.get("seed", 0)),
        str(recipe.get("data", "")),
    )


def distinct_words(studies: Iterable[Identity]) -> dict[int, str]:
    """Word each study so that no two read alike, by number: by data, name and number where the rest does not tell.

    >>> distinct_words([Identity(1, "resnet20-a", "resnet20"), Identity(2, "resnet20-a", "resnet20")])
    {1: 'resnet20 · resnet20-a · 1', 2: 'resnet20 · resnet20-a · 2'}
    """
    listed = list(studies)
    several_data = len({one.data for one in listed}) > 1
    words = {}
    for one in listed:
        usual = not one.renamed and one.name.startswith(safe_name(one.model.split(" · ")[0]))
        own_name = [] if usual else [one.name]
        words[one.number] = " · ".join([*own_name, one.words, *([one.data] if several_data else [])])
    for wording in (lambda one: one.name, lambda one: str(one.number)):
        count = Counter(words.values())
        for one in listed:
            if count[words[one.number]] > 1 and wording(one) not in words[one.number].split(" · "):
                words[one.number] += f" · {wording(one)}"
    return words


def _settings(about: Mapping[str, Any]) -> Iterable[str]:
    """Word what a study was asked that others of its kind were not, the number of images last."""
    options = about.get("options") or {}
    for option in kind_of(str(about["kind"])).options:
        value = options.get(option.name, option.default)
        if option.name == "grid" and value:
            yield f"all {kind_of(str(about['kind'])).row}s" if value == "all" else str(value).replace("x", "×")
        elif value not in (None, option.default) and not isinstance(value, list | tuple):
            yield f"{option.name.replace('_', ' ')} {value}"
    if about.get("stopping"):
        yield f"--{about['stopping']}"
    if about.get("evaluate") == "screened":
        yield "screened"
    yield f"{int(about['num_images']):,} images"


def _recipe_of(checkpoint: Any, cache: Cache) -> Mapping[str, Any] | None:
    """Return the recipe of the run that a checkpoint lies in, also where the cache was moved; None for no run."""
    if not checkpoint:
        return None
    folder = Path(str(checkpoint)).parent
    for run in (Run(folder), Run(cache.runs / safe_name(folder.name or "run"))):
        try:
            if run.recipe_file.is_file():
                return run.recipe
        except (TrainingError, OSError):
            continue
    return None
