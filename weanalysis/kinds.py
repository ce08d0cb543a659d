"""What is known of each kind of study: what it asks, what can be set, what its rows are, and what can be done with it.

Commands, forms, pages, the report and the store's readers follow from what stands here, without torch. How a study is
made, the function in `ablation.studies`, is all that stands elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from weanalysis.errors import StudyError, unknown_name

# How a kind's D is drawn: kernels as maps, weights along their percentiles, strips of units, or not but by counts.
Drawing = Literal["maps", "curves", "strips", ""]


@dataclass(frozen=True)
class Option:
    """Something that can be set about a study: an argument of its function, and the command's option of that name.

    `read` turns what was typed into the argument. `default` None means that nothing is set. With `tells_apart`, two
    studies that differ in it zero other things under one name. An option that is not `on_command` is for Python alone.
    `words` say in the study's question what a value means.
    """

    name: str
    metavar: str
    help: str
    default: Any = None
    read: Callable[[str], Any] = str
    tells_apart: bool = False
    on_command: bool = True
    words: Mapping[str, str] | None = None

    @property
    def flag(self) -> str:
        """What the command calls it."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def help_with_default(self) -> str:
        """Its help with the default, as one would type it."""
        if self.default is None:
            return self.help
        typed = ",".join(map(str, self.default)) if isinstance(self.default, tuple) else self.default
        return f"{self.help} (default {typed})"


@dataclass(frozen=True)
class Selection:
    """What a row of a study's table zeroes: the value of its column `selection`, and what one is called.

    `channels` are the columns that say which one of its layer it is; None where it is no unit of a single layer. `word`
    says in a few words what a row zeroes.
    """

    name: str
    called: str
    channels: tuple[str, ...] | None
    word: Callable[[Any], str]


@dataclass(frozen=True)
class Prunes:
    """The unit that `weanalysis prune` removes by the D of such a study, its selection, and how all are measured."""

    unit: str
    selection: str
    options: str


@dataclass(frozen=True)
class Kind:
    """All that is known of a kind of study.

    `question` is what it asks, with the names of options in braces, `zeroes` what its ablations are, in a few words,
    `row` what one of them is called. `searchable`: `--find detrimental` can search it. `scored`: a saliency criterion
    speaks of its rows ("units"), or of each weight that they zero ("weights"). `page` is the dashboard's page that
    shows it, a file in `app/views`. `needs_multipliers`: it can be run on a network trained with LWE alone.
    """

    name: str
    question: str
    zeroes: str
    row: str
    options: tuple[Option, ...] = ()
    selections: tuple[Selection, ...] = ()
    drawing: Drawing = ""
    page: str | None = None
    searchable: bool = False
    scored: Literal["units", "weights"] | None = None
    prunes: Prunes | None = None
    needs_multipliers: bool = False

    @property
    def units(self) -> tuple[str, ...]:
        """The selections that are units of a layer, which a map has a place for: "kernel", "filter" …"""
        return tuple(one.name for one in self.selections if one.channels is not None)

    @property
    def has_kernels(self) -> bool:
        """Whether its rows are kernels, so that each layer's D is a map of output and input channels."""
        return KERNEL in self.selections

    def asks(self, options: Mapping[str, Any] | None = None) -> str:
        """Return the question of a study with these options."""
        worded = {}
        for option in self.options:
            if option.words:
                value = str((options or {}).get(option.name, option.default))
                worded[option.name] = option.words.get(value, option.words[option.default])
        return self.question.format(**worded)

    def check_options(self, names: Iterable[str]) -> None:
        """Raise StudyError for an option that the study does not have."""
        known = [option.name for option in self.options]
        for name in names:
            if name not in known:
                raise StudyError(unknown_name(f"option of a {self.name} study", name, known))


# Every kind by its name, in the order in which they were entered, and what their rows zero.
KINDS: dict[str, Kind] = {}
SELECTIONS: dict[str, Selection] = {}


