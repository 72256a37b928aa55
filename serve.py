"""Answer pictures over HTTP: a web page for people, JSON for programs.

    python serve.py --model_path models_saved/best_model_fold*.pdparams     # then open http://127.0.0.1:8000
    curl -F pictures=@photo.jpg http://127.0.0.1:8000/predict               # described in http://127.0.0.1:8000/openapi.json

/docs shows that description as a page and loads its style from the internet; the page for people needs no internet.
Pictures of requests that come at the same time are answered in one batch. What is too large, too slow or not a picture
gets a status of 4xx and the reason; too many requests at a time get 503. Ctrl-C: what was accepted is still answered, then
it ends. Only this machine can reach it unless --host says otherwise. It has no passwords and no encryption: put a web
server that has them in front of it. Needs requirements-serve.txt; no GPU.
"""
import argparse
import asyncio
import base64
import contextlib
import logging
import os
import queue
import socket
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor

try:
    import python_multipart  # noqa: F401  that FastAPI takes uploads with
    import uvicorn
    from fastapi import FastAPI, File, HTTPException, UploadFile
    from fastapi.responses import FileResponse, JSONResponse
except ImportError as e:
    sys.exit(f"error: {e}; pip install -r requirements-serve.txt")

from inference import UNSURE, check_threshold, expand, load_model
from utils import runtime
from utils.pictures import UnreadablePicture, decode
from utils.settings import InputError
from utils.transforms import whole_view

PAGE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "serve.html")
MOST_BYTES, MOST_PICTURES, MOST_SECONDS = 32 * 2**20, 16, 30  # of one request
MOST_REQUESTS = 64  # at a time; beyond it 503
BATCH = 6  # of 224 pixels: as fast as larger ones, and malloc gives blocks beyond 32 MB back each time, page by page
KEEP_ALIVE = 75  # seconds that a connection without requests stays open: longer than clients and web servers use it
BUSY = "too much to do; try again later"


class Batches:
    """One thread that answers all waiting pictures together."""

    def __init__(self, answer):
        self.answer, self.waiting = answer, queue.Queue(MOST_REQUESTS * MOST_PICTURES)
        threading.Thread(target=self._run, daemon=True).start()

    def submit(self, view):
        """A Future of the probabilities [C] of one view. Raises queue.Full."""
        future = Future()
        self.waiting.put_nowait((view, future))
        return future

    def _run(self):
        while True:
            jobs = [self.waiting.get()]
            while len(jobs) < BATCH and not self.waiting.empty():
                jobs.append(self.waiting.get())
            jobs = [job for job in jobs if job[1].set_running_or_notify_cancel()]  # for the others nobody waits any more
            if not jobs:
                continue
            try:
                for (_, future), probabilities in zip(jobs, self.answer([view for view, _ in jobs])):
                    future.set_result(probabilities)
            except Exception as e:  # such as memory that runs out: the next batch may fit
                for _, future in jobs:
                    if not future.done():
                        future.set_exception(e)


class Limits:
    """ASGI: ends a request whose body is too large (413) or comes too slowly (408), or when there are too many (503)."""

    def __init__(self, app):
        self.app, self.running = app, 0

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http" or scope["path"] == "/health":
            return await self.app(scope, receive, send)
        clock = asyncio.get_running_loop().time
        taken, end = 0, clock() + MOST_SECONDS

        async def limited():
            nonlocal taken
            try:
                message = await asyncio.wait_for(receive(), max(0, end - clock()))
            except asyncio.TimeoutError:
                raise HTTPException(408, f"not all of the request came within {MOST_SECONDS} s") from None
            taken += len(message.get("body", b""))
            if taken > MOST_BYTES:
                raise HTTPException(413, f"a request may have {MOST_BYTES // 2**20} MB")
            return message
        if self.running < MOST_REQUESTS:
            self.running += 1
            try:
                return await self.app(scope, limited, send)
            finally:
                self.running -= 1
        response = JSONResponse({"detail": BUSY}, 503, {"Retry-After": "5"})
        try:
            while (await limited()).get("more_body"):
                pass  # who is still sending does not hear the answer
        except HTTPException as e:
            response = JSONResponse({"detail": e.detail}, e.status_code)
        await response(scope, limited, send)


class Server(uvicorn.Server):
    """Also ends connections on which no request comes: uvicorn waits for a header forever, until it is out of files."""
    since = {}  # by connection and its last request: when it was first seen without one that is worked on

    async def on_tick(self, counter):
        if counter % 10 == 0:  # once a second
            now = time.monotonic()
            self.since = {(c, c.cycle): self.since.get((c, c.cycle), now) for c in self.server_state.connections
                          if c.cycle is None or c.cycle.response_complete}
            for (connection, last), began in self.since.items():
                if now - began > (KEEP_ALIVE if last else MOST_SECONDS):
                    connection.transport.abort()  # close would wait for those who do not read their answer
        return await super().on_tick(counter)


