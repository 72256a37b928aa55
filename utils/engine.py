"""Device, memory, versions, and inference with frozen networks.

    run = compiled(layer, [3, 224, 224], threads=2)     # run(x): array or Tensor in, Tensor out
"""
import copy
import ctypes
import errno
import functools
import itertools
import os
import platform
import sys
import tempfile

import cv2
import numpy as np
import paddle
from paddle import inference, nn
from paddle.nn import functional as F

from models.student_model import freeze
from utils import VERSION
from utils.errors import InputError
from utils.files import free_bytes

NO_GPU = "no GPU: this Paddle was built for the CPU, or no CUDA device is visible"
M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -4, -8  # of malloc.h
PADDLE_2 = paddle.__version__.startswith("2.")
# AVX512-BF16 or AMX, unless oneDNN is told to do without; other processors would emulate it slowly,
# and Paddle 2 prints a dozen lines with it
BFLOAT16 = (not PADDLE_2 and paddle.base.core.supports_bfloat16_fast_performance()
            and not {"ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA"} & os.environ.keys())


def keep_memory():
    """Keep freed memory for the next step instead of returning it to the system.

    Training frees and allocates the same large blocks in every step, and glibc would fetch them
    from the system page by page each time: a fifth of a step. The peak stays the same.
    """
    if hasattr(ctypes.pythonapi, "mallopt"):
        for option, value in ((M_MMAP_MAX, 0), (M_ARENA_MAX, 1), (M_TRIM_THRESHOLD, 2**31 - 1)):
            ctypes.pythonapi.mallopt(option, value)


def choose_device(wanted="auto"):
    """Select 'cpu' or 'gpu' for Paddle and return it.

    'auto' takes a GPU that works, else the CPU; a note says so if there is one. Raises InputError
    if 'gpu' is wanted and cannot be used.
    """
    if wanted != "cpu":
        problem = try_gpu()
        if not problem:
            return "gpu"
        if wanted == "gpu":
            raise InputError(f"{problem}; leave the GPU option out, or see docs/gpu.md")
        if problem != NO_GPU:
            print(f"note: {problem}; continues on the CPU, see docs/gpu.md", file=sys.stderr)
    paddle.set_device("cpu")
    paddle.base.core.set_num_threads(1)  # whatever OMP_NUM_THREADS says: a student has one thread
    return "cpu"


def try_gpu():
    """Select the GPU. Returns why it cannot be used, or ""."""
    try:
        # set_device('gpu') without a GPU kills the process, so count first
        if not (paddle.device.is_compiled_with_cuda() and paddle.device.cuda.device_count()):
            return NO_GPU
        paddle.set_device("gpu")
        # needs cuDNN and kernels for this card, without which Paddle 2 may compute nonsense
        result = F.conv2d(paddle.ones([1, 3, 8, 8]), paddle.ones([4, 3, 3, 3])).numpy()
    except Exception as e:  # whatever Paddle raises; its message may begin with pages of C++
        message = str(e).rpartition("Error Message Summary:")[2].strip(" -\n") or repr(e)
        return f"the GPU does not work: {message.splitlines()[0]}"
    return "" if (result == 27).all() else "the GPU does not work: it computes wrong numbers"


def on_gpu():
    """Whether the selected device is a GPU."""
    return paddle.get_device() != "cpu"


def has_half():
    """Whether half precision is fast here: bfloat16 on processors that are made for it, float16 on
    GPUs from compute capability 7.0."""
    return paddle.device.cuda.get_device_capability()[0] >= 7 if on_gpu() else BFLOAT16


def to_device(x):
    """An array as a Tensor (a Tensor stays as it is). On a GPU nothing waits for the copy."""
    if isinstance(x, paddle.Tensor):
        return x
    if not on_gpu():
        return paddle.to_tensor(x)
    return paddle.to_tensor(x, place=paddle.CUDAPinnedPlace()).cuda(blocking=False)


def versions():
    """What decides a result, for the log and the JSON beside the weights."""
    gpu = {"gpu": paddle.device.cuda.get_device_name(), "cuda": paddle.version.cuda(),
           "cudnn": paddle.device.get_cudnn_version()} if on_gpu() else {}
    return {"visiondistillgc": VERSION, "python": platform.python_version(),
            "paddle": paddle.__version__, "numpy": np.__version__, "opencv": cv2.__version__,
            "system": platform.platform(), **gpu}