def enter(kind: Kind) -> Kind:
    """Enter a kind; raise ValueError for a name that another has, and for rows that another's are called."""
    if kind.name in KINDS:
        raise ValueError(f"there is a kind of study called {kind.name!r} already")
    for one in kind.selections:
        if SELECTIONS.get(one.name, one) is not one:
            raise ValueError(f"the rows of another kind of study are called {one.name!r} already")
    KINDS[kind.name] = kind
    SELECTIONS.update({one.name: one for one in kind.selections})
    return kind


def kind_called(name: str) -> Kind:
    """Return the kind of that name; raise StudyError, which lists them, where there is none."""
    if name not in KINDS:
        raise StudyError(unknown_name("study", name, KINDS))
    return KINDS[name]


def kind_of(name: str) -> Kind:
    """Return the kind of a study in the store; a caller's own, which nothing is known of, gets a plain one."""
    return KINDS.get(name) or Kind(
        name, "What does the network lose when some of its weights are set to zero?", "weights", "ablation"
    )


def kinds_where(test: Callable[[Kind], object]) -> list[str]:
    """Return the names of the kinds for which `test` holds."""
    return [kind.name for kind in KINDS.values() if test(kind)]


def options_by_name() -> dict[str, dict[str, Option]]:
    """Return the command's options, and for each the kinds that have it with their own; what all have comes last."""
    by_name: dict[str, dict[str, Option]] = {}
    for kind in KINDS.values():
        for option in kind.options:
            if option.on_command:
                by_name.setdefault(option.name, {})[kind.name] = option
    return dict(sorted(by_name.items(), key=lambda entry: len(entry[1]) == len(KINDS)))


def named(row: Any) -> str:
    """Word what a row of a study's table zeroes: "layer1.0.conv1[3, 5]", "every layer, percentile 90" …"""
    known = SELECTIONS.get(row.selection)
    return known.word(row) if known else f"{place_of(row)}, {row.selection}"


def called(selection: str) -> str:
    """Return what one row with that selection is called: "kernel", "filter", "weight" …"""
    known = SELECTIONS.get(selection)
    return known.called if known else "ablation"


def channels_of(selection: str) -> tuple[str, ...] | None:
    """Return the columns that number the unit of a layer that a row with that selection zeroes; None for no unit."""
    known = SELECTIONS.get(selection)
    return known.channels if known else None


# What rows zero ----------------------------------------------------------------------------------------------------


def place_of(row: Any) -> str:
    """Return the layer of a row, or "every layer"."""
    return row.layer if isinstance(row.layer, str) else "every layer"


def _unit(name: str, *channels: str) -> Selection:
    """A unit of one layer, told by its channels: "layer[3, 5]", "layer[3, :]"."""

    def word(row: Any) -> str:
        if not channels:
            return place_of(row)
        sides = (f"{getattr(row, side):.0f}" if side in channels else ":" for side in ("out_channel", "in_channel"))
        return f"{place_of(row)}[{', '.join(sides)}]"

    return Selection(name, name, channels, word)


def _by_percentile(name: str, called: str) -> Selection:
    def word(row: Any) -> str:
        draw = f", draw {row.draw:.0f}" if row.draw and row.draw > 0 else ""
        return f"{place_of(row)}, percentile {row.percentile:g}{draw}"

    return Selection(name, called, None, word)


def _by_multiplier(name: str) -> Selection:
    def word(row: Any) -> str:
        # Channels or kernels: which, the study's options say.
        fraction = getattr(row, "fraction", None)
        amount = f" {fraction:.0%}" if fraction and fraction == fraction else ""
        draw = f", draw {row.draw:.0f}" if row.draw is not None and row.draw == row.draw else ""
        return f"{place_of(row)}, {name}{amount}{' by multiplier' if not draw else ''}{draw}"

    return Selection(name, "selection", None, word)


KERNEL = _unit("kernel", "out_channel", "in_channel")
FILTER = _unit("filter", "out_channel")
INPUT_CHANNEL = _unit("input channel", "in_channel")
LAYER = _unit("layer")

# The kinds -----------------------------------------------------------------------------------------------------------


