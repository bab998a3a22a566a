"""The server as its clients meet it, over sockets: answers, refusals, batches, the page in a browser, its end."""

import asyncio
import base64
import contextlib
import dataclasses
import http.client
import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import browser
import jsonschema
import numpy as np
import openapi_spec_validator
import pytest
from PIL import Image

pytest.importorskip("starlette")

from inception_jax import commands
from inception_jax.data.images import Format, decode
from inception_jax.errors import UserError
from inception_jax.inspection import grad_cam, overlay
from inception_jax.runs.run import load_run
from inception_jax.trained import evaluate, serving
from inception_jax.trained.serving import openapi
from inception_jax.trained.serving.app import OPEN_PATHS


@contextlib.contextmanager
def serving_at(classifier, examples=(), **limits):
    """The address of a server in a thread of this process."""
    limits = serving.Limits(**limits)
    app = serving.create_app(classifier, "a <network>", limits, examples=examples)
    server = serving.make_server(app, limits.timeout_s)
    with serving.listen("127.0.0.1", 0) as listening:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield serving.address_of(listening)
        finally:
            server.should_exit = True
            thread.join()


def ask(address, path, content=None, method=None, headers=None):
    """The answer's status, headers and body, read as JSON where it is."""
    connection = http.client.HTTPConnection(urlsplit(address).netloc, timeout=60)
    with contextlib.closing(connection):
        connection.request(method or ("GET" if content is None else "POST"), path, content, headers or {})
        response = connection.getresponse()
        body = response.read()
    is_json = response.headers["Content-Type"] == "application/json"
    return response.status, response.headers, json.loads(body) if is_json else body


def picture(seed=0, kind="PNG", size=(30, 20)):
    """The bytes of a file with random pixels."""
    width, height = size
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@dataclasses.dataclass
class Counting:
    """A classifier of 4x4 gray images that takes its time, and keeps the sizes of its batches."""

    class_names: tuple[str, ...] = ("dark", "light")
    form: Format = dataclasses.field(default_factory=lambda: Format(4, 1))
    seconds: float = 0.0
    fails: bool = False
    batches: list[int] = dataclasses.field(default_factory=list)

    def compute(self, images):
        self.batches.append(len(images))
        time.sleep(self.seconds)
        if self.fails:
            raise MemoryError("a secret")
        light = images.reshape(len(images), -1).mean(1) / 255
        return np.stack([-light, light], 1).astype(np.float32)


@pytest.fixture(scope="module")
def run(trained):
    return load_run(trained)


@pytest.fixture(scope="module")
def server(run):
    with serving_at(run, serving.load_examples(run, 3), max_batch=8, max_mb=0.5, max_megapixels=0.25) as address:
        yield address


def test_answers_of_concurrent_requests_are_the_runs_own(server, run):
    pictures = [picture(seed, ("PNG", "JPEG", "WEBP")[seed % 3]) for seed in range(40)]
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda content: ask(server, "/predict?top=10", content), pictures))
    expected = run.predict(np.stack([decode(content, run.form) for content in pictures]))
    for (status, _, answer), probabilities in zip(answers, expected, strict=True):
        assert status == 200
        assert [entry["probability"] for entry in answer["classes"]] == sorted(probabilities, reverse=True) or (
            np.allclose([entry["probability"] for entry in answer["classes"]], np.sort(probabilities)[::-1], atol=1e-6)
        )
        found = {entry["name"]: entry["probability"] for entry in answer["classes"]}
        np.testing.assert_allclose([found[name] for name in run.class_names], probabilities, atol=1e-6)


def test_a_form_gets_the_answer_of_its_file(server):
    content = picture()
    line = b"--x\r\nContent-Disposition: form-data; name=%s\r\n\r\n%s\r\n"
    body = line % (b'"note"', b"hello") + line % (b'"picture"; filename="../../etc/passwd"', content) + b"--x--\r\n"
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    assert ask(server, "/predict", body, headers=headers)[2] == ask(server, "/predict", content)[2]
    no_file = line % (b'"note"', b"hello") + b"--x--\r\n"
    for wrong in (no_file, body[:60], b"nonsense"):
        status, _, answer = ask(server, "/predict", wrong, headers=headers)
        assert status == 400
        assert answer["error"]


