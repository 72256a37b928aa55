"""Where a student looked: Grad-CAM heat maps (Selvaraju et al. 2017, arXiv:1610.02391).

    python inference.py --model_path models_saved/best_model_fold0.pdparams \\
        --image_path photo.jpg --explain heat
"""
import cv2
import numpy as np
import paddle
from paddle.nn import functional as F

from utils.transforms import normalize


def heat_maps(students, temperatures, x, categories):
    """How strongly each place of an image supports a category: float32 [B, S, S], 0 to 1.

    x: float32 [B, 3, S, S], normalized; categories: int [B], one per image. The channels of the
    last feature map are weighted by the gradient of the category's calibrated logit and summed, as
    are the students; the negative part is dropped, so a map may be 0 everywhere. The maps are
    coarse: a cell of the feature map is 32 pixels wide.
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
    size = x.shape[3], x.shape[2]
    return np.stack([np.clip(cv2.resize(h, size, interpolation=cv2.INTER_CUBIC), 0, 1)
                     for h in heat])


def overlay(image, heat):
    """The image beside itself under its heat map.

    image: uint8 RGB [S, S, 3]; heat: float [S, S], 0 to 1. Returns uint8 RGB [S, 2 S, 3].
    """
    colors = cv2.cvtColor(cv2.applyColorMap(np.uint8(255 * heat), cv2.COLORMAP_TURBO),
                          cv2.COLOR_BGR2RGB)
    image = np.ascontiguousarray(image)
    return cv2.hconcat([image, cv2.addWeighted(image, 0.5, colors, 0.5, 0)])


def explain(students, temperatures, image, category):
    """The overlay of one image (uint8 RGB [S, S, 3]) for one category, as the bytes of a JPEG."""
    heat = heat_maps(students, temperatures, normalize([image]), np.array([category]))[0]
    drawn = cv2.cvtColor(overlay(image, heat), cv2.COLOR_RGB2BGR)
    return cv2.imencode(".jpg", drawn)[1].tobytes()
