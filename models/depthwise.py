"""Depthwise convolutions of small maps as matrix products, for training on a CPU.

    layer.stacked = 16
    y = unstack(layer(stack(x)), 16)       # equal to layer(x) up to rounding: tests/test_models.py
"""
import paddle
from paddle import nn
from paddle.nn import functional as F

MAX_MATRIX = 10_000  # numbers per channel; larger matrices are slower than the convolution


def stack(x):
    """Images [B, C, H, W] above each other: [1, C, B * H, W]."""
    return x.transpose([1, 0, 2, 3]).reshape([1, x.shape[1], -1, x.shape[3]])


def unstack(x, batch):
    """The images [batch, C, H, W] of a stack."""
    return x.reshape([x.shape[1], batch, -1, x.shape[3]]).transpose([1, 0, 2, 3])


class Depthwise(nn.Conv2D):
    """A depthwise convolution that also takes a stack of square images: one matrix per channel.

    Paddle's own is slow in training: forward and backward of 16x960x7x7 take 39 ms, this 5 ms;
    16x576x14x14 with stride 2 take 27 and 12 ms (AMD EPYC, Zen 5, one thread).
    """
    placements = {}  # (side, kernel, stride, padding, type) -> 0/1 [kernel^2, side^2 * out^2]
    stacked = 0      # number of images in the stack that comes next; 0: an ordinary batch

    def forward(self, x):
        if not self.stacked:
            return super().forward(x)
        side, stride, padding = x.shape[3], self._stride[0], self._padding
        channels, kernel = self.weight.shape[0], self.weight.shape[2]
        out = (side + 2 * padding - kernel) // stride + 1
        if side**2 * out**2 > MAX_MATRIX:
            return stack(super().forward(unstack(x, self.stacked)))
        key = side, kernel, stride, padding, x.dtype
        if key not in self.placements:  # which weight joins which input pixel to which output pixel
            images = paddle.eye(side**2, dtype=x.dtype).reshape([-1, 1, side, side])
            kernels = paddle.eye(kernel**2, dtype=x.dtype).reshape([-1, 1, kernel, kernel])
            placement = F.conv2d(images, kernels, stride=stride, padding=padding)
            placement = placement.transpose([1, 0, 2, 3]).reshape([kernel**2, -1])
            self.placements[key] = placement
        matrices = paddle.matmul(self.weight.reshape([channels, -1]), self.placements[key])
        x = paddle.matmul(x.reshape([channels, -1, side**2]),
                          matrices.reshape([channels, side**2, out**2]))
        return x.reshape([1, channels, -1, out])