def test_as_many_classes_as_are_asked_for(server, run):
    for query, number in (("", 5), ("?top=1", 1), ("?top=3", 3), ("?top=1000", len(run.class_names))):
        classes = ask(server, "/predict" + query, picture())[2]["classes"]
        assert len(classes) == number
        assert classes == sorted(classes, key=lambda entry: -entry["probability"])


def test_grad_cam_is_a_png(server):
    answer = ask(server, "/predict?grad_cam=1", picture())[2]
    kind, _, content = answer["grad_cam"].partition(",")
    assert kind == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(content))).size == (192, 192)


def heat_map(answer):
    content = base64.b64decode(answer["grad_cam"].partition(",")[2])
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), int)


def test_grad_cam_is_for_the_class_that_is_asked_for(server, run):
    content = picture()
    image = decode(content, run.form)[None]
    for label in (3, 7):
        answer = ask(server, f"/predict?grad_cam=1&class={run.class_names[label]}", content)[2]
        expected = overlay(image[0], grad_cam(run.model, run.variables, run.normalize(image), classes=label)[0]).array
        assert np.abs(heat_map(answer) - expected).max() <= 2  # of 255: another program rounds otherwise
    best = ask(server, "/predict?grad_cam=1&top=1", content)[2]
    named = ask(server, f"/predict?grad_cam=1&class={best['classes'][0]['name']}", content)[2]
    assert named["grad_cam"] == best["grad_cam"]


def test_the_answer_says_how_long_it_took(server):
    begun = time.perf_counter()
    headers = ask(server, "/predict", picture())[1]
    kind, milliseconds = re.fullmatch(r"(\w+);dur=([\d.]+)", headers["Server-Timing"]).groups()
    assert kind == "predict"
    assert 0 < float(milliseconds) < 1000 * (time.perf_counter() - begun)


def test_examples_are_of_the_runs_own_test_data(server, run):
    _, dataset = evaluate.load_split(run, "test", {})
    images, labels = dataset.splits["test"].gather(np.arange(len(dataset.splits["test"])))
    page = ask(server, "/")[2].decode()
    for number in range(3):
        status, headers, content = ask(server, f"/examples/{number}")
        assert (status, headers["Content-Type"]) == (200, "image/png")
        same = (images == decode(content, run.form)).all(axis=(1, 2, 3))
        (label,) = set(labels[same])
        assert f'<img src="examples/{number}" alt="{run.class_names[label]}">' in page
    for missing in ("3", "-1", "9" * 5000):
        assert ask(server, f"/examples/{missing}")[0] == 404


@pytest.mark.parametrize("token", [None, "secret"])
def test_openapi_describes_the_routes_that_are_there(token):
    app = serving.create_app(Counting(), "a <network>", serving.Limits(), serving.Access(token=token))
    app.service.decoders.close()
    document = openapi.description("a <network>", serving.Limits(), token=token is not None)
    openapi_spec_validator.validate(document)
    described = {(path, method.upper()) for path, found in document["paths"].items() for method in found}
    there = {(route.path, method) for route in app.routes for method in route.methods}
    assert described == there - {(path, "HEAD") for path, _ in there}
    secret = {path for path, found in document["paths"].items() for each in found.values() if "security" in each}
    assert secret == (set(document["paths"]) - set(OPEN_PATHS) if token else set())


def test_openapi_describes_the_answers(server):
    document = ask(server, "/openapi.json")[2]
    schemas = document["components"]["schemas"]
    jsonschema.validate(ask(server, "/predict?grad_cam=1", picture())[2], schemas["Answer"])
    refused = document["paths"]["/predict"]["post"]["responses"]
    for content, status in REFUSED.values():
        assert str(status) in refused
        jsonschema.validate(ask(server, "/predict", content)[2], schemas["Error"])
    assert document["paths"]["/predict"]["post"]["parameters"][0]["name"] == "top"