def fractions(text: str) -> tuple[float, ...]:
    """Read shares such as "0.1,0.2"; raise StudyError for anything else."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise StudyError(f"--fractions {text!r} is malformed: give numbers such as 0.1,0.2,0.5") from None


LAYERS = Option("layers", "GLOB", "only layers whose name matches, such as 'layer1.*' (commas allowed)")

LOCATION = enter(
    Kind(
        "location",
        "Which kernels does the network need, and where are they? Each ablation sets one kernel to zero "
        "(Quader et al., ECCV 2020, section 3.1).",
        zeroes="kernels, by where they are",
        row="kernel",
        options=(
            Option("grid", "N1xN2|all", "output x input channels of each layer, or all kernels", "5x5"),
            Option("kernel_size", "K|any", "layers with KxK kernels, or any", "3"),
            LAYERS,
        ),
        selections=(KERNEL,),
        drawing="maps",
        page="location",
        searchable=True,
        scored="units",
        prunes=Prunes("kernel", KERNEL.name, "--grid all --kernel-size any"),
    )
)

MAGNITUDE = enter(
    Kind(
        "magnitude",
        "Does the network need its large weights more than its small ones? Each ablation zeroes weights {scope} at "
        "one percentile b of the sorted |w| (Quader et al., ECCV 2020, section 3.1).",
        zeroes="single weights, by their size",
        row="percentile",
        options=(
            Option("percentiles", "LIST", "such as 1-100 or 50,75,90-100", "1-100"),
            Option(
                "scope",
                "network|layer",
                "every layer at once, or one at a time",
                "network",
                words={"network": "of every layer at once", "layer": "of one layer"},
            ),
            Option("percentile_width", "K", "zero the whole bin (b-K, b]", read=float, tells_apart=True),
            Option("repeats", "R", "the R weights nearest to each percentile", 1, int),
            LAYERS,
        ),
        selections=(_by_percentile("single", "weight"), _by_percentile("bin", "bin of weights")),
        drawing="curves",
        page="magnitude",
        scored="weights",
    )
)

MULTIPLIER = enter(
    Kind(
        "multiplier",
        "Does the multiplier that Weight Excitation learned tell what the network needs? "
        "(Quader et al., ECCV 2020, section 4.2)",
        zeroes="input channels or kernels, by LWE's multiplier",
        row="selection",
        options=(
            Option(
                "multiplier_of",
                "channel|kernel",
                "rank input channels by m averaged over the outputs, or single kernels by their own m",
                "channel",
                tells_apart=True,
            ),
            Option("channels", "K", "K of them in each layer", 1, int, tells_apart=True),
            Option("fractions", "LIST", "of the rank curve", (0.1, 0.2, 0.3, 0.4, 0.5), fractions),
            Option("draws", "R", "random draws beside each rank", 5, int),
            Option("seed", "N", "from which the random draws are", 0, int, on_command=False),
            LAYERS,
        ),
        selections=tuple(map(_by_multiplier, ("lowest", "highest", "random"))),
        page="multipliers",
        needs_multipliers=True,
    )
)

CHANNEL = enter(
    Kind(
        "channel",
        "Which channels does the network need? Each ablation sets a whole filter, or all kernels of an input channel, "
        "to zero.",
        zeroes="whole filters and input channels",
        row="channel",
        options=(
            Option("side", "out|in|both", "filters, input channels, or both", "both"),
            Option("grid", "N|all", "how many equidistant channels a layer, or all", "all"),
            LAYERS,
        ),
        selections=(FILTER, INPUT_CHANNEL),
        drawing="strips",
        page="channels",
        searchable=True,
        scored="units",
        prunes=Prunes("channel", FILTER.name, "--side out"),
    )
)

WHOLE_LAYER = enter(
    Kind(
        "layer",
        "Which layers does the network need? Each ablation sets all weights of one layer to zero.",
        zeroes="whole layers",
        row="layer",
        options=(LAYERS,),
        selections=(LAYER,),
        drawing="strips",
        page="channels",
        searchable=True,
        scored="units",
    )
)

# What is studied where nothing is said.
DEFAULT = LOCATION.name
