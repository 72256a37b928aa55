"""The service predicts like inference.py, many at a time, and survives what it is sent."""
import asyncio
import collections
import glob
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from conftest import ROOT
from odd_files import KINDS
from utils.errors import InputError
from utils.predict import load_model, read_images

httpx = pytest.importorskip("httpx")
serve = pytest.importorskip("serve")


@pytest.fixture(scope="module")
def service(weights):
    """(address, process) of a real one."""
    process = subprocess.Popen([sys.executable, "serve.py", "--model_path", *weights[:2], "--port",
                                "0"], cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8")
    line = re.fullmatch(r"2 files; open (http://127.0.0.1:\d+) \(Ctrl-C ends it\)\n",
                        process.stdout.readline())
    yield line[1], process
    process.kill()


def post(address, *files, **more):
    return httpx.post(address + "/predict", files=[("images", f) for f in files], timeout=60,
                      **more)


def test_many_at_a_time_get_the_predictions_of_inference(sample, weights, service):
    paths = sorted(glob.glob(str(sample[0] / "sample" / "*" / "0*.png")))[::6]
    about, predict, _ = load_model(weights[:2])
    expected = predict([image for image, _ in read_images(paths, about["image_size"])])
    files = []
    for path in paths:
        with open(path, "rb") as f:
            files.append((path, f.read()))
    with ThreadPoolExecutor(16) as pool:
        responses = list(pool.map(lambda i: post(service[0], files[i], files[i - 1],
                                                 params={"heat": i % 10 == 0}), range(len(files))))
    assert len(responses) == 40
    for i, response in enumerate(responses):
        assert response.status_code == 200, response.text
        assert response.json()["model"]["categories"] == about["categories"]
        for found, probabilities in zip(response.json()["images"], (expected[i], expected[i - 1])):
            np.testing.assert_allclose([*found["probabilities"].values()], probabilities, atol=1e-5)
            assert found["category"] == about["categories"][probabilities.argmax()]
            heat_map = "data:image/jpeg;base64," if i % 10 == 0 else ""
            assert found.get("heat_map", "").startswith(heat_map)


def test_whatever_it_is_sent_it_goes_on(sample, service):
    address, _ = service
    with open(glob.glob(str(sample[0] / "sample" / "Other" / "*.png"))[0], "rb") as f:
        good = f.read()
    refused = 0
    for name, (content, outcome) in KINDS.items():
        response = post(address, (name, content), ("good.png", good))
        assert response.status_code == 200, (name, response.text)  # bad files never cost good ones
        odd, fine = response.json()["images"]
        assert "category" in fine and ("error" in odd or "category" in odd), name
        if "error" in odd:
            refused += 1
            alone = post(address, (name, content))
            assert alone.status_code == 400 and odd["error"] in alone.json()["detail"]
    assert refused > 20
    for charset, name in (("utf-7", b"+2AA-.png"), ("unicode_escape", b"\\ud800.png")):
        # names with half a character
        head = (b'--x\r\nContent-Disposition: form-data; name="images"; filename="%s"\r\n\r\n'
                % name)
        form = {"Content-Type": f"multipart/form-data; boundary=x; charset={charset}"}
        response = httpx.post(address + "/predict", content=head + good + b"\r\n--x--", timeout=60,
                              headers=form)
        assert response.status_code == 200, response.text
        assert response.json()["images"][0]["name"] == "?.png", response.text
    many = post(address, *[("good.png", good)] * 17)
    assert many.status_code == 413
    assert many.json()["detail"] == "a request may have 16 images, this one has 17"
    assert post(address, ("large", bytes(33 * 2**20))).status_code == 413
    for content in (b"", b"nothing", b"--x\r\n"):
        assert httpx.post(address + "/predict", content=content, headers={
            "Content-Type": "multipart/form-data; boundary=x"}).status_code in (400, 422)
    assert httpx.get(address + "/nowhere").status_code == 404
    assert "<title>VisionDistillGC" in httpx.get(address + "/").text
    for path in ("/", "/health"):
        assert httpx.head(address + path).status_code == 200  # as monitors ask
    assert "/predict" in httpx.get(address + "/openapi.json").json()["paths"]
    assert httpx.get(address + "/health").json()["status"] == "ok"


def test_a_thousand_damaged_requests_are_refused_or_answered(sample, service):
    address, _ = service
    with open(glob.glob(str(sample[0] / "sample" / "Other" / "*.png"))[0], "rb") as f:
        whole = httpx.Request("POST", address + "/predict",
                              files={"images": ("good.png", f.read())})
    body, form = whole.read(), {"Content-Type": whole.headers["Content-Type"]}
    rng, statuses = np.random.default_rng(0), collections.Counter()
    with httpx.Client(timeout=60) as client:
        for _ in range(1000):
            damaged, start = bytearray(body), rng.integers(len(body))
            kind = rng.integers(4)
            if kind == 0:  # cut short
                del damaged[start:]
            elif kind == 1:  # a piece is missing or repeated
                damaged[start:start + 50] = damaged[start:start + 50] * rng.integers(0, 3)
            else:  # other bytes, in the form around the image or anywhere
                for i in rng.integers(len(body) if kind == 2 else 150, size=rng.integers(1, 20)):
                    damaged[i] = rng.integers(256)
            response = client.post(address + "/predict", content=bytes(damaged), headers=form)
            statuses[response.status_code] += 1
        assert set(statuses) <= {200, 400, 422} and min(statuses.values()) > 20, statuses
        assert client.send(whole).status_code == 200


def test_slow_requests_and_too_many_are_ended(weights, monkeypatch):
    monkeypatch.setattr(serve, "MAX_SECONDS", 0.5)

    async def slow():
        yield b"--x\r\n"
        await asyncio.sleep(20)

    async def ask():
        transport = httpx.ASGITransport(serve.build_app(weights[:1]))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            form = {"Content-Type": "multipart/form-data; boundary=x"}
            asked = asyncio.create_task(client.post("/predict", content=slow(), headers=form))
            await asyncio.sleep(0.1)
            monkeypatch.setattr(serve, "MAX_REQUESTS", 1)
            busy = await client.post("/predict", content=b"anything", headers=form)
            health = await client.get("/health")
            return ((await asked).status_code, busy.status_code, busy.headers["Retry-After"],
                    health.status_code)
    assert asyncio.run(ask()) == (408, 503, "5", 200)


def test_refused_requests_take_no_place_while_they_are_still_sending(monkeypatch):
    monkeypatch.setattr(serve, "MAX_REQUESTS", 1)

    async def ask():
        go, statuses = asyncio.Event(), {}

        async def app(scope, receive, send):
            await go.wait()
            await send({"status": 200})
        limits = serve.Limits(app)

        def request(name, pauses=0):
            async def receive():
                await asyncio.sleep(pauses)
                return {"type": "http.request", "body": b"x", "more_body": bool(pauses)}

            async def send(message):
                statuses.setdefault(name, message.get("status"))
            return asyncio.create_task(limits({"type": "http", "path": "/predict"}, receive, send))
        taken = request("taken")
        await asyncio.sleep(0.01)
        sending = request("refused", pauses=20)
        await asyncio.sleep(0.01)
        go.set()
        await taken
        await request("next")
        sending.cancel()
        return statuses
    assert asyncio.run(ask()) == {"taken": 200, "next": 200}


def test_too_many_images_are_refused_and_accepted_ones_are_predicted_together():
    go, sizes = threading.Event(), []

    def predict(images):
        go.wait()
        sizes.append(len(images))
        if len(images) == 1:
            raise MemoryError
        return [x + 1 for x in images]
    batches, futures = serve.Batches(predict), []
    futures.append(batches.submit(0))
    while not batches.waiting.empty():
        time.sleep(0.01)
    with pytest.raises(queue.Full):
        for i in range(10_000):
            futures.append(batches.submit(i))
    go.set()
    with pytest.raises(MemoryError):
        futures[0].result(10)
    assert [f.result(10) for f in futures[1:]] == list(range(1, len(futures)))
    many = serve.MAX_REQUESTS * serve.MAX_IMAGES
    assert len(futures) == 1 + many and max(sizes) == serve.MAX_BATCH
    assert len(sizes) == 1 + -(-many // serve.MAX_BATCH)


def test_a_client_that_gave_up_costs_the_others_of_its_batch_nothing():
    go, sizes = threading.Event(), []

    def predict(images):
        go.wait()
        sizes.append(len(images))
        return images
    batches = serve.Batches(predict)
    first = batches.submit(0)
    while not batches.waiting.empty():
        time.sleep(0.01)
    futures = [batches.submit(i) for i in range(1, 5)]
    assert futures[0].cancel() and futures[2].cancel()
    go.set()
    assert [first.result(10), futures[1].result(10), futures[3].result(10)] == [0, 2, 4]
    assert sizes == [1, 2]


def test_connections_without_a_request_are_ended(weights):
    short = ("import serve, sys; serve.MAX_SECONDS, serve.KEEP_ALIVE = 2, 3; "
             "serve.main(sys.argv[1:])")
    process = subprocess.Popen([sys.executable, "-c", short, "--model_path", weights[0], "--port",
                                "0"], cwd=ROOT, stdout=subprocess.PIPE, encoding="utf-8")
    try:
        address = re.search(r"http://127.0.0.1:(\d+)", process.stdout.readline())
        ends = {}
        for sent in (b"", b"GET /health HTT", b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /he",
                     b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n"
                     b"Content-Type: multipart/form-data; boundary=x\r\n\r\n--x"):
            ends[sent] = socket.create_connection(("127.0.0.1", int(address[1])), timeout=60)
            ends[sent].sendall(sent)
        received = []
        for end in ends.values():
            with end, end.makefile("rb") as f:
                received.append(f.read())  # to the end of the connection
        assert received[:2] == [b"", b""]
        assert b" 200 " in received[2] and b" 408 " in received[3]
        assert httpx.get(address[0] + "/health").json()["status"] == "ok"
    finally:
        process.kill()


def test_the_address_for_a_phone_is_printed(weights, monkeypatch, capsys):
    monkeypatch.setattr(serve.Server, "run", lambda *_: None)
    monkeypatch.setattr(serve, "own_address", lambda family: "192.168.1.5")
    for host, phone in (("0.0.0.0", True), ("127.0.0.1", False)):
        serve.main(["--model_path", weights[0], "--host", host, "--port", "0"])
        found = re.fullmatch(r"1 file; open http://127.0.0.1:(\d+) .*\n"
                             r"(?:on a phone in the same network: http://192.168.1.5:(\d+)\n)?",
                             capsys.readouterr().out)
        assert found[2] == (found[1] if phone else None)


def test_a_port_that_is_taken_is_one_line(service, weights):
    port = service[0].rsplit(":", 1)[1]
    again = subprocess.run([sys.executable, "serve.py", "--model_path", weights[0], "--port", port],
                           cwd=ROOT, capture_output=True, encoding="utf-8", timeout=120)
    assert again.returncode == 1
    assert f"cannot listen on --host 127.0.0.1 --port {port}" in again.stderr
    assert "is the service running already?" in again.stderr
    assert again.stderr.count("\n") == 1
    with pytest.raises(InputError, match="cannot listen on --host 192.0.2.1 --port 0: [^;]*$"):
        serve.listen("192.0.2.1", 0)  # an address of nobody


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
def test_a_stop_finishes_accepted_requests(sample, service):
    address, process = service
    files = []
    for path in glob.glob(str(sample[0] / "sample" / "Other" / "*.png"))[:16]:
        with open(path, "rb") as f:
            files.append((path, f.read()))
    request = httpx.Request("POST", address + "/predict", files=[("images", f) for f in files],
                            params={"heat": True})
    body = request.read()

    def stopped_halfway():
        yield body[:len(body) // 2]
        assert httpx.get(address + "/health").status_code == 200  # the first half has arrived
        process.send_signal(signal.SIGTERM)
        yield body[len(body) // 2:]
    answer = httpx.post(request.url, content=stopped_halfway(), headers=request.headers, timeout=60)
    assert answer.status_code == 200 and len(answer.json()["images"]) == 16
    process.wait(30)
    with pytest.raises(httpx.TransportError):
        post(address, files[0])