REFUSED = {
    "text": (b"not a picture at all", 415),
    "empty": (b"", 400),
    "truncated PNG": (picture()[:500], 400),
    "truncated JPEG": (picture(kind="JPEG")[:-300], 400),
    "PostScript": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n", 415),
    "many pixels": (picture(kind="JPEG", size=(600, 500)), 413),
    "many bytes": (bytes(600_000), 413),
    "many scans": (picture(kind="JPEG")[:-2] + b"\xff\xda\x00\x02" * 200, 400),
}


def bomb():
    """A PNG of 40,000 by 40,000 pixels in some kilobytes of head; its rows are missing."""
    content = bytearray(picture())
    content[16:24] = (40_000).to_bytes(4) * 2
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4)
    return bytes(content)


@pytest.mark.parametrize(("content", "status"), [*REFUSED.values(), (bomb(), 413)], ids=[*REFUSED, "bomb"])
def test_what_is_refused(server, content, status):
    got, headers, answer = ask(server, "/predict", content)
    assert got == status
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert list(answer) == ["error"]
    assert "Traceback" not in answer["error"]
    assert ask(server, "/predict", picture())[0] == 200


def test_a_body_of_unknown_length_is_cut_off(server):
    status, _, answer = ask(server, "/predict", iter([bytes(100_000)] * 8))
    assert status == 413
    assert "at most 0.5 MB" in answer["error"]


WRONG = ("top=0", "top=-1", "top=x", "top=1.5", "top=" + "9" * 5000, "grad_cam=yes", "class=3", "class=no&grad_cam=1")


@pytest.mark.parametrize("query", WRONG)
def test_a_wrong_query_is_named(server, query):
    status, _, answer = ask(server, f"/predict?{query}", picture())
    assert status == 400
    assert answer["error"].startswith(query.split("=")[0])


def test_unknown_paths_and_wrong_methods(server):
    assert ask(server, "/nothing")[0] == 404
    assert ask(server, "/predict/", picture())[0] == 404
    status, headers, _ = ask(server, "/predict")
    assert (status, headers["Allow"]) == (405, "POST")
    assert ask(server, "/", picture())[0] == 405
    assert (
        ask(server, "/", method="OPTIONS", headers={"Origin": "http://elsewhere"})[1]["Access-Control-Allow-Origin"]
        is None
    )


def test_health_and_metrics(server):
    assert ask(server, "/health")[2]["status"] == "ready"
    ask(server, "/predict", picture())
    ask(server, "/predict", b"text")
    _, headers, body = ask(server, "/metrics")
    assert headers["Content-Type"].startswith("text/plain")
    values = dict(line.rsplit(" ", 1) for line in body.decode().splitlines() if not line.startswith("#"))
    assert float(values['inception_jax_requests_total{path="/predict",status="200"}']) >= 1
    assert float(values['inception_jax_requests_total{path="/predict",status="415"}']) >= 1
    assert float(values["inception_jax_predict_seconds_count"]) >= 2
    assert float(values['inception_jax_batch_size_bucket{le="8.0"}']) >= 1
    assert float(values["inception_jax_queue_length"]) == 0


def test_batches_are_of_the_sizes_that_were_compiled():
    classifier = Counting(seconds=0.02)
    with serving_at(classifier, max_batch=6) as address:
        assert classifier.batches == [1, 2, 4, 6]
        assert ask(address, "/predict", picture())[0] == 200
        assert classifier.batches[4:] == [1]  # a lone request waits for nobody
        with ThreadPoolExecutor(16) as pool:
            assert {answer[0] for answer in pool.map(lambda _: ask(address, "/predict", picture()), range(48))} == {200}
    assert set(classifier.batches) <= {1, 2, 4, 6}
    assert 6 in classifier.batches[5:]
    assert len(classifier.batches[5:]) < 30


