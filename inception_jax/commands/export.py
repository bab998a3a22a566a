"""`inception-jax export`: a run's weights under another library's names."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from inception_jax.run import Run

EXAMPLES = """\
examples:
  inception-jax export runs/googlenet_224 --format torchvision
  inception-jax export runs/vgg --format timm --checkpoint latest --output vgg.pth

The library loads the file with strict=True and computes the same logits:
  model = torchvision.models.googlenet(num_classes=10, aux_logits=False)
  model.load_state_dict(safetensors.torch.load_file("runs/googlenet_224/googlenet-torchvision.safetensors"))
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the sub-command to the command line."""
    parser = subparsers.add_parser(
        "export",
        help="write a run's weights in the naming of torchvision or timm",
        description="Writes the weights of a run in the naming of another library, and says what its inputs are.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="folder of the run")
    parser.add_argument("--format", required=True, metavar="FORMAT", help="whose naming: torchvision, timm or cadene")
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=Path,
        help=".safetensors, or .pth where PyTorch is installed (default: RUN/NETWORK-FORMAT.safetensors)",
    )
    parser.add_argument("--checkpoint", default="best", metavar="NAME", help="best or latest (default: best)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Writes the file and prints what is in it, how many values it has, and what a picture must become for it."""
    # Imported only now: help is answered without waiting for JAX.
    from inception_jax.run import load_run
    from inception_jax.weights import to_state_dict, write_state_dict
    from inception_jax.weights.convert import registered_name

    trained = load_run(args.run_folder, args.checkpoint)
    tensors = to_state_dict(trained.model, trained.variables, args.format)
    name = registered_name(trained.model)
    output = args.output or args.run_folder / f"{name}-{args.format}.safetensors"
    write_state_dict(output, tensors)
    values, size = sum(tensor.size for tensor in tensors.values()), output.stat().st_size
    print(f"{output}: {name} as {args.format} names it, {len(tensors)} tensors, {values:,} values, {size / 1e6:.1f} MB")
    print(f"  of step {trained.step}; {len(trained.inputs.class_names)} classes: {_shortened(trained)}")
    print(f"  inputs: {_inputs(trained)}")
    return 0


def _shortened(trained: "Run") -> str:
    first = ", ".join(trained.inputs.class_names[:10])
    return first + (", ..." if len(trained.inputs.class_names) > 10 else "")


def _inputs(trained: "Run") -> str:
    """What must be done to a picture before the network, in words."""
    height, width, channels = trained.inputs.image_shape
    mean, std = (f"({', '.join(f'{x:.6g}' for x in values)})" for values in (trained.inputs.mean, trained.inputs.std))
    scaled = "pixels from 0 to 1"
    normalized = {
        "none": "pixels from 0 to 255",
        "unit": scaled,
        "mean": f"{scaled}, minus mean {mean}",
        "mean_std": f"{scaled}, minus mean {mean}, divided by std {std}",
        "per_image": f"{scaled}, minus each image's mean, divided by its deviation (at least 1 / sqrt(values))",
    }[trained.config.data.normalization]
    colours = "gray" if channels == 1 else "red, green, blue"
    return f"{height}x{width}, {colours}, channels first, {normalized}"
