"""Attacks `inception-jax serve` with malicious clients: is a normal client still answered, and in how much memory?

The command serves a network with random weights. Half of the opened connections stall within a request's header, the
other half within its body. At the same time, images are sent that are as expensive as the limits allow: large ones in
few bytes, JPEGs with many scans, TIFFs with many strips, headers that announce more data than follows. Meanwhile a
normal client sends requests continuously. Finally SIGTERM is sent while a request is being processed. All traffic stays
on this machine.
"""

import argparse
import io
import json
import re
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))

import serving

EXAMPLES = """\
The server's memory is read from /proc, so Linux is required.

examples, in the repository's root:
  python benchmarks/hostile_clients.py
  python benchmarks/hostile_clients.py --network simple_cnn --image-size 32 --connections 300 --pictures 16
"""
SECONDS = 2.0  # within which a good request must be answered
MEGABYTES = 1500.0  # the server's memory limit
GOOD = 20  # requests


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, epilog=EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", default="googlenet", help="(default: %(default)s)")
    parser.add_argument("--image-size", type=int, default=224, help="pixels per side (default: %(default)s)")
    parser.add_argument("--connections", type=int, default=300, help="half-open connections (default: %(default)s)")
    parser.add_argument("--pictures", type=int, default=16, help="hostile pictures at once (default: %(default)s)")
    return parser.parse_args(argv)


def hostile_pictures() -> list[bytes]:
    """Images just within the limits, or beyond them in ways that their headers do not show."""

    def encoded(image: Image.Image, kind: str, **options) -> bytes:
        file = io.BytesIO()
        image.save(file, kind, **options)
        return file.getvalue()

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">L", len(body)) + kind + body + struct.pack(">L", zlib.crc32(kind + body))

    head = chunk(b"IHDR", struct.pack(">LLBBBBB", 7000, 7000, 8, 6, 0, 0, 0))
    progressive = encoded(Image.new("L", (2000, 2000)), "JPEG", progressive=True)
    tags = [(256, 4, 1, 2000), (257, 4, 1, 2000), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)]
    tags += [(322, 4, 1, 1), (323, 4, 1, 1), (324, 4, 3_000_000, 128), (325, 4, 3_000_000, 128)]
    tiff = b"II*\0" + struct.pack("<LH", 8, len(tags)) + b"".join(struct.pack("<HHLL", *tag) for tag in tags)
    return [
        encoded(Image.new("RGB", (7000, 7000)), "PNG"),  # 49 million pixels in a few kilobytes
        encoded(Image.new("RGB", (7000, 7000)), "JPEG"),
        encoded(Image.new("L", (7000, 7000)), "PNG"),
        encoded(Image.new("L", (7000, 7000)), "GIF"),
        progressive[:-2] + progressive[progressive.rindex(b"\xff\xda") : -2] * 80,
        b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(100))),  # only a header
        tiff + bytes(4 + 12_000_000),
        b"P6 7000 7000 255\n" + bytes(1000),
    ]


def post(port: int, content: bytes, pause: float = 0.0) -> tuple[int, float]:
    """The response status, and the seconds until it came; optionally pauses between the request's halves."""
    begun = time.perf_counter()
    with socket.create_connection(("127.0.0.1", port), timeout=120) as client:
        head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
        client.sendall(head % len(content) + content[:10])
        time.sleep(pause)
        client.sendall(content[10:])
        answer = b"".join(iter(lambda: client.recv(65536), b""))
    return int(answer.split()[1]), time.perf_counter() - begun


def half_open(port: int, number: int) -> list[socket.socket]:
    clients = []
    for index in range(number):
        client = socket.create_connection(("127.0.0.1", port), timeout=120)
        head = b"POST /predict HTTP/1.1\r\nHost: localhost\r\n"
        client.sendall(head + (b"Content-Length: 100000\r\n\r\nabc" if index % 2 else b"X-Slow: a"))
        clients.append(client)
    return clients


def peak_mb(process_id: int) -> float:
    """The peak memory of the process, in 10^6 bytes."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process_id}/status").read_text())
    assert found
    return int(found[1]) * 1024 / 1e6


def main(argv: list[str] | None = None) -> int:
    """Prints the numbers; returns 1 if a good request failed or was too slow, or the server used too much memory."""
    options = parse_arguments(argv)
    good = serving.pictures(options.image_size)[0]
    hostile = (hostile_pictures() * options.pictures)[: options.pictures]
    with tempfile.TemporaryDirectory() as workdir:
        folder = Path(workdir, "run")
        serving.make_run(folder, options.network, options.image_size)
        code = "import sys; from inception_jax import commands; sys.exit(commands.main(sys.argv[1:]))"
        command = [sys.executable, "-c", code, "serve", str(folder), "--checkpoint=latest", "--port=0"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout
                found = re.search(r":(\d+)/", server.stdout.readline())
                if not found:
                    raise SystemExit("the server did not start")
                port = int(found[1])
                quiet = [post(port, good) for _ in range(GOOD)]
                before = peak_mb(server.pid)
                answers: list[tuple[int, float]] = []
                threads = [
                    threading.Thread(target=lambda content=content: answers.append(post(port, content)))
                    for content in hostile
                ]
                clients = half_open(port, options.connections)
                for thread in threads:
                    thread.start()
                under_attack = [post(port, good) for _ in range(GOOD)]
                for thread in threads:
                    thread.join()
                after = peak_mb(server.pid)
                for client in clients:
                    client.close()
                last: list[tuple[int, float]] = []
                asking = threading.Thread(target=lambda: last.append(post(port, good, pause=2.0)))
                asking.start()
                time.sleep(1)
                server.send_signal(signal.SIGTERM)
                asking.join()
                code = server.wait(60)
            finally:
                server.terminate()
    slowest = max(seconds for _, seconds in under_attack)
    statuses = sorted({status for status, _ in answers})
    print(f"{options.network}, {options.image_size} px; {options.connections} half-open connections", end="")
    print(f", {options.pictures} hostile pictures at once, answered with {statuses}")
    print(f"good requests: {[status for status, _ in under_attack].count(200)} of {GOOD} answered")
    median, usual = (float(np.median([seconds for _, seconds in part])) for part in (under_attack, quiet))
    print(f"seconds of a good request: median {median:.3f}, slowest {slowest:.3f}; median when quiet {usual:.3f}")
    print(f"memory of the server at most: {before:,.0f} MB before, {after:,.0f} MB after")
    print(f"SIGTERM: the pending request was answered with {last[0][0]}, exit code {code}")
    kept = slowest < SECONDS and after < MEGABYTES and code == 0 and last[0][0] == 200
    kept = kept and all(status == 200 for status, _ in under_attack)
    print(json.dumps({"kept": kept, "slowest_s": round(slowest, 3), "peak_mb": round(after)}))
    return int(not kept)


if __name__ == "__main__":
    sys.exit(main())
