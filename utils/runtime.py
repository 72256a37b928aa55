"""Threads, device, and the fastest exact way to run a network that no longer learns.

Import this module before paddle and cv2: it sets what both read once, when they load.
"""
import ctypes
import os
import platform
import sys
import tempfile
import warnings

M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # of malloc.h
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor():
    """Maker and model of the processor, as the system names them."""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as f:
            found = dict(line.split(":", 1) for line in f.read(4096).splitlines() if ":" in line)
        found = {k.strip(): v.strip() for k, v in found.items()}
        return f"{found.get('vendor_id', '')} {found.get('model name', '')}".strip() or platform.machine()
    return platform.processor()


# One thread per operator: the folds train in one Python thread each, which keeps every core busier
# than operators that split up (2 cores, 4 students: 103 against 53 pictures/s). It also makes a
# student's weights independent of how many folds run beside it. The predictor has threads of its own.
os.environ.setdefault("OMP_NUM_THREADS", "1")
if "AMD" in processor().replace("AMD64", ""):  # Paddle's bundled MKL takes its slow path on AMD otherwise: 5 times slower
    os.environ.setdefault("MKL_DEBUG_CPU_TYPE", "5")
# The system's malloc gives large blocks back at once and gets them anew, page by page, a fifth of the time of a training
# step; and more so in threads. Instead one heap for all threads keeps what it has; peak memory stays the same.
if hasattr(ctypes.pythonapi, "mallopt"):  # glibc
    for option, value in ((M_MMAP_MAX, 0), (M_ARENA_MAX, 1), (M_TRIM_THRESHOLD, 2**31 - 1)):
        ctypes.pythonapi.mallopt(option, value)
# A 109 kB file can decode to 5 GB. 120 million pixels are more than phones take.
MAX_PIXELS = int(os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", "120000000"))
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # bad files are reported by us, by name
os.environ.setdefault("GLOG_minloglevel", "2")

import cv2  # noqa: E402
import numpy as np  # noqa: E402

with warnings.catch_warnings():  # Paddle misses ccache, which only its C++ extensions would use
    warnings.simplefilter("ignore")
    import paddle  # noqa: E402
warnings.filterwarnings("ignore", message="When training, we now always track")  # so we expect
from paddle import inference  # noqa: E402
from tqdm import tqdm  # noqa: E402

from utils.settings import InputError  # noqa: E402

cv2.setNumThreads(1)  # pictures are spread over threads, one picture per thread


def choose_device(wanted="auto"):
    """Select 'cpu' or 'gpu' for Paddle and return it. Raises InputError if a GPU is asked for in vain."""
    # set_device('gpu') without a GPU kills the process, so count first.
    available = paddle.device.is_compiled_with_cuda() and paddle.device.cuda.device_count() > 0
    if wanted == "gpu" and not available:
        raise InputError("no GPU: this Paddle was built for the CPU, or no CUDA device is visible; leave the GPU "
                         "option out, or install from requirements-gpu.txt")
    device = "cpu" if wanted == "cpu" or not available else "gpu"
    paddle.set_device(device)
    return device


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


def frozen(layer, input_shape, threads=1):
    """Compile a frozen layer and return run(x).

    run takes float32 [B, *input_shape] (array or Tensor) and returns a float32 Tensor, equal to
    layer(x) within 1e-4. On a CPU it is Paddle Inference with oneDNN on `threads` cores (ResNet50:
    29 pictures/s against 10 in dynamic graph on 2 Intel cores, and 2 seconds to prepare); on a GPU
    the dynamic graph in half precision.
    """
    freeze(layer)
    if not paddle.get_device().startswith("cpu"):
        def run_gpu(x):
            with paddle.no_grad(), paddle.amp.auto_cast():
                return layer(paddle.to_tensor(x)).astype("float32")
        return run_gpu

    with tempfile.TemporaryDirectory() as folder:
        prefix = os.path.join(folder, "net")
        paddle.jit.save(layer, prefix, [paddle.static.InputSpec([None, *input_shape], "float32")])
        return predictor(prefix, threads)


def program(prefix):
    """The file in which paddle.jit.save describes the network: .json of Paddle 3, .pdmodel of Paddle 2."""
    return prefix + (".json" if os.path.exists(prefix + ".json") else ".pdmodel")


def predictor(prefix, threads):
    """run(x) of the network that paddle.jit.save wrote to `prefix`: array in, float32 Tensor out, on the CPU.

    Paddle keeps the interpreter's lock while it runs: no other Python thread moves meanwhile.
    """
    config = inference.Config(program(prefix), prefix + ".pdiparams")
    config.disable_gpu()
    config.enable_mkldnn()
    config.set_cpu_math_library_num_threads(threads)
    config.disable_glog_info()
    network = inference.create_predictor(config)
    source = network.get_input_handle(network.get_input_names()[0])
    result = network.get_output_handle(network.get_output_names()[0])

    def run(x):
        source.copy_from_cpu(np.ascontiguousarray(x))
        network.run()
        return paddle.to_tensor(result.copy_to_cpu())
    return run


def command(main, memory="close other programs"):
    """Run a program's main; what the user can mend is one line and exit status 1. memory: what to do if it runs out."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # file names that the terminal cannot show
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
