"""Classify images over HTTP: a web page for people, JSON for programs.

    python serve.py              # models_saved/final_model.pdparams on http://127.0.0.1:8000
    curl -F images=@photo.jpg http://127.0.0.1:8000/predict                # JSON

The API is described in /openapi.json; /docs shows it as a page, which loads its style from the
internet. The page for people needs no internet. Images of concurrent requests are predicted in one
batch. A request that is too large, too slow or has no readable image gets a 4xx status and the
reason; too many at a time get 503. Ctrl-C finishes the accepted requests first. Only this machine
can reach the service unless --host says otherwise. It has no passwords and no encryption: put a web
server that has them in front. Needs requirements-serve.txt; no GPU.
"""
import asyncio
import base64
import contextlib
import errno
import logging
import os
import queue
import socket
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

from utils.command import Parser, run_command
from utils.errors import InputError
from utils.files import here
from utils.settings import FINAL_MODEL

PAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "serve.html")
MAX_BYTES, MAX_IMAGES, MAX_SECONDS = 32 * 2**20, 16, 30  # of one request
MAX_REQUESTS = 64  # at a time; beyond it 503
MAX_BATCH = 6  # at 224 pixels as fast as more, and malloc returns blocks of over 32 MB each time
KEEP_ALIVE = 75  # seconds an idle connection stays open: longer than clients and proxies use it
BUSY = "too many requests; try again later"


def parse(argv=None):
    parser = Parser(__doc__)
    group = parser.add_argument_group("model")
    group.add_argument("--model_path", nargs="+", metavar="FILE", default=[FINAL_MODEL],
                       help=".pdparams files of main.py, or one file of export.py (without heat "
                            f"maps); or their folder (default: {FINAL_MODEL})")
    group.add_argument("--min_confidence", type=float, default=0.0, metavar="X",
                       help="predict 'unsure' below this confidence, 0 to 1 (default: 0)")
    group = parser.add_argument_group("address")
    group.add_argument("--host", default="127.0.0.1",
                       help="0.0.0.0: reachable from other machines (default: 127.0.0.1)")
    group.add_argument("--port", type=int, default=8000, metavar="N",
                       help="0: any free port (default: 8000)")
    args = parser.parse_args(argv)
    if not 0 <= args.port < 2**16:
        raise InputError(f"--port {args.port}: must be at least 0 and at most {2**16 - 1}")
    return args


if __name__ == "__main__":
    # before Paddle loads, which takes seconds: --help and mistyped options answer at once
    run_command(parse)

try:
    import python_multipart  # noqa: F401  with which FastAPI reads uploads
    import uvicorn
    from fastapi import FastAPI, File, HTTPException, UploadFile
    from fastapi.responses import FileResponse, JSONResponse
except ImportError as e:
    sys.exit(f"error: {e}; pip install -r {here('requirements-serve.txt')}")

from utils import CORES
from utils.engine import choose_device
from utils.images.read import UnreadableImage, decode_image
from utils.predict import check_threshold, find_weights, load_model
from utils.transforms import preprocess


class Batches:
    """One thread that predicts all waiting images together."""

    def __init__(self, predict):
        self.predict, self.waiting = predict, queue.Queue(MAX_REQUESTS * MAX_IMAGES)
        threading.Thread(target=self._run, daemon=True).start()

    def submit(self, image):
        """A Future of the probabilities [C] of one preprocessed image. Raises queue.Full."""
        future = Future()
        self.waiting.put_nowait((image, future))
        return future

    def _run(self):
        while True:
            jobs = [self.waiting.get()]
            while len(jobs) < MAX_BATCH and not self.waiting.empty():
                jobs.append(self.waiting.get())
            # without those whose client is gone
            jobs = [(x, future) for x, future in jobs if future.set_running_or_notify_cancel()]
            if not jobs:
                continue
            try:
                for (_, future), probabilities in zip(jobs, self.predict([x for x, _ in jobs])):
                    future.set_result(probabilities)
            except Exception as e:  # out of memory, for instance: the next batch may fit
                for _, future in jobs:
                    if not future.done():
                        future.set_exception(e)


class Limits:
    """ASGI middleware: ends requests that are too large (413), too slow (408) or too many (503)."""

    def __init__(self, app):
        self.app, self.running = app, 0

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["path"] == "/health":
            return await self.app(scope, receive, send)
        clock = asyncio.get_running_loop().time
        received, deadline = 0, clock() + MAX_SECONDS

        async def limited():
            nonlocal received
            try:
                message = await asyncio.wait_for(receive(), max(0, deadline - clock()))
            except asyncio.TimeoutError:
                raise HTTPException(408, f"the request took longer than {MAX_SECONDS} s") from None
            received += len(message.get("body", b""))
            if received > MAX_BYTES:
                raise HTTPException(413, f"a request may have {MAX_BYTES // 2**20} MB")
            return message
        if self.running < MAX_REQUESTS:
            self.running += 1
            try:
                return await self.app(scope, limited, send)
            finally:
                self.running -= 1
        response = JSONResponse({"detail": BUSY}, 503, {"Retry-After": "5"})
        try:
            while (await limited()).get("more_body"):
                pass  # a client that is still sending would not read the response
        except HTTPException as e:
            response = JSONResponse({"detail": e.detail}, e.status_code)
        await response(scope, limited, send)


