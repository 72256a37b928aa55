"""Where a student looked: Grad-CAM, drawn over the picture (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391).

    python inference.py --model_path models_saved/best_model_fold0.pdparams --image_path photo.jpg --explain heat
"""
import cv2
import numpy as np
import paddle
from paddle.nn import functional as F

from utils.transforms import normalise


def heat_maps(students, temperatures, x, categories):
    """How much each place of a picture speaks for a category, float32 [B, S, S], 1 where most, 0 where not at all.

    x: float32 [B, 3, S, S], normalised; categories: int [B]. A place counts by its features, each weighted with the
    gradient of the category's logit (of several students: the mean of their calibrated logits). What speaks against the
    category is left out; a map may be 0 everywhere. The last feature map is coarse: one cell is 32 pixels wide.
    """
    total = 0
    for student, temperature in zip(students, temperatures):
        student.eval()
        with paddle.no_grad():
            features = student.features(paddle.to_tensor(x))
            pooled = paddle.flatten(F.adaptive_avg_pool2d(features, 1), 1)
        pooled.stop_gradient = False
        logits = student.head(pooled) / temperature
        chosen = (logits * F.one_hot(paddle.to_tensor(categories), logits.shape[1])).sum()
        (gradient,) = paddle.grad(chosen, pooled)
        total += np.einsum("bc,bchw->bhw", gradient.numpy(), features.numpy())
    heat = np.maximum(total, 0)
    heat /= np.maximum(heat.max((1, 2), keepdims=True), 1e-12)
    return np.stack([np.clip(cv2.resize(h, (x.shape[3], x.shape[2]), interpolation=cv2.INTER_CUBIC), 0, 1) for h in heat])


def explain(students, temperatures, view, category):
    """overlay of one view, uint8 RGB [S, S, 3], and the heat map of the answer `category`, as the bytes of a JPEG file."""
    heat = heat_maps(students, temperatures, normalise([view]), np.array([category]))[0]
    return cv2.imencode(".jpg", cv2.cvtColor(overlay(view, heat), cv2.COLOR_RGB2BGR))[1].tobytes()


def overlay(view, heat):
    """The picture and, beside it, the picture under its heat map: uint8 RGB [S, S, 3], float [S, S] -> [S, 2 S, 3]."""
    colours = cv2.cvtColor(cv2.applyColorMap(np.uint8(255 * heat), cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    return cv2.hconcat([np.ascontiguousarray(view), cv2.addWeighted(np.ascontiguousarray(view), 0.5, colours, 0.5, 0)])