def test_a_full_queue_is_told_to_come_back():
    with serving_at(Counting(seconds=0.5), max_batch=1, max_queue=2) as address, ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda _: ask(address, "/predict", picture()), range(6)))
    refused = [(headers, answer) for status, headers, answer in answers if status == 503]
    assert {status for status, _, _ in answers} == {200, 503}
    assert all(int(headers["Retry-After"]) > 0 and "try again" in answer["error"] for headers, answer in refused)


def test_an_answer_that_takes_too_long_is_given_up():
    classifier = Counting(seconds=0.6)
    with serving_at(classifier, max_batch=1, timeout_s=0.2) as address:
        status, headers, answer = ask(address, "/predict", picture())
        assert (status, headers["Retry-After"]) == (503, "1")
        assert "0.2 s" in answer["error"]
        classifier.seconds = 0
        time.sleep(0.6)  # until the network is free again
        assert ask(address, "/predict", picture())[0] == 200


def test_a_picture_that_arrives_too_slowly_is_given_up():
    with serving_at(Counting(), timeout_s=0.3) as address:
        with socket.create_connection(urlsplit(address).netloc.split(":"), timeout=10) as client:
            client.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
            assert client.recv(1000).startswith(b"HTTP/1.1 408")
        with socket.create_connection(urlsplit(address).netloc.split(":"), timeout=10) as client:
            client.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
        assert ask(address, "/predict", picture())[0] == 200  # whoever goes away harms nobody


def test_a_mistake_of_the_server_stays_its_own(caplog):
    classifier = Counting()
    with serving_at(classifier) as address:
        classifier.fails = True
        status, headers, answer = ask(address, "/predict", picture())
        assert status == 500
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "secret" not in json.dumps(answer)
        classifier.fails = False
        assert ask(address, "/predict", picture())[0] == 200
        status, _, answer = ask(address, "/predict?grad_cam=1", picture())
        assert status == 400
        assert "needs a run" in answer["error"]


@pytest.mark.parametrize("width", browser.WIDTHS)
def test_the_page_shows_classes_and_heat_map(server, tmp_path, width):
    (tmp_path / "one.png").write_bytes(picture(1))
    (tmp_path / "two.txt").write_bytes(b"no picture")
    with browser.browser() as started, browser.page(started, server, width) as shown:
        shown.set_input_files("#picture", tmp_path / "one.png")
        shown.wait_for_selector(".result:not(.busy) li")
        expected = [entry["name"] for entry in ask(server, "/predict", picture(1))[2]["classes"]]
        assert [line.split("\n")[0] for line in shown.locator("li").all_inner_texts()] == expected
        shown.evaluate("document.querySelector('[data-heat]').decode()")
        assert shown.evaluate("document.querySelector('[data-heat]').naturalWidth") == 192
        assert re.match(r"[\d.]+ ms\b", shown.inner_text(".result p"))
        first = shown.get_attribute("[data-heat]", "src")
        shown.locator("li button").nth(1).press("Enter")
        shown.wait_for_selector(f"[aria-pressed=true][value='{expected[1]}']")
        assert shown.inner_text("[data-of]") == expected[1]
        assert shown.get_attribute("[data-heat]", "src") != first
        shown.click("summary")
        browser.assert_fits(shown)
        browser.assert_reachable(shown)
        assert f"curl --data-binary @picture.jpg '{server}predict?top=3'" in shown.inner_text("pre >> nth=0")
        if os.environ.get("SHOTS"):
            shown.screenshot(path=f"{os.environ['SHOTS']}/serve-{width}.png", full_page=True)


def test_the_page_says_what_is_wrong(server, tmp_path):
    (tmp_path / "large.png").write_bytes(bytes(600_000))
    with browser.browser() as started, browser.page(started, server, 400) as shown:
        shown.set_input_files("#picture", tmp_path / "large.png")
        assert "0.6 MB" in shown.inner_text("[role=alert]")
        assert not shown.is_visible(".result")


