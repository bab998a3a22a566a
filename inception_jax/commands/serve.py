"""`inception-jax serve`: a trained network on a web page and behind a JSON endpoint."""

import argparse
import contextlib
import os
from pathlib import Path
from typing import Any

from inception_jax import process
from inception_jax.commands import flags
from inception_jax.errors import UserError
from inception_jax.process import log_to_stderr
from inception_jax.text import complain, printable, say

TOKEN = "INCEPTION_JAX_TOKEN"
MOST_TOKEN_BYTES = 4096
EXAMPLES_SHOWN = 8
EXAMPLES = """\
examples:
  inception-jax serve runs/googlenet_digits
  inception-jax serve runs/my_pictures --port 0 --max-batch 32 --max-wait-ms 10
  inception-jax serve runs/my_pictures --dtype bfloat16 --engine openvino

Try pictures on its page, or send one to /predict:
  curl --data-binary @picture.jpg 'http://127.0.0.1:8000/predict?top=3'
  curl -F picture=@picture.jpg 'http://127.0.0.1:8000/predict?grad_cam=1'
/live and /ready are health checks, /metrics is for Prometheus. SIGTERM and Ctrl-C stop the server after it has answered
pending requests; meanwhile /ready returns 503. A second signal stops it at once.

To accept other machines, give another --host than 127.0.0.1. Requests then need a token:
  inception-jax serve runs/googlenet_digits --host 0.0.0.0 --token-file token --allowed-host pictures.example.org
  curl -H "Authorization: Bearer $(cat token)" --data-binary @picture.jpg http://pictures.example.org:8000/predict
The Host header must be localhost, the server's address, --host or an --allowed-host.
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds the subcommand to the command line."""
    parser = flags.add_command(
        subparsers,
        "serve",
        run,
        help="serve a trained network: a web page and a JSON endpoint",
        description="Serves a trained network over HTTP: a web page and a JSON endpoint.",
        examples=EXAMPLES,
    )
    flags.add_source(parser)
    flags.add_checkpoint(parser)
    flags.add_dtype(parser)
    flags.add_engine(parser, "which uses the fastest one installed")
    parser.add_argument("--host", default="127.0.0.1", help="(default: 127.0.0.1, this machine only)")
    parser.add_argument("--port", type=int, default=8000, help="0: any free port (default: 8000)")
    parser.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="another host name to accept, such as that of a proxy; can be repeated",
    )
    secrets = parser.add_mutually_exclusive_group()
    secrets.add_argument(
        "--token-file",
        type=flags.path,
        metavar="FILE",
        help=f"file with the required token (default: that in ${TOKEN}, if set)",
    )
    secrets.add_argument("--no-token", action="store_true", help="require no token, even if other machines can connect")
    parser.add_argument("--max-batch", type=int, default=16, metavar="N", help="pictures per batch (default: 16)")
    parser.add_argument(
        "--max-wait-ms", type=float, default=5.0, metavar="MS", help="longest wait for a full batch (default: 5)"
    )
    parser.add_argument(
        "--max-queue", type=int, default=64, metavar="N", help="pending requests; more get a 503 (default: 64)"
    )
    parser.add_argument("--max-mb", type=float, default=16.0, metavar="MB", help="largest request (default: 16)")
    parser.add_argument(
        "--max-megapixels", type=float, default=50.0, metavar="MP", help="largest picture, at most 89 (default: 50)"
    )
    parser.add_argument(
        "--examples",
        type=int,
        metavar="N",
        help="pictures of the run's own test data that the page offers "
        f"(default: {EXAMPLES_SHOWN} if only this machine can connect, else none)",
    )
    parser.add_argument(
        "--timeout-s", type=float, default=10.0, metavar="S", help="longest time to answer (default: 10)"
    )


def run(args: argparse.Namespace) -> int:
    """Starts the server; prints the address once the network is ready."""
    # Imported only now: help is shown without waiting for JAX.
    try:
        from inception_jax.trained import serving
    except ModuleNotFoundError as error:
        if error.name not in ("prometheus_client", "starlette", "uvicorn"):
            raise
        raise UserError(
            f"serve needs {error.name}, which is not installed: pip install 'inception-jax[serve]'"
        ) from None
    from inception_jax.trained import engines
    from inception_jax.trained.predict import load_classifier

    token = None if args.no_token else _token(args.token_file)
    access = serving.Access(serving.allowed_names(args.allowed_host, args.host), token)
    limits = serving.Limits(
        args.max_batch, args.max_wait_ms, args.max_queue, args.max_mb, args.max_megapixels, args.timeout_s
    )
    process.use_compilation_cache()
    with serving.listen(args.host, args.port) as listening:
        if token is None and not serving.is_loopback(listening):
            if not args.no_token:
                raise UserError(
                    f"--host={args.host} accepts other machines: give --token-file FILE or set {TOKEN}, or give "
                    "--no-token to answer everybody"
                )
            complain(f"warning: --host={args.host} accepts other machines, without a token")
        classifier = load_classifier(args.source, args.checkpoint, dtype=args.dtype, trust_code=args.trust_code)
        examples = _examples(classifier, args.examples, serving.is_loopback(listening), token)
        with log_to_stderr():
            classifier = engines.use(classifier, args.engine, batch_size=args.max_batch)
        app = serving.create_app(classifier, args.source.resolve().name, limits, access, examples)
        say(printable(f"serving {args.source} on {serving.address_of(listening)} (Ctrl-C ends it)"), flush=True)
        serving.serve(app, listening, args.timeout_s)
    return 0


def _examples(classifier: Any, number: int | None, is_loopback: bool, token: str | None) -> Any:
    """The pictures that the page offers; none by default where other machines can connect, or without the data."""
    from inception_jax.runs.run import Run
    from inception_jax.trained import serving

    if number is None:
        if not is_loopback or token is not None or not isinstance(classifier, Run):
            return ()
        with contextlib.suppress(UserError):
            return serving.load_examples(classifier, EXAMPLES_SHOWN)
        return ()
    if number < 0:
        raise UserError(f"--examples={number} is not allowed: it must be at least 0")
    if number and token is not None:
        raise UserError("--examples needs --no-token: the page shows the pictures to everybody who can open it")
    if number and not isinstance(classifier, Run):
        raise UserError("--examples needs a run: only that knows its data")
    return serving.load_examples(classifier, number) if number else ()


def _token(path: Path | None) -> str | None:
    """The token from a file or the environment; None if neither is given."""
    if path is None:
        text, where = os.environ.get(TOKEN), f"${TOKEN}"
        if text is None:
            return None
    else:
        from inception_jax.data.images import read_file

        where = str(path)
        try:
            text = read_file(path)[:MOST_TOKEN_BYTES].decode("latin-1")
        except (OSError, ValueError) as error:
            raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from error
    token = text.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UserError(f"the token in {where} must be one word of printable ASCII characters")
    return token
