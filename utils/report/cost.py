"""What a network costs: parameters, multiply-adds, milliseconds per image on this machine.

    cost(Student(4), [3, 224, 224], threads=2)      # {"parameters": 3541764, "multiply_adds": ...}
    costs(Student(4), 4, 224, threads=2)            # {"student": {...}, "teacher": {...}}
"""
import timeit

import numpy as np
import paddle
from paddle import nn

from models.teacher_model import Backbone
from utils.engine import compiled


def count(layer, input_shape):
    """(parameters, multiply-adds) for one image of `input_shape`, such as [3, 224, 224].

    Multiply-adds of convolutions and linear layers only, as in the papers; BatchNorm statistics are
    not parameters. (paddle.flops fails with NumPy 2.)
    """
    total = 0

    def add(module, _, output):  # each output value takes the weights of one output channel
        nonlocal total
        total += output.size * module.weight.size // output.shape[1]
    hooks = [m.register_forward_post_hook(add) for m in layer.sublayers(include_self=True)
             if isinstance(m, (nn.Conv2D, nn.Linear))]
    layer.eval()
    with paddle.no_grad():
        layer(paddle.zeros([1, *input_shape]))
    for hook in hooks:
        hook.remove()
    return sum(p.size for name, p in layer.named_parameters()
               if not name.endswith(("._mean", "._variance"))), total


def milliseconds(run, x):
    """Milliseconds per image of run(x): the median of seven calls after one to warm up."""
    def call():
        np.asarray(run(x))  # waits for a GPU
    return 1000 * float(np.median(timeit.repeat(call, number=1, repeat=8)[1:])) / len(x)


def cost(layer, input_shape, threads):
    """Parameters, multiply-adds and times of a network as a dict; it is frozen for good."""
    parameters, multiply_adds = count(layer, input_shape)
    run = compiled(layer, input_shape, threads)
    x = np.random.default_rng(0).normal(size=(16, *input_shape)).astype(np.float32)
    return {"parameters": parameters, "multiply_adds": multiply_adds,
            "ms_alone": milliseconds(run, x[:1]), "ms_in_batch_of_16": milliseconds(run, x)}


def costs(student, num_classes, image_size, threads):
    """{"student": cost, "teacher": cost}; the teacher is a ResNet50 with a linear head."""
    teacher = nn.Sequential(Backbone(), nn.Linear(2048, num_classes))
    return {name: cost(layer, [3, image_size, image_size], threads)
            for name, layer in (("student", student), ("teacher", teacher))}
