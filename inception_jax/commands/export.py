"""`inception-jax export`: a run's network for other programs, or its weights under another library's names."""

import argparse
from typing import TYPE_CHECKING

from inception_jax.commands import flags
from inception_jax.errors import UserError, check_choice
from inception_jax.text import printable, say

if TYPE_CHECKING:
    from inception_jax.runs.run import Run

GRAPHS = ("stablehlo", "onnx")
WEIGHTS = ("torchvision", "timm", "cadene")
EXAMPLES = """\
examples:
  inception-jax export runs/my_pictures --format stablehlo
  inception-jax export runs/my_pictures --format onnx --input uint8 --output my_pictures.onnx
  inception-jax export runs/googlenet_224 --format torchvision
  inception-jax export runs/vgg --format timm --checkpoint latest --output vgg.pth

Every file is read back and compared with the run before the command ends.

stablehlo and onnx contain the network, for batches of any size; FILE.json beside them describes the preprocessing and
the classes. predict and serve accept them, too.

torchvision, timm and cadene contain the weights; the library loads them with strict=True and gives the same logits:
  model = torchvision.models.googlenet(num_classes=10, aux_logits=False)
  model.load_state_dict(safetensors.torch.load_file("runs/googlenet_224/googlenet-torchvision.safetensors"))
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand to the command line."""
    parser = flags.add_command(
        subparsers,
        "export",
        run,
        help="write a run's network as StableHLO or ONNX, or its weights for torchvision or timm",
        description="Exports a run's network as StableHLO or ONNX, or its weights with the names of another library.",
        examples=EXAMPLES,
    )
    flags.add_runs(parser, nargs=None)
    parser.add_argument("--format", required=True, metavar="FORMAT", help=", ".join([*GRAPHS, *WEIGHTS]))
    parser.add_argument(
        "--output",
        metavar="FILE",
        type=flags.path,
        help="(default: RUN/NETWORK.FORMAT; for weights RUN/NETWORK-FORMAT.safetensors, or .pth with PyTorch)",
    )
    flags.add_checkpoint(parser)
    parser.add_argument(
        "--input", metavar="KIND", help="for stablehlo and onnx: float32, normalized (default), or uint8, as stored"
    )
    parser.add_argument(
        "--platforms", metavar="NAMES", help="for stablehlo, comma-separated: cpu, cuda, rocm, tpu (default: cpu,cuda)"
    )


def run(args: argparse.Namespace) -> int:
    """Writes the file and prints its content, its number of values, and the preprocessing that images need."""
    check_choice("format", args.format, GRAPHS + WEIGHTS)
    for flag, value, formats in (("--input", args.input, GRAPHS), ("--platforms", args.platforms, GRAPHS[:1])):
        if value is not None and args.format not in formats:
            raise UserError(f"{flag} needs --format={' or '.join(formats)}, not {args.format}")
    # Imported only now: help is shown without waiting for JAX.
    from inception_jax import process
    from inception_jax.runs.run import load_run

    process.use_compilation_cache()
    trained = load_run(args.run_folder, args.checkpoint, trust_code=args.trust_code)
    (_graph if args.format in GRAPHS else _weights)(args, trained)
    return 0


def _graph(args: argparse.Namespace, trained: "Run") -> None:
    from inception_jax.trained.export import export_run
    from inception_jax.weights.convert import registered_name

    name = registered_name(trained.model)
    output = args.output or args.run_folder / f"{name}.{args.format}"
    platforms = (args.platforms or "cpu,cuda").split(",")
    exported, difference = export_run(
        trained, output, args.format, input=args.input or "float32", platforms=[name.strip() for name in platforms]
    )
    say(
        f"{printable(str(output))}: {name} of step {trained.step}, {output.stat().st_size / 1e6:.1f} MB; "
        f"{printable(output.name)}.json beside it"
    )
    say(f"  {len(exported.class_names)} classes: {_shortened(trained)}")
    say(f"  inputs: {_inputs(trained, exported.about['input']['dtype'], 'channels last')}")
    say(f"  read back: relative difference of the logits {difference:.1e}")


def _weights(args: argparse.Namespace, trained: "Run") -> None:
    from inception_jax.trained.export import export_weights
    from inception_jax.weights.convert import registered_name

    name = registered_name(trained.model)
    output = args.output or args.run_folder / f"{name}-{args.format}.safetensors"
    tensors = export_weights(trained, output, args.format)
    values, size = sum(tensor.size for tensor in tensors.values()), output.stat().st_size
    say(
        f"{printable(str(output))}: {name} with {args.format}'s names, {len(tensors)} tensors, {values:,} values, "
        f"{size / 1e6:.1f} MB"
    )
    say(f"  of step {trained.step}; {len(trained.inputs.class_names)} classes: {_shortened(trained)}")
    say(f"  inputs: {_inputs(trained, 'float32', 'channels first')}")
    say("  read back: all values equal the run's")


def _shortened(trained: "Run") -> str:
    first = ", ".join(map(printable, trained.class_names[:10]))
    return first + (", ..." if len(trained.inputs.class_names) > 10 else "")


def _inputs(trained: "Run", dtype: str, layout: str) -> str:
    """The preprocessing that an image needs before the network, in words."""
    height, width, channels = trained.inputs.image_shape
    mean, std = (f"({', '.join(f'{x:.6g}' for x in values)})" for values in (trained.inputs.mean, trained.inputs.std))
    scaled = "pixels from 0 to 1"
    normalized = {
        "none": "pixels from 0 to 255",
        "unit": scaled,
        "mean": f"{scaled}, minus mean {mean}",
        "mean_255": f"pixels from 0 to 255, minus 255 times mean {mean}",
        "mean_std": f"{scaled}, minus mean {mean}, divided by std {std}",
        "per_image": f"{scaled}, minus each image's mean, divided by its deviation (at least 1 / sqrt(values))",
    }[trained.config.data.normalization]
    colors = "gray" if channels == 1 else "red, green, blue"
    values = normalized if dtype == "float32" else "uint8 pixels from 0 to 255"
    return f"{height}x{width}, {colors}, {layout}, {values}"
