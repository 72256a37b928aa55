"""The losses of one student on one batch: true labels, the teacher's soft labels, the teacher's features.

Hinton, Vinyals, Dean 2015, "Distilling the Knowledge in a Neural Network"; Romero et al. 2015, "FitNets: Hints for
Thin Deep Nets"; mixup: Zhang et al. 2018.
"""
from paddle.nn import functional as F


def distillation_loss(logits, teacher_logits, labels_a, labels_b, lam, class_weights, temperature, alpha):
    """alpha * [lam * CE_w(z, a) + (1 - lam) * CE_w(z, b)] + (1 - alpha) * T^2 * KL(softmax(t/T) || softmax(z/T))

    logits z, teacher_logits t: float32 [B, C], t may be None with alpha 1; labels: int64 [B]; class_weights w: float32 [C].
    The picture is lam * a + (1 - lam) * b, and both networks must have seen the same one. CE_w is the mean weighted by
    the class weights of the labels, KL the mean over the batch; T^2 keeps its gradients comparable at any temperature.
    Returns a 0-d Tensor.
    """
    hard = lam * F.cross_entropy(logits, labels_a, weight=class_weights)
    if lam < 1:
        hard = hard + (1 - lam) * F.cross_entropy(logits, labels_b, weight=class_weights)
    if alpha == 1:  # nothing of the soft labels
        return hard
    soft = F.kl_div(F.log_softmax(logits / temperature), F.softmax(teacher_logits / temperature), reduction="batchmean")
    return alpha * hard + (1 - alpha) * temperature**2 * soft


def feature_loss(guess, features, mean, std):
    """Squared error of the teacher's pooled features, guessed by one linear layer from the student's, mean over all.

    guess, features: float32 [B, D]; mean, std: float32 [D], of the teacher's features over the pictures that the
    student learns from: standardised, every feature counts the same, and guessing the mean costs about 1; cut at 5
    deviations, since a feature that hardly ever fires would outweigh all others when it does. A frozen teacher's D
    features say more of a picture than its C probabilities. Returns a 0-d Tensor.
    """
    return F.mse_loss(guess, ((features - mean) / std).clip(-5, 5))
