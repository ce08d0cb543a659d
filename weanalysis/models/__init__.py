"""Where a network comes from: torchvision, timm, the built-in CIFAR networks, a checkpoint file."""

from weanalysis.models.architecture import SOURCES, build, check_task, list_models, parse_name
from weanalysis.models.checkpoint import read_state_dict, save_checkpoint
from weanalysis.models.inputs import check_forward, check_inputs, fitting_options, input_channels, input_sides
from weanalysis.models.model import Model, load_network
from weanalysis.models.sizes import smallest_image_size

__all__ = [
    "SOURCES",
    "Model",
    "build",
    "check_forward",
    "check_inputs",
    "check_task",
    "fitting_options",
    "input_channels",
    "input_sides",
    "list_models",
    "load_network",
    "parse_name",
    "read_state_dict",
    "save_checkpoint",
    "smallest_image_size",
]
