"""What report.html says, in English and Chinese; the notes and report.txt are in English."""

TEXTS = {
    "other": ("中文", "English"),  # the button says what it changes to
    "title": ("Accuracy {accuracy:.1%}", "准确率 {accuracy:.1%}"),
    "run": ("Run {run}: {images} images, each predicted by a student that was not trained on it "
            "(out of fold); 95 % interval {low:.1%} to {high:.1%}.",
            "训练 {run}：共 {images} 张图片，每张都由没有用它训练过的学生模型预测（折外预测）；"
            "95% 置信区间 {low:.1%} 至 {high:.1%}。"),
    "optimistic": (" The epoch was chosen on the same images, so the figure is optimistic.",
                   "最佳轮次也是用这些图片选出的，因此数字偏乐观。"),
    # Columns and rows of the tables; names as in the report's out_of_fold
    "accuracy": ("accuracy (95 % interval)", "准确率（95% 置信区间）"),
    "balanced_accuracy": ("balanced accuracy", "平衡准确率"),
    "student_cross_fitted": ("student, cross-fitted", "学生模型（交叉拟合）"),
    "student": ("student, best epoch", "学生模型（最佳轮次）"),
    "teacher": ("teacher", "教师模型"),
    "control_cross_fitted": ("control (no teacher), cross-fitted", "对照（无教师，交叉拟合）"),
    "control": ("control (no teacher), best epoch", "对照（无教师，最佳轮次）"),
    "largest": ("always the largest category, {name}", "全部预测为最大类别 {name}"),
    "interval": ("{value:.3f} ({low:.3f} to {high:.3f})", "{value:.3f}（{low:.3f} 至 {high:.3f}）"),
    "categories": ("Categories", "各类别"),
    "category": ("category", "类别"),
    "precision": ("precision (95 % interval)", "精确率（95% 置信区间）"),
    "recall": ("recall (95 % interval)", "召回率（95% 置信区间）"),
    "f1": ("F1", "F1"),
    "images": ("images", "图片数"),
    "balanced": ("Balanced accuracy: the mean recall of the categories, so that each counts the "
                 "same.", "平衡准确率是各类别召回率的平均，每个类别权重相同。"),
    "cross_fitted": (" Cross-fitted: each fold at the epoch that was best for the other folds.",
                     "交叉拟合：每一折采用其他各折选出的最佳轮次。"),
    "compared": ("Student against control, on the same images: {errors} errors against "
                 "{other_errors}; accuracy {difference:+.4f} (95 % interval {low:+.4f} to "
                 "{high:+.4f}), exact McNemar test p = {mcnemar_p:.3g}.",
                 "学生模型与对照在相同图片上比较：学生模型错 {errors} 张，"
                 "对照错 {other_errors} 张；准确率相差 {difference:+.4f}"
                 "（95% 置信区间 {low:+.4f} 至 {high:+.4f}），"
                 "精确 McNemar 检验 p = {mcnemar_p:.3g}。"),
    "final": ("The final model learned from all images, so nothing here scores it; expect the "
              "accuracy of the students, {accuracy:.1%}.",
              "最终模型用全部图片训练，没有图片可以评估它；"
              "准确率可按学生模型预期，即 {accuracy:.1%}。"),
    "never_predicted": ("Never predicted: {names}. Add images of these categories, or train longer "
                        "(--num_epochs).",
                        "从未被预测的类别：{names}。请增加这些类别的图片，或延长训练（--num_epochs）。"),
    "notes": ("Notes", "提示（英文）"),
    "notes_explained": ("Read these before you rely on the figures.",
                        "使用以上数字之前请先看这些提示，其中写明了问题和对应的选项。"),
    "confusion_matrix.png": ("Confusion matrix", "混淆矩阵"),
    "confidence.png": ("Confidence", "置信度"),
    "curves.png": ("Training", "训练曲线"),
    "mistakes.png": ("Most confident mistakes, often label errors",
                     "置信度最高的错误预测（往往是标注错误）"),
    "augmented_images.png": ("Five training images, and their augmentations",
                             "五张训练图片及其增强结果"),
    "examples": ("Examples", "示例"),
    "examples_explained": (
        "The most confident correct and wrong predictions of each category, at most {most} in all, "
        "by the student (best epoch) that was not trained on the image. Red marks what counted for "
        "the prediction (Grad-CAM). The map is coarse, 32 pixels to a cell, and may light up at "
        "the borders.",
        "各类别中置信度最高的正确预测和错误预测，总共最多 {most} 张，"
        "都由没有用该图片训练过的学生模型（最佳轮次）给出。"
        "红色表示预测的依据（Grad-CAM）。热力图较粗，每格 32 像素，边缘处也可能发亮。"),
    "correct": (", confidence {confidence:.3f}", "，置信度 {confidence:.3f}"),
    "wrong": (", wrong: {name}, confidence {confidence:.3f}",
              "，误判为 {name}，置信度 {confidence:.3f}"),
    "text": ("Further figures (from report.txt)", "其他指标（摘自 report.txt，英文）"),
    "settings": ("Settings", "设置"),
    "versions": ("Versions", "版本"),
}
