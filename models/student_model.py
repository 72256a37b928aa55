"""The student: an ImageNet MobileNetV2 whose first blocks stay frozen, with a head of its own.

The frozen prefix is the same function in every fold and runs once per picture; what follows is the tail, one per
fold. With the default depth of 14 blocks at 224 pixels the prefix gives 96x14x14 numbers per picture.
"""
import numpy as np
import paddle
from paddle import nn
from paddle.nn import functional as F
from paddle.vision.models import mobilenet_v2

from models.depthwise import Depthwise, stack
from utils import runtime
from utils.transforms import MEAN, STD

STACKED = 14  # sides of maps that are stacked


class Student(nn.Layer):
    """MobileNetV2 with the head: average pool, Linear 1280 -> 1024, BatchNorm, ReLU, Dropout, Linear -> C.

    `freeze_depth` blocks never change, neither their parameters nor their BatchNorm statistics, also after
    `train()`. forward(x) == tail(prefix(x)): float32 [B, 3, S, S] -> logits [B, num_classes].
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
                layer.__class__ = Depthwise  # same parameters under the same names, faster on small maps
        for block in self.features[:freeze_depth]:
            runtime.freeze(block)

    def train(self):
        super().train()
        for block in self.features[:self.freeze_depth]:
            block.eval()

    def prefix(self, x):
        return self.features[:self.freeze_depth](x)

    def pool(self, x):
        """The trainable blocks and the average over the map: what prefix(x) gave -> pooled features [B, 1280].

        On a CPU small maps are computed as a stack: all pictures of the batch above each other, as one high picture
        [1, C, B * H, W]. Every layer but the depthwise ones treats its rows alike, and a 1x1 convolution of all
        pictures is then one product of matrices.
        """
        batch, stacked = x.shape[0], False
        for block in self.features[self.freeze_depth:]:
            if not stacked and x.shape[3] <= STACKED and paddle.in_dynamic_mode() and x.place.is_cpu_place():
                x, stacked = stack(x), True
            depthwise = [layer for layer in block.sublayers() if isinstance(layer, Depthwise)] if stacked else []
            for layer in depthwise:
                layer.pictures = batch
            x = block(x)
            for layer in depthwise:
                layer.pictures = 0
        if stacked:
            return x.reshape([x.shape[1], batch, -1]).mean(2).t()
        return paddle.flatten(F.adaptive_avg_pool2d(x, 1), 1)

    def head(self, pooled, dropout_mask=None):
        """`dropout_mask`: float32 [B, hidden], 0 where a unit is dropped and 1 / (1 - p) elsewhere."""
        x = F.relu(self.norm(self.hidden(pooled)))
        if dropout_mask is not None:
            x = x * dropout_mask
        return self.classifier(x)

    def tail(self, x):
        return self.head(self.pool(x))

    def forward(self, x):
        return self.tail(self.prefix(x))


class Ensemble(nn.Layer):
    """Students, one or several, as the one network that answers: softmax of the mean of their calibrated logits.

    forward: float32 [B, 3, S, S], normalised -> probabilities [B, C]; with `pixels` uint8 RGB [B, S, S, 3]. A prefix that
    all students share, as folds of one run do, is computed once.
    """

    def __init__(self, students, temperatures, pixels=False):
        super().__init__()
        first, self.temperatures, self.pixels = students[0], temperatures, pixels
        frozen = first.features[:first.freeze_depth].state_dict()

        def shares(student):
            own = student.features[:student.freeze_depth].state_dict()
            return own.keys() == frozen.keys() and all(paddle.equal_all(own[k], v).item() for k, v in frozen.items())
        self.shared = first.freeze_depth if all(map(shares, students)) else 0
        self.prefix = first.features[:self.shared]
        self.tails = nn.LayerList([s.features[self.shared:] for s in students])
        self.heads = nn.LayerList([nn.Sequential(s.hidden, s.norm, nn.ReLU(), s.classifier) for s in students])

    def forward(self, x):
        if self.pixels:
            x = paddle.transpose(paddle.cast(x, "float32") / 255, [0, 3, 1, 2])
            x = (x - paddle.to_tensor(MEAN).reshape([1, 3, 1, 1])) / paddle.to_tensor(STD).reshape([1, 3, 1, 1])
        x = self.prefix(x)
        logits = []
        for tail, head, temperature in zip(self.tails, self.heads, self.temperatures):
            logits.append(head(paddle.flatten(F.adaptive_avg_pool2d(tail(x), 1), 1)) / temperature)
        return F.softmax(paddle.add_n(logits) / len(logits), axis=1)


def dropout_mask(shape, p, rng):
    """Inverted dropout (Srivastava et al. 2014) as a float32 array, from `rng` and not from Paddle's one global
    generator, whose draws would depend on which folds train beside this one."""
    return ((rng.random(shape, np.float32) >= p) / (1 - p)).astype(np.float32)