class Server(uvicorn.Server):
    """uvicorn with a limit on idle connections: it has none, and runs out of files some day."""
    idle_since = {}  # {(connection, its last request): when it was first seen idle}

    async def on_tick(self, counter):
        if counter % 10 == 0:  # once a second
            now = time.monotonic()
            self.idle_since = {
                (c, c.cycle): self.idle_since.get((c, c.cycle), now)
                for c in self.server_state.connections
                if c.cycle is None or c.cycle.response_complete}
            for (connection, last_request), since in self.idle_since.items():
                if now - since > (KEEP_ALIVE if last_request else MAX_SECONDS):
                    connection.transport.abort()  # close() waits for a client that reads nothing
        return await super().on_tick(counter)


def build_app(model_paths, min_confidence=0.0):
    """The service as an ASGI application. Raises InputError like utils.predict.load_model."""
    model = load_model(model_paths)
    size, categories = model.about["image_size"], model.about["categories"]
    check_threshold(min_confidence, categories)
    identity = {"files": [os.path.basename(p) for p in model_paths], "run": model.about.get("run"),
                "categories": categories, "image_size": size,
                "min_confidence": min_confidence, "heat_maps": model.explain is not None}
    batches, waiting = Batches(model.predict), 0
    # Few at a time: reading an image of 120 million pixels takes 700 MB, even from a file of 15 kB
    reading, drawing = ThreadPoolExecutor(min(2, CORES)), ThreadPoolExecutor(1)

    def read(upload):  # the file as well, which waits on the disk until then
        return preprocess(decode_image(upload.file.read()), size)

    def draw(image, category):
        jpeg = model.explain(image, category)
        return "data:image/jpeg;base64," + base64.b64encode(jpeg).decode()

    async def classify(upload, heat):
        # the client chose the character set of the name, and JSON takes only whole characters
        name = (upload.filename or "").encode(errors="replace").decode()
        run = asyncio.get_running_loop().run_in_executor
        try:
            image = await run(reading, read, upload)
        except UnreadableImage as e:
            return {"name": name, "error": str(e)}
        probabilities = await asyncio.wrap_future(batches.submit(image))
        category, confidence = model.decide(probabilities, min_confidence)
        found = {"name": name, "category": category, "confidence": confidence,
                 "probabilities": dict(zip(categories, map(float, probabilities)))}
        if heat and model.explain:
            found["heat_map"] = await run(drawing, draw, image, probabilities.argmax())
        return found

    app = FastAPI(title="VisionDistillGC", description=__doc__)
    app.add_middleware(Limits)
    errors = {400: "no readable image", 408: "too slow", 413: "too large", 503: "overloaded"}

    @app.post("/predict", responses={k: {"description": why} for k, why in errors.items()})
    async def predict(
            images: list[UploadFile] = File(description=f"1 to {MAX_IMAGES} files", min_length=1),
            heat: bool = False):
        """Category, confidence and probabilities of each image; with `heat` a heat map as well."""
        if len(images) > MAX_IMAGES:
            raise HTTPException(413, f"a request may have {MAX_IMAGES} images, this one has "
                                     f"{len(images)}")
        nonlocal waiting
        waiting += len(images)
        try:
            found = await asyncio.wait_for(
                asyncio.gather(*(classify(upload, heat) for upload in images)), MAX_SECONDS)
        except (asyncio.TimeoutError, queue.Full, MemoryError):
            raise HTTPException(503, BUSY, {"Retry-After": "5"}) from None
        finally:
            waiting -= len(images)
        if all("error" in f for f in found):
            reasons = (f"{f['name'] or 'image'}: {f['error']}" for f in found)
            raise HTTPException(400, "; ".join(reasons))
        return {"model": identity, "images": found}

    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health():
        """The model, and how many images wait for their predictions."""
        return {"status": "ok", "model": identity, "waiting": waiting}

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page():
        return FileResponse(PAGE, media_type="text/html")
    return app


def listen(host, port):
    """A listening socket. Raises InputError if the address cannot be used."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), backlog=128, family=family)
    except OSError as e:
        hint = ("; is the service running already? Try another --port"
                if e.errno == errno.EADDRINUSE else "")
        raise InputError(f"cannot listen on --host {host} --port {port}: {e.strerror}{hint}") from e
    # Connections inherit it. asyncio sets it only on sockets of its own, and without it each
    # response waits 40 ms
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listening


def own_address(family):
    """This machine's address in its network, or None."""
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as s:  # nothing is sent to that address
            s.connect(("2001:db8::1" if family == socket.AF_INET6 else "192.0.2.1", 9))
            return s.getsockname()[0]
    except OSError:
        return None


def main(argv=None):
    args = parse(argv)
    paths = find_weights(args.model_path)
    choose_device("cpu")
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # out of files it logs 1 MB a second
    # h11 without WebSockets: what class Server relies on, whatever else is installed
    config = uvicorn.Config(build_app(paths, args.min_confidence), http="h11", ws="none",
                            log_level="warning", timeout_keep_alive=KEEP_ALIVE,
                            timeout_graceful_shutdown=MAX_SECONDS)
    with listen(args.host, args.port) as listening:
        def address(host):
            port = listening.getsockname()[1]
            return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
        everywhere = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}
        print(f"{len(paths)} file{'s' * (len(paths) > 1)}; open "
              f"{address(everywhere.get(args.host, args.host))} (Ctrl-C ends it)")
        if args.host in everywhere:
            print("on a phone in the same network: "
                  + (address(own) if (own := own_address(listening.family)) else
                     "the address of this machine, which was not found"))
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again after shutting down
            Server(config).run([listening])


if __name__ == "__main__":
    run_command(main)
