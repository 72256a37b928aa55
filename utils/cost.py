"""What a network costs: parameters, multiply-adds, milliseconds per picture on this machine.

    cost(Student(4), [3, 224, 224], threads=2)      # {"parameters": 3541764, "multiply_adds": ..., ...}
"""
import statistics
import time

import numpy as np
import paddle
from paddle import nn

from utils import runtime


def count(layer, input_shape):
    """(parameters, multiply-adds) for one picture of `input_shape`, such as [3, 224, 224].

    Multiply-adds are those of convolutions and linear layers, as in the papers; a BatchNorm's statistics are no
    parameters. (paddle.flops fails with NumPy 2.)
    """
    total = 0

    def convolution(conv, _, output):  # weight: [out, in / groups, height, width]
        nonlocal total
        total += int(np.prod(output.shape[1:])) * int(np.prod(conv.weight.shape[1:]))

    def linear(dense, _, output):  # weight: [in, out]
        nonlocal total
        total += int(np.prod(output.shape[1:])) * dense.weight.shape[0]
    hooks = [m.register_forward_post_hook(convolution if isinstance(m, nn.Conv2D) else linear)
             for m in layer.sublayers(include_self=True) if isinstance(m, (nn.Conv2D, nn.Linear))]
    layer.eval()
    with paddle.no_grad():
        layer(paddle.zeros([1, *input_shape]))
    for hook in hooks:
        hook.remove()
    return sum(int(np.prod(p.shape)) for name, p in layer.named_parameters()
               if not name.endswith(("._mean", "._variance"))), total


def milliseconds(run, x):
    """Per picture, the median of seven times run(x)."""
    seconds = []
    for _ in range(8):  # the first one warms up
        began = time.perf_counter()
        np.asarray(run(x))  # waits for a GPU
        seconds.append(time.perf_counter() - began)
    return 1000 * statistics.median(seconds[1:]) / len(x)


def cost(layer, input_shape, threads):
    """All of it for a network that no longer learns (it is frozen): a JSON-able dict."""
    parameters, multiply_adds = count(layer, input_shape)
    run = runtime.frozen(layer, input_shape, threads)
    x = np.random.default_rng(0).normal(size=(16, *input_shape)).astype(np.float32)
    return {"parameters": parameters, "multiply_adds": multiply_adds,
            "ms_alone": milliseconds(run, x[:1]), "ms_in_batch_of_16": milliseconds(run, x)}
