"""Images per second that serve.py classifies, and the latency, at rising concurrency.

    python benchmarks/load.py --model_path models_saved/best_model_fold0.pdparams \\
        --image_path data/sample                                                  # to try it
    python benchmarks/load.py --model_path FILE --image_path trashnet --seconds 10

The second command gave the figures of docs/results.md. Starts the service; each client, on the
same machine, sends one image after another. Needs requirements-dev.txt.
"""
import asyncio
import collections
import logging
import os
import subprocess
import sys
import time

import httpx

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)
sys.path.insert(0, ROOT)
import utils  # before numpy

# isort: split
import numpy as np

from utils.command import Parser
from utils.predict import find_images

PORT = 8765


async def measure(address, files, clients, seconds):
    """(seconds of each response, {HTTP status, or kind of a lost connection: count})"""
    times, statuses, end = [], collections.Counter(), time.perf_counter() + seconds

    async def one(number):
        async with httpx.AsyncClient(timeout=120) as client:  # shared, they would wait for it
            while (began := time.perf_counter()) < end:
                try:
                    response = await client.post(
                        address + "/predict", files={"images": files[number % len(files)]})
                except httpx.TransportError as e:
                    statuses[type(e).__name__] += 1
                    continue
                statuses[response.status_code] += 1
                if response.status_code == 200:
                    times.append(time.perf_counter() - began)
                number += clients
    await asyncio.gather(*(one(i) for i in range(clients)))
    return times, statuses


def main():
    parser = Parser(__doc__)
    parser.add_argument("--model_path", nargs="+", required=True, metavar="FILE",
                        help="weights, as serve.py takes them")
    parser.add_argument("--image_path", required=True,
                        help="an image or a folder; its first 500 are sent")
    parser.add_argument("--seconds", type=float, default=2,
                        help="at each number of clients (default: 2)")
    args = parser.parse_args()
    logging.getLogger("httpx").setLevel(logging.WARNING)  # Paddle sets the root logger to INFO
    address, files = f"http://127.0.0.1:{PORT}", []
    for path in find_images(args.image_path, recursive=True)[0][:500]:
        with open(path, "rb") as f:
            files.append((os.path.basename(path), f.read()))
    service = subprocess.Popen([sys.executable, os.path.join(ROOT, "serve.py"), "--model_path",
                                *args.model_path, "--port", str(PORT)], stdout=subprocess.PIPE)
    if not service.stdout.readline():
        sys.exit(1)  # the service has said why
    time.sleep(1)
    size = np.mean([len(content) for _, content in files]) / 1e3
    print(f"{httpx.get(address + '/health').json()['model']}\n"
          f"{utils.processor()}, {utils.CORES} cores, shared with the clients; "
          f"{len(files)} images of {size:.0f} kB\n\n"
          "| clients | images/s | median ms | 99th percentile, ms | other statuses | memory MB |\n"
          "| --- | --- | --- | --- | --- | --- |")
    try:
        for clients in (1, 4, 16, 64, 128):
            times, statuses = asyncio.run(measure(address, files, clients, args.seconds))
            others = ", ".join(f"{n} x {s}" for s, n in statuses.items() if s != 200) or "none"
            memory = float("nan")
            if sys.platform == "linux":
                with open(f"/proc/{service.pid}/statm", encoding="ascii") as f:
                    memory = int(f.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6
            median, late = 1000 * np.median(times), 1000 * np.quantile(times, 0.99)
            print(f"| {clients} | {len(times) / args.seconds:.0f} | {median:.0f} | {late:.0f} | "
                  f"{others} | {memory:.0f} |", flush=True)
    finally:
        service.kill()


if __name__ == "__main__":
    main()