def test_the_page_takes_several_pictures_and_its_own_examples(server, tmp_path):
    files = [tmp_path / f"{number}.png" for number in range(6)]
    for number, file in enumerate(files):
        file.write_bytes(picture(number))
    (tmp_path / "large.png").write_bytes(bytes(600_000))
    with browser.browser() as started, browser.page(started, server, 400) as shown:
        shown.set_input_files("#picture", [*files[:3], tmp_path / "large.png", *files[3:]])
        shown.wait_for_selector("#results:not(:has(.busy)) .result:nth-child(6)")
        assert shown.locator("[data-name]").all_inner_texts() == [file.name for file in files]
        assert "large.png has 0.6 MB" in shown.inner_text("[role=alert]")
        browser.assert_fits(shown)
        shown.locator("#examples button").nth(1).press("Enter")
        shown.wait_for_selector("#results:not(:has(.busy)) .result:only-child")
        expected = ask(server, "/predict", ask(server, "/examples/1")[2])[2]["classes"][0]["name"]
        assert shown.locator("li").first.inner_text().split("\n")[0] == expected
        assert not shown.is_visible("[role=alert]")


def test_limits_are_checked():
    for wrong in ({"max_batch": 0}, {"max_queue": 0}, {"max_mb": 0}, {"timeout_s": float("nan")}, {"max_wait_ms": -1}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))}=.* is not allowed"):
            serving.Limits(**wrong)
    with pytest.raises(UserError, match="at most 89"):
        serving.Limits(max_megapixels=500)


def test_the_command_names_mistakes(trained, capsys):
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = str(other.getsockname()[1])
        assert commands.main(["serve", str(trained), f"--port={taken}"]) == 2
        assert f"cannot listen on 127.0.0.1, port {taken}: " in capsys.readouterr().err
    assert commands.main(["serve", str(trained), "--port=70000"]) == 2
    assert commands.main(["serve", str(trained), "--max-batch=0", "--port=0"]) == 2
    assert commands.main(["serve", str(trained / "nothing"), "--port=0"]) == 2
    assert commands.main(["serve", str(trained), "--examples=-1", "--port=0"]) == 2
    assert "Traceback" not in capsys.readouterr().err


def test_the_command_names_what_is_not_installed(trained, capsys, monkeypatch):
    for module in [name for name in sys.modules if name.startswith("inception_jax.trained.serving")]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delattr("inception_jax.trained.serving")
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert commands.main(["serve", str(trained)]) == 2
    assert (
        capsys.readouterr().err
        == "error: serve needs uvicorn, which is not installed: pip install 'inception-jax[serve]'\n"
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_the_command_ends_well(trained, number):
    """What is under way when the signal comes is answered, and the exit code is 0."""
    command = [
        sys.executable,
        "-c",
        "import sys; from inception_jax import commands; sys.exit(commands.main(sys.argv[1:]))",
    ]
    arguments = ["serve", str(trained), "--port=0", "--host=0.0.0.0", "--no-token", "--engine=jax"]
    with subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            port = int(re.search(r"http://0\.0\.0\.0:(\d+)/", process.stdout.readline())[1])

            async def answer_after_the_signal():
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
                content = picture()
                writer.write(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(content))
                writer.write(content[:10])
                await writer.drain()
                await asyncio.sleep(0.3)  # until it is accepted
                process.send_signal(number)
                await asyncio.sleep(0.3)
                writer.write(content[10:])
                answer = await reader.read()
                writer.close()
                return answer

            assert asyncio.run(answer_after_the_signal()).startswith(b"HTTP/1.1 200")
            assert process.wait(30) == 0
            assert process.stderr.read() == "warning: --host=0.0.0.0 accepts other machines, without a token\n"
        finally:
            process.kill()
