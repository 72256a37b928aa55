"""What a network costs: parameters, multiply-adds, milliseconds per picture on this machine.

    cost(Student(4), [3, 224, 224], threads=2)      # {"parameters": 3541764, "multiply_adds": ..., ...}
"""
import statistics
import timeit

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

    def add(part, _, output):  # an output takes as many multiply-adds as it has weights
        nonlocal total
        total += output.size * part.weight.size // output.shape[1]
    hooks = [m.register_forward_post_hook(add) for m in layer.sublayers(include_self=True)
             if isinstance(m, (nn.Conv2D, nn.Linear))]
    layer.eval()
    with paddle.no_grad():
        layer(paddle.zeros([1, *input_shape]))
    for hook in hooks:
        hook.remove()
    return sum(p.size for name, p in layer.named_parameters() if not name.endswith(("._mean", "._variance"))), total


def milliseconds(run, x):
    """Milliseconds per picture: the median of seven calls run(x), after one to warm up."""
    # asarray waits for a GPU
    return 1000 * statistics.median(timeit.repeat(lambda: np.asarray(run(x)), number=1, repeat=8)[1:]) / len(x)


def cost(layer, input_shape, threads):
    """All of it for a network that no longer learns (it is frozen): a JSON-able dict."""
    parameters, multiply_adds = count(layer, input_shape)
    run = runtime.compiled(layer, input_shape, threads)
    x = np.random.default_rng(0).normal(size=(16, *input_shape)).astype(np.float32)
    return {"parameters": parameters, "multiply_adds": multiply_adds,
            "ms_alone": milliseconds(run, x[:1]), "ms_in_batch_of_16": milliseconds(run, x)}
