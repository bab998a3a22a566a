"""`inception-jax serve`: a trained network on a page and behind a JSON endpoint."""

import argparse
import sys
from pathlib import Path

from inception_jax import process
from inception_jax.commands import flags
from inception_jax.errors import UserError

EXAMPLES = """\
examples:
  inception-jax serve runs/googlenet_digits
  inception-jax serve runs/my_pictures --port 0 --max-batch 32 --max-wait-ms 10

Its page takes a picture; programs send one to /predict:
  curl --data-binary @picture.jpg 'http://127.0.0.1:8000/predict?top=3'
  curl -F picture=@picture.jpg 'http://127.0.0.1:8000/predict?grad_cam=1'
/health answers once the network is ready, /metrics is for Prometheus. SIGTERM and Ctrl-C end it when what it has
accepted is answered.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the sub-command to the command line."""
    parser = subparsers.add_parser(
        "serve",
        help="serve a trained network: a page to try it, JSON for programs",
        description="Serves a trained network over HTTP: a page to try it on a picture, and JSON for programs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="RUN", type=Path, help="folder of a run, or an exported file")
    flags.add_checkpoint(parser)
    parser.add_argument("--host", default="127.0.0.1", help="(default: 127.0.0.1, for this machine alone)")
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free (default: 8000)")
    parser.add_argument("--max-batch", type=int, default=16, metavar="N", help="pictures at once (default: 16)")
    parser.add_argument(
        "--max-wait-ms", type=float, default=5.0, metavar="MS", help="that a picture waits for others (default: 5)"
    )
    parser.add_argument(
        "--max-queue", type=int, default=64, metavar="N", help="unanswered requests; more get a 503 (default: 64)"
    )
    parser.add_argument("--max-mb", type=float, default=16.0, metavar="MB", help="of a request (default: 16)")
    parser.add_argument(
        "--max-megapixels", type=float, default=50.0, metavar="MP", help="of a picture, at most 89 (default: 50)"
    )
    parser.add_argument("--timeout-s", type=float, default=10.0, metavar="S", help="for an answer (default: 10)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the address once the network is ready."""
    # Imported only now: help is answered without waiting for JAX.
    try:
        from inception_jax import serving
    except ModuleNotFoundError as error:
        if error.name not in ("prometheus_client", "starlette", "uvicorn"):
            raise
        raise UserError(
            f"serve needs {error.name}, which is not installed: pip install 'inception-jax[serve]'"
        ) from None
    from inception_jax.predict import load_classifier

    limits = serving.Limits(
        args.max_batch, args.max_wait_ms, args.max_queue, args.max_mb, args.max_megapixels, args.timeout_s
    )
    process.use_compilation_cache()
    with serving.listen(args.host, args.port) as listening:
        if not serving.is_loopback(listening):
            print(f"warning: on {args.host} other machines reach it, and it asks nobody who they are", file=sys.stderr)
        app = serving.create_app(load_classifier(args.source, args.checkpoint), args.source.resolve().name, limits)
        print(f"serving {args.source} on {serving.address_of(listening)} (Ctrl-C ends it)", flush=True)
        serving.serve(app, listening, args.timeout_s)
    return 0