def compiled(layer, input_shape, threads=1, half=False):
    """Freeze a layer and compile it; returns run(x).

    run takes float32 [B, *input_shape] (array or Tensor) and returns a float32 Tensor. On a CPU it
    is Paddle Inference with oneDNN on `threads` cores, equal to layer(x) within 1e-4 and three
    times as fast; with `half` it computes in bfloat16 where the processor has it, twice as fast
    again and within 2 % of the largest value. On a GPU it is the dynamic graph, with `half` in
    float16 where the GPU is made for it.
    """
    freeze(layer)
    half = half and has_half()
    if on_gpu():
        def run_on_gpu(x):
            with paddle.no_grad(), paddle.amp.auto_cast(half):
                return layer(to_device(x)).astype("float32")
        return run_on_gpu

    # On Windows, Paddle opens no file below a user folder with a non-ASCII name; PUBLIC is ASCII
    place = None if tempfile.gettempdir().isascii() else os.environ.get("PUBLIC")
    try:
        with tempfile.TemporaryDirectory(dir=place) as folder:
            prefix = os.path.join(folder, "net")
            spec = paddle.static.InputSpec([None, *input_shape], "float32")
            save_network(layer, prefix, spec)
            return predictor(prefix, threads, half)
    except OSError as e:
        raise InputError(f"cannot prepare a network: {e}; Paddle writes to the temporary folder "
                         "and to the user's: make room there, or name others in TMPDIR and HOME "
                         "(on Windows TEMP and USERPROFILE)") from e


def folded(layer):
    """A copy of a frozen layer, with each BatchNorm2D folded into the convolution before it.

    "Before it" means in the same parent, in the order of registration.
    """
    layer = copy.deepcopy(layer)
    for parent in layer.sublayers(include_self=True):
        for (_, conv), (name, norm) in itertools.pairwise(list(parent.named_children())):
            if isinstance(conv, nn.Conv2D) and isinstance(norm, nn.BatchNorm2D):
                scale = norm.weight / paddle.sqrt(norm._variance + norm._epsilon)
                bias = norm.bias - norm._mean * scale
                if conv.bias is not None:
                    bias += conv.bias * scale
                conv.weight.set_value(conv.weight * scale.reshape([-1, 1, 1, 1]))
                conv.bias = paddle.create_parameter(
                    bias.shape, "float32", default_initializer=nn.initializer.Assign(bias))
                setattr(parent, name, nn.Identity())
    return freeze(layer)


def save_network(layer, prefix, spec):
    """paddle.jit.save of a frozen layer, for predictor(); spec: the InputSpec of its input.

    Raises OSError if the disk is too full.
    """
    folder = os.path.dirname(prefix)
    if free_bytes(folder) < 1e6 + 4 * sum(v.size for v in layer.state_dict().values()):
        raise OSError(errno.ENOSPC, "no room left", folder)  # Paddle 3 would not notice
    # Paddle 3 also folds while it loads a network, but takes 3 s for a ResNet50. Paddle 2 folds
    # quickly, and runs a network that comes folded more slowly
    paddle.jit.save(layer if PADDLE_2 else folded(layer), prefix, [spec])


def when_used(make):
    """x -> make()(x), made when it is first called, if ever."""
    network = functools.cache(make)
    return lambda x: network()(x)


def network_file(prefix):
    """The file in which paddle.jit.save describes the network: .json (Paddle 3) or .pdmodel."""
    return prefix + (".json" if os.path.exists(prefix + ".json") else ".pdmodel")


def predictor(prefix, threads, half=False):
    """run(x) of a network saved by paddle.jit.save: array in, float32 Tensor out, on the CPU.

    Paddle holds the interpreter's lock while it runs. run raises MemoryError; after that oneDNN may
    refuse batch sizes that this thread has not used before, even when memory is free again.
    """
    config = inference.Config(network_file(prefix), prefix + ".pdiparams")
    config.disable_gpu()
    config.enable_mkldnn()
    if half:
        config.enable_mkldnn_bfloat16()
    config.set_cpu_math_library_num_threads(threads)
    config.disable_glog_info()
    network = inference.create_predictor(config)
    paddle.base.core.set_num_threads(1)  # as after each run: those threads are for this network
    source = network.get_input_handle(network.get_input_names()[0])
    result = network.get_output_handle(network.get_output_names()[0])

    def run(x):
        source.copy_from_cpu(np.ascontiguousarray(x))
        try:
            network.run()
        except RuntimeError as e:  # this is how oneDNN reports that memory ran out
            if str(e).startswith(("std::exception", "could not create", "could not execute")):
                raise MemoryError(f"oneDNN: {e}") from e
            raise
        return paddle.to_tensor(result.copy_to_cpu())
    return run
