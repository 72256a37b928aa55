"""What a student learns from: true labels, the teacher's soft labels, the teacher's features.

Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network"; Romero et al. 2015,
"FitNets: Hints for Thin Deep Nets"; mixup: Zhang et al. 2018.
"""
from paddle.nn import functional as F


def student_loss(student, pooled, logits, labels, labels_b, lam, features):
    """alpha * label loss + (1 - alpha) * T^2 * soft label loss + feature_weight * feature loss.

    student: TrainState; pooled: its features, [B, 1280]; logits [B, C]; labels, labels_b: int64
    [B], of the images lam * a + (1 - lam) * b; features: the teacher's, mixed in the same way,
    [B, 2048], or None without a teacher. Returns a 0-d Tensor.
    """
    s, head = student.settings, student.head
    loss = s.alpha * label_loss(logits, labels, labels_b, lam, student.class_weights)
    if s.alpha < 1:
        teacher_logits = features @ head.weight + head.bias
        soft_loss = soft_label_loss(logits, teacher_logits, s.temperature)
        loss = loss + (1 - s.alpha) * s.temperature**2 * soft_loss
    if s.has_feature_loss:
        regressed = student.regressor(pooled)
        loss = loss + s.feature_weight * feature_loss(regressed, features, head.mean, head.std)
    return loss


def label_loss(logits, labels_a, labels_b, lam, class_weights):
    """lam * CE_w(z, a) + (1 - lam) * CE_w(z, b) of mixed images, a 0-d Tensor.

    logits z: float32 [B, C] for the images lam * a + (1 - lam) * b; labels: int64 [B];
    class_weights w: float32 [C]. CE_w is the mean weighted by the labels' class weights.
    """
    loss = lam * weighted_cross_entropy(logits, labels_a, class_weights)
    if lam < 1:
        loss = loss + (1 - lam) * weighted_cross_entropy(logits, labels_b, class_weights)
    return loss


def weighted_cross_entropy(logits, labels, class_weights):
    """F.cross_entropy(logits, labels, weight=class_weights), which waits for a GPU in Paddle 2."""
    weights = class_weights.index_select(labels)
    return (weights * F.cross_entropy(logits, labels, reduction="none")).sum() / weights.sum()


def soft_label_loss(logits, teacher_logits, temperature):
    """KL(softmax(t / T) || softmax(z / T)), the mean over the batch, a 0-d Tensor.

    logits z, teacher_logits t: float32 [B, C], for the same mixed images. Its gradients shrink with
    1 / T^2, so it is weighted with T^2 (Hinton et al. 2015).
    """
    return F.kl_div(F.log_softmax(logits / temperature), F.softmax(teacher_logits / temperature),
                    reduction="batchmean")


def feature_loss(predicted, features, mean, std):
    """Mean squared error of the teacher's pooled features, regressed from the student's.

    predicted, features: float32 [B, D]; mean, std: float32 [D], of the teacher's features over the
    student's training images. Standardized, every feature counts the same, and predicting the mean
    costs about 1; clipped at 5 deviations, since a feature that rarely fires would outweigh all
    others when it does. Returns a 0-d Tensor.
    """
    return F.mse_loss(predicted, ((features - mean) / std).clip(-5, 5))
