"""Depthwise convolutions of small maps as products of matrices, in training on a CPU.

    layer.pictures = 16
    y = unstack(layer(stack(x)), 16)       # equal to layer(x) within rounding: tests/test_models.py
"""
import paddle
from paddle import nn
from paddle.nn import functional as F

LARGEST = 10_000  # numbers in a matrix that pays


def stack(x):
    """Pictures [B, C, H, W] above each other: [1, C, B * H, W]."""
    return x.transpose([1, 0, 2, 3]).reshape([1, x.shape[1], -1, x.shape[3]])


def unstack(x, pictures):
    """So many pictures [B, C, H, W] of a stack."""
    return x.reshape([x.shape[1], pictures, -1, x.shape[3]]).transpose([1, 0, 2, 3])


class Depthwise(nn.Conv2D):
    """A depthwise convolution that also takes a stack of square pictures, and makes of it one matrix per channel.

    Paddle's own is slow there: forward and backward of 16x960x7x7 take 39 ms, this 5 ms; 16x576x14x14 with stride 2
    take 27 and 12 (AMD EPYC, Zen 5, one thread). On 14x14 without a stride the matrices are so large that nothing is gained.
    """
    places = {}  # (side, kernel, stride, padding) -> which weight joins which input to which output
    pictures = 0  # in the stack that comes next; 0: it is no stack

    def forward(self, x):
        if not self.pictures:
            return super().forward(x)
        side, (kernel, _), stride, padding = x.shape[3], self.weight.shape[2:], self._stride[0], self._padding
        out = (side + 2 * padding - kernel) // stride + 1
        if side * side * out * out > LARGEST:
            return stack(super().forward(unstack(x, self.pictures)))
        key = side, kernel, stride, padding
        if key not in self.places:
            places = F.conv2d(paddle.eye(side**2).reshape([-1, 1, side, side]),
                              paddle.eye(kernel**2).reshape([-1, 1, kernel, kernel]), stride=stride, padding=padding)
            self.places[key] = places.transpose([1, 0, 2, 3]).reshape([kernel**2, -1])
        channels = x.shape[1]
        matrices = paddle.matmul(self.weight.reshape([channels, -1]), self.places[key])
        x = paddle.matmul(x.reshape([channels, -1, side * side]), matrices.reshape([channels, side * side, out * out]))
        return x.reshape([1, channels, -1, out])