def build_app(model_path, min_confidence=0.0):
    """The service as an ASGI application."""
    about, answer, explain = load_model(model_path)
    size, categories = about["image_size"], about["categories"]
    check_threshold(min_confidence, categories)
    identity = {"files": [os.path.basename(p) for p in model_path], "run": about.get("run"), "categories": categories,
                "image_size": size, "heat_maps": explain is not None}
    batches = Batches(answer)
    # few at a time: a picture of 120 million pixels takes 700 MB while it is read, as a file of 15 kB too
    reading, drawing = ThreadPoolExecutor(min(2, runtime.CORES)), ThreadPoolExecutor(1)

    def view_of(upload):  # reads the file too: until then it waits on the disk
        return whole_view(decode(upload.file.read()), size)

    def heat_of(view, probabilities):
        return "data:image/jpeg;base64," + base64.b64encode(explain(view, probabilities.argmax())).decode()

    async def one(upload, heat):
        name = (upload.filename or "").encode(errors="replace").decode()  # what JSON cannot hold: a client chose its charset
        found, run = {"name": name}, asyncio.get_running_loop().run_in_executor
        try:
            view = await run(reading, view_of, upload)
        except UnreadablePicture as e:
            return found | {"error": str(e)}
        probabilities = await asyncio.wrap_future(batches.submit(view))
        confidence = float(probabilities.max())
        found |= {"category": categories[probabilities.argmax()] if confidence >= min_confidence else UNSURE,
                  "confidence": confidence, "probabilities": dict(zip(categories, map(float, probabilities)))}
        if heat and explain:
            found["heat_map"] = await run(drawing, heat_of, view, probabilities)
        return found

    app = FastAPI(title="VisionDistillGC", description=__doc__)
    app.add_middleware(Limits)
    reasons = {code: {"description": why} for code, why in (
        (400, "none of the pictures can be read"), (408, "too slow"), (413, "too large or too many"), (503, "overload"))}

    @app.post("/predict", responses=reasons)
    async def predict(pictures: list[UploadFile] = File(description=f"picture files, 1 to {MOST_PICTURES}", min_length=1),
                      heat: bool = False):
        """Category, confidence and probabilities of each picture; with `heat` also where they come from, as a JPEG."""
        if len(pictures) > MOST_PICTURES:
            raise HTTPException(413, f"a request may have {MOST_PICTURES} pictures, this one has {len(pictures)}")
        try:
            found = await asyncio.wait_for(asyncio.gather(*(one(p, heat) for p in pictures)), MOST_SECONDS)
        except (asyncio.TimeoutError, queue.Full, MemoryError):
            raise HTTPException(503, BUSY, {"Retry-After": "5"}) from None
        if all("error" in f for f in found):
            raise HTTPException(400, "; ".join(f"{f['name'] or 'picture'}: {f['error']}" for f in found))
        return {"model": identity, "pictures": found}

    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health():
        """That it runs, with which model, and how many pictures wait."""
        return {"status": "ok", "model": identity, "waiting": batches.waiting.qsize()}

    @app.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def page():
        return FileResponse(PAGE, media_type="text/html")
    return app


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_argument_group("who answers")
    group.add_argument("--model_path", nargs="+", required=True, metavar="FILE",
                       help=".pdparams files of main.py, or one file of export.py (which draws no heat maps)")
    group.add_argument("--min_confidence", type=float, default=0.0, metavar="X",
                       help=f"answer '{UNSURE}' below this confidence, 0 to 1 (default: 0)")
    group = parser.add_argument_group("where it listens")
    group.add_argument("--host", default="127.0.0.1", help="0.0.0.0: others can reach it too (default: 127.0.0.1)")
    group.add_argument("--port", type=int, default=8000, metavar="N", help="0: any that is free (default: 8000)")
    args = parser.parse_args(argv)
    paths = expand(args.model_path)
    if not 0 <= args.port < 2**16:
        raise InputError(f"--port {args.port}: must be at least 0 and at most {2**16 - 1}")
    runtime.choose_device("cpu")
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # out of files it complains at 1 MB a second
    # h11 and no WebSockets: what Server knows, whatever else is installed
    config = uvicorn.Config(build_app(paths, args.min_confidence), http="h11", ws="none", log_level="warning",
                            timeout_keep_alive=KEEP_ALIVE, timeout_graceful_shutdown=MOST_SECONDS)
    try:
        listening = socket.create_server((args.host, args.port), backlog=128,
                                         family=socket.AF_INET6 if ":" in args.host else socket.AF_INET)
    except OSError as e:
        raise InputError(f"cannot listen on --host {args.host} --port {args.port}: {e.strerror}; is it running already? "
                         "Try another --port") from e
    with listening:
        # its connections inherit it; asyncio sees to it only where it binds: else 40 ms of waiting in every answer
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reach = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(args.host, f"[{args.host}]" if ":" in args.host else args.host)
        print(f"{len(paths)} file{'s' * (len(paths) > 1)}; open http://{reach}:{listening.getsockname()[1]} (Ctrl-C ends "
              "it)")
        with contextlib.suppress(KeyboardInterrupt):  # which it raises again when all is answered
            Server(config).run([listening])


if __name__ == "__main__":
    runtime.command(main)
