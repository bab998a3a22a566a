"""Throughput of a network over HTTP: `inception-jax serve` against bare inference, in one run.

A network with random weights is served by the command; a client, in a process of its own, sends JPEG and PNG files
over connections that it keeps open. Bare inference is the same network's `Run.logits` in a process of its own, on
images that are decoded already, at the server's mean batch size and at its largest; it is measured before and
after, while the server is idle. The server also decodes, answers and shares its cores with the client.
"""

import argparse
import asyncio
import json
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np

EXAMPLES = """\
Run nothing else at the same time. The server's memory is read from /proc, so Linux is required.

examples, in the repository's root:
  python benchmarks/serving.py
  python benchmarks/serving.py --network resnet18 --image-size 64 --requests 500 --max-batch 8
"""
NUM_CLASSES = 10
PICTURES = 32  # distinct images, half JPEG, half PNG
BARE_SECONDS = 5.0  # per measurement of bare inference


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="googlenet", help="(default: %(default)s)")
    parser.add_argument("--image-size", type=int, default=224, help="pixels per side (default: %(default)s)")
    parser.add_argument("--requests", type=int, default=2000, help="(default: %(default)s)")
    parser.add_argument("--concurrency", type=int, default=16, help="requests at once (default: %(default)s)")
    parser.add_argument("--max-batch", type=int, default=8, help="see serve --help (default: %(default)s)")
    parser.add_argument("--max-wait-ms", type=float, default=5.0, help="see serve --help (default: %(default)s)")
    parser.add_argument("--engine", default="jax", help="for both sides, see serve --help (default: %(default)s)")
    return parser.parse_args(argv)


def make_run(folder: Path, network: str, side: int) -> None:
    """A run of one update on random images."""
    import inception_jax

    config = inception_jax.default_config()
    config.model.name = network
    config.num_epochs, config.batch_size = 1, 4
    config.num_devices = 1
    config.log.tensorboard = False
    numbers = np.random.default_rng(0)
    images = numbers.integers(0, 256, (4, side, side, 3), np.uint8)
    inception_jax.fit(
        config, (images, np.arange(4) % NUM_CLASSES), class_names=tuple(map(str, range(10))), workdir=folder
    )


