"""Work spread over threads, and progress bars."""
import collections
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm


def prefetch(make, jobs, threads):
    """Yield make(job) for each job, in order, computed in threads up to threads + 2 jobs early.

    Threads, since cv2 releases the interpreter's lock and Paddle's worker processes deadlock. What
    a job raises is raised here.
    """
    pool = ThreadPoolExecutor(threads)
    try:
        pending = collections.deque()
        for job in jobs:
            pending.append(pool.submit(make, job))
            if len(pending) > threads + 2:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def progress(iterable, what, total=None, unit="batch"):
    """A progress bar that leaves no line behind; silent where there is no terminal."""
    return tqdm(iterable, what, total, leave=False, unit=unit, disable=None, dynamic_ncols=True)
