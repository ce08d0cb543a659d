"""Finished tables in, Plotly figures out: the only place that draws."""

from weanalysis.figures.colours import CATEGORICAL, THEMES, colours_by_way
from weanalysis.figures.compare import drop_agreement, drop_distributions
from weanalysis.figures.excitation import excitation_curves, excitation_of_layer, excited, gain
from weanalysis.figures.files import FORMATS, check_pictures, embedded, plotly_script, save_pictures
from weanalysis.figures.images import changes_by_class, confusion_of_changes, images_by_rows, layers_of_image
from weanalysis.figures.inputs import array_picture, frame_strip
from weanalysis.figures.kernel import kernel_neighbours, kernel_weights
from weanalysis.figures.layers import drop_by_layer, spread_by_depth
from weanalysis.figures.location import SIGNIFICANT_Q, Scale, Value, layer_spread, location_mosaic
from weanalysis.figures.magnitude import magnitude_curve, magnitude_curves, magnitude_map, weight_histogram
from weanalysis.figures.masks import class_colour, class_legend, iou_by_class, overlay
from weanalysis.figures.multipliers import (
    multiplier_curve,
    multiplier_drops,
    multiplier_histogram,
    multiplier_map,
    multiplier_ranks,
    multiplier_spread,
)
from weanalysis.figures.network import By, network_map
from weanalysis.figures.notebook import Explorer, explore, show
from weanalysis.figures.pruning import pruning_curves
from weanalysis.figures.runs import FEWEST_SEEDS, METRIC_TITLES, X_TITLES, best_epoch, training_curves
from weanalysis.figures.saliency import (
    agreement_by_layer,
    agreement_of_criteria,
    saliency_mosaic,
    score_against_drop,
    score_by_layer,
)
from weanalysis.figures.strips import Order, channel_intervals, channel_strips, score_strips
from weanalysis.figures.style import interval, is_screened, make_room, points

__all__ = [
    "CATEGORICAL",
    "FEWEST_SEEDS",
    "FORMATS",
    "METRIC_TITLES",
    "SIGNIFICANT_Q",
    "THEMES",
    "X_TITLES",
    "By",
    "Explorer",
    "Order",
    "Scale",
    "Value",
    "agreement_by_layer",
    "agreement_of_criteria",
    "array_picture",
    "best_epoch",
    "changes_by_class",
    "channel_intervals",
    "channel_strips",
    "check_pictures",
    "class_colour",
    "class_legend",
    "colours_by_way",
    "confusion_of_changes",
    "drop_agreement",
    "drop_by_layer",
    "drop_distributions",
    "embedded",
    "excitation_curves",
    "excitation_of_layer",
    "excited",
    "explore",
    "frame_strip",
    "gain",
    "images_by_rows",
    "interval",
    "iou_by_class",
    "is_screened",
    "kernel_neighbours",
    "kernel_weights",
    "layer_spread",
    "layers_of_image",
    "location_mosaic",
    "magnitude_curve",
    "magnitude_curves",
    "magnitude_map",
    "make_room",
    "multiplier_curve",
    "multiplier_drops",
    "multiplier_histogram",
    "multiplier_map",
    "multiplier_ranks",
    "multiplier_spread",
    "network_map",
    "overlay",
    "plotly_script",
    "points",
    "pruning_curves",
    "saliency_mosaic",
    "save_pictures",
    "score_against_drop",
    "score_by_layer",
    "score_strips",
    "show",
    "spread_by_depth",
    "training_curves",
    "weight_histogram",
]
