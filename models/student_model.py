"""The student: an ImageNet MobileNetV2 whose first blocks stay frozen, with a new head.

The frozen blocks (the stem) are the same function in every fold, so a run computes them once for
all students; what follows (the tail) learns, one per fold. With the default 14 frozen blocks at
224 pixels the stem gives maps of 96x14x14 numbers.
"""
import numpy as np
import paddle
from paddle import nn
from paddle.nn import functional as F
from paddle.vision.models import mobilenet_v2

from models import MEAN, STD
from models.depthwise import Depthwise, stack

BLOCKS = 19  # the first convolution, 17 inverted residuals, the last convolution
MAX_STACKED_SIDE = 14  # maps up to this side are stacked


class Student(nn.Layer):
    """MobileNetV2 (Sandler et al. 2018) with a new head:
    average pool, Linear 1280 -> 1024, BatchNorm, ReLU, dropout, Linear -> C.

    The first `freeze_depth` of 19 blocks never change, neither their parameters nor their BatchNorm
    statistics, not even in train(). forward: float32 [B, 3, S, S] -> logits [B, num_classes].
    """

    def __init__(self, num_classes, freeze_depth=14, scale=1.0, hidden=1024):
        super().__init__()
        self.features = mobilenet_v2(scale=scale).features
        self.freeze_depth = freeze_depth
        self.hidden = nn.Linear(self.features[-1][0].weight.shape[0], hidden)
        self.norm = nn.BatchNorm1D(hidden)
        self.classifier = nn.Linear(hidden, num_classes)
        for layer in self.features.sublayers():
            if isinstance(layer, nn.Conv2D) and layer._groups > 1:
                layer.__class__ = Depthwise  # the same parameters, faster on small maps
        for block in self.features[:freeze_depth]:
            freeze(block)

    def train(self):
        super().train()
        for block in self.features[:self.freeze_depth]:
            block.eval()

    def stem(self, x):
        """The frozen blocks: [B, 3, S, S] -> maps."""
        return self.features[:self.freeze_depth](x)

    def pool(self, x):
        """The trainable blocks and the average over the map: maps -> pooled features [B, 1280].

        On a CPU, small maps are stacked: all images of the batch above each other as one tall
        image, [1, C, B * H, W]. Every layer but the depthwise ones treats rows alike, and a 1x1
        convolution of the whole batch is then a single matrix product.
        """
        batch, stacked = x.shape[0], False
        on_cpu = paddle.in_dynamic_mode() and x.place.is_cpu_place()
        for block in self.features[self.freeze_depth:]:
            if not stacked and on_cpu and x.shape[3] <= MAX_STACKED_SIDE:
                x, stacked = stack(x), True
            depthwise = ([m for m in block.sublayers() if isinstance(m, Depthwise)]
                         if stacked else [])
            for layer in depthwise:
                layer.stacked = batch
            x = block(x)
            for layer in depthwise:
                layer.stacked = 0
        if stacked:
            return x.reshape([x.shape[1], batch, -1]).mean(2).t()
        return paddle.flatten(F.adaptive_avg_pool2d(x, 1), 1)

    def head(self, pooled, dropout_mask=None):
        """Pooled features [B, 1280] -> logits; `dropout_mask`: float32 [B, hidden], see below."""
        x = F.relu(self.norm(self.hidden(pooled)))
        if dropout_mask is not None:
            x = x * dropout_mask
        return self.classifier(x)

    def tail(self, x):
        """Everything after the stem: maps -> logits."""
        return self.head(self.pool(x))

    def forward(self, x):
        return self.tail(self.stem(x))


class Ensemble(nn.Layer):
    """One or several students as the network that predicts: softmax of the mean calibrated logits.

    forward: float32 [B, 3, S, S], normalized, -> probabilities [B, C]; with `pixels` it takes
    uint8 RGB [B, S, S, 3]. A stem that all students share, as those of one run do, runs once.
    """

    def __init__(self, students, temperatures, pixels=False):
        super().__init__()
        self.temperatures, self.pixels = temperatures, pixels
        self.shared = students[0].freeze_depth if same_stem(students) else 0
        self.stem = students[0].features[:self.shared]
        self.tails = nn.LayerList([s.features[self.shared:] for s in students])
        self.heads = nn.LayerList([nn.Sequential(s.hidden, s.norm, nn.ReLU(), s.classifier)
                                   for s in students])

    def forward(self, x):
        if self.pixels:
            x = paddle.transpose(paddle.cast(x, "float32") / 255, [0, 3, 1, 2])
            mean, std = (paddle.to_tensor(v).reshape([1, 3, 1, 1]) for v in (MEAN, STD))
            x = (x - mean) / std
        maps = self.stem(x)
        logits = []
        for tail, head, temperature in zip(self.tails, self.heads, self.temperatures):
            pooled = paddle.flatten(F.adaptive_avg_pool2d(tail(maps), 1), 1)
            logits.append(head(pooled) / temperature)
        return F.softmax(paddle.add_n(logits) / len(logits), axis=1)


def freeze(layer):
    """Stop a layer from learning: no gradients, and its BatchNorm statistics stay as they are."""
    layer.eval()
    for p in layer.parameters():
        p.stop_gradient = True
    return layer


def same_stem(students):
    """Whether all students have the same frozen blocks, so that one can compute them for all."""
    first, *others = (s.features[:s.freeze_depth].state_dict() for s in students)
    return all(own.keys() == first.keys()
               and all(paddle.equal_all(own[k], v).item() for k, v in first.items())
               for own in others)


def dropout_mask(shape, p, rng):
    """Inverted dropout (Srivastava et al. 2014): float32, 0 with probability p, else 1 / (1 - p).

    Drawn from `rng`, not from Paddle's global generator, whose draws would depend on which other
    students train at the same time.
    """
    return ((rng.random(shape, np.float32) >= p) / (1 - p)).astype(np.float32)
