"""`weanalysis fold`: an excited network without any trace of its excitation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from weanalysis.cli.options import cache_option, json_option, print_objects
from weanalysis.errors import ModelError

FOLD_HELP = """Write the plain weights that an excited network computes with: nothing of the excitation is left.

CHECKPOINT is a checkpoint file of this program, or a run. torchvision or timm load the result with strict=True, as do
this program and everything else that reads safetensors.

\b
Examples:
  weanalysis fold cache/runs/resnet50-lwe/best.safetensors -o resnet50.safetensors
  weanalysis fold resnet20-digits-lwe-33d7dbca -o plain.safetensors --json
"""


@click.command(help=FOLD_HELP, short_help="Write an excited network's plain weights.")
@click.argument("checkpoint", metavar="CHECKPOINT")
@click.option("--output", "-o", required=True, metavar="FILE", help="The .safetensors file to write.")
@json_option
@cache_option
def fold(checkpoint: str, output: str, as_json: bool, cache: str | None) -> None:
    import copy

    from weanalysis.cache import find_cache
    from weanalysis.cli.display import open_console
    from weanalysis.comparison import find_checkpoint
    from weanalysis.excitation import excitation_of
    from weanalysis.excitation import fold as fold_network
    from weanalysis.models import load_network, read_state_dict, save_checkpoint

    opened = find_cache(cache)
    source, target = find_checkpoint(checkpoint, opened), Path(output).expanduser()
    if target.resolve() == source.resolve():
        raise ModelError(f"{target} is the checkpoint itself, whose excitation would be lost; name another file")
    model = load_network(str(source), cache=opened)
    excitation = excitation_of(model.net)
    plain = fold_network(copy.deepcopy(model.net))
    layers = [name for name, module in model.net.named_modules() if hasattr(module, "parametrizations")]
    architecture = {key: value for key, value in model.architecture.items() if key != "excitation"}
    about = read_state_dict(source)[1]
    save_checkpoint(target, plain, architecture, {key: about[key] for key in about if key != "architecture"})
    assert excitation is not None
    result = {
        "checkpoint": str(source),
        "output": str(target),
        "model": model.name,
        "excitation": excitation["kind"],
        "layers": layers,
        "train_params": _num_parameters(model.net),
        "inference_params": _num_parameters(plain),
    }
    if as_json:
        print_objects([result])
        return
    console = open_console()
    console.print(
        f"Folded {excitation['kind']} into the weights of {len(layers)} layers of {model.name}: "
        f"{result['train_params']:,} parameters became {result['inference_params']:,}.",
    )
    console.print(f"  {target}", markup=False, soft_wrap=True)
    console.print(_how_to_load(architecture, target), markup=False, soft_wrap=True)


def _num_parameters(net: Any) -> int:
    return sum(parameter.numel() for parameter in net.parameters())


def _how_to_load(architecture: dict[str, Any], path: Path) -> str:
    """Say in which program the folded file fits, in its own words."""
    dressed = [f"{key} {architecture[key]}" for key in ("attention", "norm") if architecture.get(key)]
    if architecture["source"] == "builtin" or dressed:
        why = f" (it has {' and '.join(dressed)})" if dressed else ""
        return f"Use it with --model {path}: no other program has this network{why}."
    options = "".join(f", {key}={value!r}" for key, value in architecture["options"].items())
    make = {"timm": "timm.create_model"}.get(architecture["source"], "torchvision.models.get_model")
    return (
        f"Load it anywhere: {make}({architecture['name']!r}, num_classes={architecture['num_classes']}{options})"
        ".load_state_dict(safetensors.torch.load_file(FILE), strict=True)"
    )