def pictures(side: int) -> list[bytes]:
    """Image files somewhat larger than the network's input, and smooth like photographs."""
    import io

    from PIL import Image

    numbers = np.random.default_rng(1)
    files = []
    for index in range(PICTURES):
        coarse = Image.fromarray(numbers.integers(0, 256, (8, 10, 3), np.uint8))
        file = io.BytesIO()
        coarse.resize((side * 5 // 4, side), Image.Resampling.BICUBIC).save(file, "JPEG" if index % 2 else "PNG")
        files.append(file.getvalue())
    return files


def send(port: int, files: list[bytes], requests: int, concurrency: int) -> tuple[list[float], int]:
    """The seconds of every request that was answered with classes, and the number of failed ones."""

    async def client(left: list[int], seconds: list[float]) -> int:
        failed = 0
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        chosen = random.Random(len(left))
        while left:
            left.pop()
            content = chosen.choice(files)
            begun = time.perf_counter()
            writer.write(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(content))
            writer.write(content)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            answer = json.loads(await reader.readexactly(int(length[1]) if length else 0))
            if head.startswith(b"HTTP/1.1 200") and len(answer["classes"]) == 5:
                seconds.append(time.perf_counter() - begun)
            else:
                failed += 1
        writer.close()
        return failed

    async def all_clients() -> tuple[list[float], int]:
        left, seconds = list(range(requests)), []
        results = await asyncio.gather(*(client(left, seconds) for _ in range(concurrency)), return_exceptions=True)
        # A client whose connection broke has lost its request.
        return seconds, sum(result if isinstance(result, int) else 1 for result in results)

    return asyncio.run(all_clients())


def resident_mb(process_id: int) -> float:
    """The resident memory of the process, in 10^6 bytes."""
    status = Path(f"/proc/{process_id}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found
    return int(found[1]) * 1024 / 1e6


def mean_batch(address: str) -> tuple[float, float]:
    """The sum and the number of the batches so far."""
    with urllib.request.urlopen(f"{address}metrics") as response:
        text = response.read().decode()
    found = [re.search(rf"^inception_jax_batch_size_{name} (\S+)", text, re.MULTILINE) for name in ("sum", "count")]
    return tuple(float(match[1]) for match in found if match)  # pyright: ignore[reportReturnType]


def bare(run, images: np.ndarray, batch: int) -> float:
    """Images per second of `run.logits`."""
    chunk = np.resize(images, (batch, *images.shape[1:]))
    run.logits(chunk)
    begun, done = time.perf_counter(), 0
    while time.perf_counter() - begun < BARE_SECONDS:
        run.logits(chunk)
        done += batch
    return done / (time.perf_counter() - begun)


def main(argv: list[str] | None = None) -> int:
    """Prints the numbers; returns 1 if a request failed."""
    from inception_jax import process
    from inception_jax.data.images import decode
    from inception_jax.runs.run import load_run
    from inception_jax.trained import engines

    options = parse_arguments(argv)
    process.use_compilation_cache()
    with tempfile.TemporaryDirectory() as workdir:
        folder = Path(workdir, "run")
        make_run(folder, options.network, options.image_size)
        run = engines.use(load_run(folder, "latest"), options.engine, batch_size=options.max_batch)
        files = pictures(options.image_size)
        images = np.stack([decode(content, run.form) for content in files])
        limits = [f"--max-batch={options.max_batch}", f"--max-wait-ms={options.max_wait_ms}"]
        limits.append(f"--engine={options.engine}")
        code = "import sys; from inception_jax import commands; sys.exit(commands.main(sys.argv[1:]))"
        command = [sys.executable, "-c", code, "serve", str(folder), "--checkpoint=latest", "--port=0", *limits]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout
                found = re.search(r"http://127\.0\.0\.1:(\d+)/", server.stdout.readline())
                if not found:
                    raise SystemExit("the server did not start")
                address, port = found[0], int(found[1])
                with ProcessPoolExecutor(1, get_context("spawn")) as other:
                    some = max(options.requests // 10, 2 * options.concurrency)
                    other.submit(send, port, files, some, options.concurrency).result()  # its buffers grow
                    speeds = [bare(run, images, options.max_batch)]
                    before, batches = resident_mb(server.pid), mean_batch(address)
                    begun = time.perf_counter()
                    sent = other.submit(send, port, files, options.requests, options.concurrency)
                    seconds, failed = sent.result()
                    throughput = len(seconds) / (time.perf_counter() - begun)
                    after = resident_mb(server.pid)
                    batch = np.subtract(mean_batch(address), batches)
                    speeds.append(bare(run, images, options.max_batch))
                    usual = max(1, round(batch[0] / batch[1]))
                    at_usual = bare(run, images, usual)
            finally:
                server.terminate()
    at_largest = statistics.mean(speeds)
    p50, p99 = np.percentile(seconds, [50, 99]) * 1000
    print(f"{options.network}, {options.image_size} px; {options.requests} requests, {options.concurrency} at once")
    print(f"failed: {failed}")
    print(f"throughput: {throughput:,.1f} pictures/s; mean batch {batch[0] / batch[1]:.1f} of {options.max_batch}")
    print(f"bare inference: {at_largest:,.1f} images/s in batches of {options.max_batch}", end="")
    print(f" (before {speeds[0]:,.1f}, after {speeds[1]:,.1f}), {at_usual:,.1f} of {usual}")
    largest = options.max_batch
    print(f"ratio: {throughput / at_largest:.3f} of batches of {largest}, {throughput / at_usual:.3f} of {usual}")
    print(f"latency: p50 {p50:.1f} ms, p99 {p99:.1f} ms, p99 / p50 {p99 / p50:.2f}")
    print(f"resident memory of the server: {before:,.0f} MB before, {after:,.0f} MB after")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
