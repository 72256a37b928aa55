"""Threads, device, and the fastest way to run a network that no longer learns."""
import ctypes
import errno
import math
import os
import platform
import shutil
import sys
import tempfile

import cv2
import numpy as np
import paddle
from paddle import inference
from tqdm import tqdm

from utils import CORES, processor  # noqa: F401
from utils.settings import InputError

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # of malloc.h
# AVX512-BF16 or AMX: other processors would imitate it, slowly, and where the user limits oneDNN to what others have, it may
# refuse. Paddle 2 could use it too, but prints a dozen lines then
BFLOAT16 = (paddle.__version__ >= "3" and paddle.base.core.supports_bfloat16_fast_performance()
            and not {"ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"} & os.environ.keys())
cv2.setNumThreads(1)  # pictures are spread over threads, one picture per thread


def keep_memory():
    """Keep for this process what it has freed: for training, where the same large blocks come and go in every step.

    The system's malloc gives them back at once and gets them anew, page by page, a fifth of the time of a training step;
    and more so in threads. Instead one heap for all threads keeps what it has; peak memory stays the same.
    """
    if hasattr(ctypes.pythonapi, "mallopt"):  # glibc
        for option, value in ((M_MMAP_MAX, 0), (M_ARENA_MAX, 1), (M_TRIM_THRESHOLD, 2**31 - 1)):
            ctypes.pythonapi.mallopt(option, value)


def choose_device(wanted="auto"):
    """Select 'cpu' or 'gpu' for Paddle and return it. Raises InputError if a GPU is asked for and there is none."""
    # set_device('gpu') without a GPU kills the process, so count first.
    available = paddle.device.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0
    if wanted == "gpu" and not available:
        raise InputError("no GPU: this Paddle was built for the CPU, or no CUDA device is visible; leave the GPU "
                         "option out, or install from requirements-gpu.txt")
    device = "cpu" if wanted == "cpu" or not available else "gpu"
    paddle.set_device(device)
    return device


def room(folder):
    """Bytes that are free on the disk of a folder; without limit where the disk does not say."""
    usage = shutil.disk_usage(folder)
    return usage.free if usage.total else math.inf


def versions():
    """Versions that decide a result, for the log and the JSON beside the weights."""
    return {"python": platform.python_version(), "paddle": paddle.__version__, "numpy": np.__version__,
            "opencv": cv2.__version__, "system": platform.platform()}


def freeze(layer):
    """Stop a layer from learning, for good: no gradients, and BatchNorm statistics stay as they are."""
    layer.eval()
    for p in layer.parameters():
        p.stop_gradient = True
    return layer


def compiled(layer, input_shape, threads=1, half=False):
    """Freeze a layer for good, compile it, and return run(x).

    run takes float32 [B, *input_shape] (array or Tensor) and returns a float32 Tensor. On a CPU it is
    Paddle Inference with oneDNN on `threads` cores, equal to layer(x) within 1e-4, in a third of the time; with `half`
    it computes in bfloat16 where the processor is made for that, in half of that time again, within 2 % of the largest
    number. On a GPU it is the dynamic graph in half precision.
    """
    freeze(layer)
    if not paddle.get_device().startswith("cpu"):
        def run_gpu(x):
            with paddle.no_grad(), paddle.amp.auto_cast():
                return layer(paddle.to_tensor(x)).astype("float32")
        return run_gpu

    # On Windows Paddle opens no file in the folder of a user whose name is not ASCII; that of all users is. (Not tried.)
    place = None if tempfile.gettempdir().isascii() else os.environ.get("PUBLIC")
    try:
        with tempfile.TemporaryDirectory(dir=place) as folder:
            if room(folder) < 1e6 + 4 * sum(v.size for v in layer.state_dict().values()):
                raise OSError(errno.ENOSPC, "no room left", folder)  # Paddle 3 would not notice
            prefix = os.path.join(folder, "net")
            paddle.jit.save(layer, prefix, [paddle.static.InputSpec([None, *input_shape], "float32")])
            return predictor(prefix, threads, half)
    except OSError as e:
        raise InputError(f"cannot prepare a network: {e}; Paddle writes to the folder for temporary files and to that of the "
                         "user: make room there, or name others in TMPDIR and HOME (on Windows TMP and USERPROFILE)") from e


def network_file(prefix):
    """The file in which paddle.jit.save describes the network: .json of Paddle 3, .pdmodel of Paddle 2."""
    return prefix + (".json" if os.path.exists(prefix + ".json") else ".pdmodel")


def predictor(prefix, threads, half=False):
    """run(x) of the network that paddle.jit.save wrote to `prefix`: array in, float32 Tensor out, on the CPU.

    Paddle keeps the interpreter's lock while it runs: no other Python thread moves meanwhile. run raises MemoryError; after
    that oneDNN may refuse, in the same thread, each batch size that it has not met yet, even when there is memory again.
    """
    config = inference.Config(network_file(prefix), prefix + ".pdiparams")
    config.disable_gpu()
    config.enable_mkldnn()
    if half and BFLOAT16:
        config.enable_mkldnn_bfloat16()
    config.set_cpu_math_library_num_threads(threads)
    config.disable_glog_info()
    network = inference.create_predictor(config)
    source = network.get_input_handle(network.get_input_names()[0])
    result = network.get_output_handle(network.get_output_names()[0])

    def run(x):
        source.copy_from_cpu(np.ascontiguousarray(x))
        try:
            network.run()
        except RuntimeError as e:  # so oneDNN says in Paddle 3 and 2 that memory ran out; of Paddle it is a MemoryError
            if str(e).startswith(("std::exception", "could not create", "could not execute")):
                raise MemoryError(f"oneDNN: {e}") from e
            raise
        return paddle.to_tensor(result.copy_to_cpu())
    return run


def command(main, memory="close other programs"):
    """Run a program's main; what the user can mend is one line and exit status 1. memory: what to do if it runs out."""
    for stream in (sys.stdout, sys.stderr):
        # file names that the terminal cannot show; lines at once, also into a file
        stream.reconfigure(errors="backslashreplace", line_buffering=True)
    try:
        main()
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
    except MemoryError:
        sys.exit(f"error: out of memory; {memory}")
    except KeyboardInterrupt:
        sys.exit(130)


def progress(iterable, what, total=None, unit="batch"):
    """A progress bar on the terminal that leaves no line behind; nothing where there is no terminal."""
    return tqdm(iterable, what, total, leave=False, unit=unit, disable=None, dynamic_ncols=True)
