"""Which weights of a trained ConvNet matter, where they are, and what Weight Excitation changed about that.

    import weanalysis as wa

    model = wa.load_model("resnet20", data="digits")
    data = wa.load_data("digits", model=model)
    table = wa.ablate(model, data, wa.studies.location(model.net, grid=(5, 5)))

Names load when they are first used, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from weanalysis import excitation, figures
    from weanalysis.ablation import ablate, studies
    from weanalysis.comparison import compare
    from weanalysis.excitation.costs import costs
    from weanalysis.figures import show
    from weanalysis.loading import load_data, load_model
    from weanalysis.pruning import prune
    from weanalysis.report import write_report
    from weanalysis.results import Store
    from weanalysis.saliency import saliency_maps
    from weanalysis.training import Recipe, train

__version__ = "0.1.0"

__all__ = [
    "Recipe",
    "Store",
    "__version__",
    "ablate",
    "compare",
    "costs",
    "excitation",
    "figures",
    "load_data",
    "load_model",
    "metric",
    "prune",
    "saliency_maps",
    "show",
    "studies",
    "train",
    "write_report",
]

_HOMES = {
    "Recipe": "weanalysis.training",
    "Store": "weanalysis.results",
    "ablate": "weanalysis.ablation",
    "compare": "weanalysis.comparison",
    "costs": "weanalysis.excitation",
    "load_data": "weanalysis.loading",
    "load_model": "weanalysis.loading",
    "metric": "weanalysis.tasks.own",
    "prune": "weanalysis.pruning",
    "saliency_maps": "weanalysis.saliency",
    "show": "weanalysis.figures",
    "train": "weanalysis.training",
    "write_report": "weanalysis.report",
}
_MODULES = {
    "excitation": "weanalysis.excitation",
    "figures": "weanalysis.figures",
    "studies": "weanalysis.ablation.studies",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name in _MODULES:
        return import_module(_MODULES[name])
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
