"""The same work as a training step here, as others do it.

    echo | python benchmarks/peers.py torch 224     # PyTorch on the CPU: pip install torch==2.13.0
    echo | python benchmarks/peers.py paddle 224    # Paddle as it comes, all in dynamic graph

benchmarks/step.py starts it and asks for one batch at a time. A line on standard input is one batch
of 16 of one fold; the answer is a line of JSON, seconds by part. PyTorch has its own best settings
(channels last, frozen parts traced and their BatchNorm folded, fused Adam; step.py lets it keep its
memory too; torch-half: the teacher in bfloat16, as here where the processor is made for that), and
no augmentations to draw; for Paddle they are drawn by paddle.vision.transforms. None of them stores
what its frozen networks compute, as --stored_augmentations does here; PyTorch could as well, and
would then need its tails alone.
"""
import argparse
import json
import sys
import time

BATCH, FROZEN, CLASSES = 16, 14, 6


def torch_step(size, teacher_type="float32"):
    import torch
    from torch import nn
    from torch.nn import functional as F

    def conv(i, o, k=3, s=1, groups=1, act=None):
        layers = [nn.Conv2d(i, o, k, s, k // 2, groups=groups, bias=False), nn.BatchNorm2d(o)]
        return nn.Sequential(*layers, act(inplace=True)) if act else nn.Sequential(*layers)

    class Residual(nn.Module):
        def __init__(self, main, shortcut, act=nn.Identity()):
            super().__init__()
            self.main, self.shortcut, self.act = main, shortcut, act

        def forward(self, x):
            return self.act(self.main(x) + self.shortcut(x))

    blocks, i = [conv(3, 32, 3, 2, act=nn.ReLU6)], 32  # MobileNetV2
    for t, c, n, s in ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
                       (6, 160, 3, 2), (6, 320, 1, 1)):
        for k in range(n):
            stride = s if k == 0 else 1
            body = nn.Sequential(*([conv(i, i * t, 1, act=nn.ReLU6)] if t > 1 else []),
                                 conv(i * t, i * t, 3, stride, i * t, nn.ReLU6), conv(i * t, c, 1))
            blocks.append(Residual(body, nn.Identity()) if stride == 1 and i == c else body)
            i = c
    blocks.append(conv(320, 1280, 1, act=nn.ReLU6))
    layers, i = [conv(3, 64, 7, 2, act=nn.ReLU), nn.MaxPool2d(3, 2, 1)], 64  # ResNet50
    for w, n, s in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for k in range(n):
            stride = s if k == 0 else 1
            body = nn.Sequential(conv(i, w, 1, act=nn.ReLU), conv(w, w, 3, stride, act=nn.ReLU),
                                 conv(w, 4 * w, 1))
            shortcut = conv(i, 4 * w, 1, stride) if k == 0 else nn.Identity()
            layers.append(Residual(body, shortcut, nn.ReLU(inplace=True)))
            i = 4 * w
    pool = nn.AdaptiveAvgPool2d(1), nn.Flatten()
    last = torch.channels_last
    x = torch.randn(BATCH, 3, size, size).to(memory_format=last)
    y = torch.arange(BATCH) % CLASSES
    teacher_type = getattr(torch, teacher_type)

    def traced(network, kind):
        network = network.eval().to(kind, memory_format=last)
        return torch.jit.optimize_for_inference(torch.jit.trace(network, x.to(kind)))

    with torch.no_grad():
        teacher = traced(nn.Sequential(*layers, *pool), teacher_type)
        prefix = traced(nn.Sequential(*blocks[:FROZEN]), torch.float32)
    tail = nn.Sequential(*blocks[FROZEN:], *pool).train().to(memory_format=last)
    head = nn.Sequential(nn.Linear(1280, 1024), nn.BatchNorm1d(1024), nn.ReLU(), nn.Dropout(0.5),
                         nn.Linear(1024, CLASSES))
    regressor = nn.Linear(1280, 2048)
    learning = [p for m in (tail, head, regressor) for p in m.parameters()]
    optimizer = torch.optim.Adam(learning, 1e-4, weight_decay=1e-4, fused=True)

    def step():
        times = [time.perf_counter()]
        with torch.no_grad():
            features = teacher(x.to(teacher_type)).float()
            times.append(time.perf_counter())
            maps = prefix(x)
        times.append(time.perf_counter())
        pooled = tail(maps)
        (F.cross_entropy(head(pooled), y) + 8 * F.mse_loss(regressor(pooled), features)).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter())
        return dict(zip(("teacher", "prefix", "tail"), (b - a for a, b in zip(times, times[1:]))))
    name = (f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads, "
            f"teacher in {teacher_type}")
    return name, step


def paddle_step(size):
    import numpy as np
    import paddle
    from paddle.nn import functional as F
    from paddle.vision import models
    from paddle.vision import transforms as T
    from PIL import Image
    teacher = models.resnet50(num_classes=CLASSES)
    student = models.mobilenet_v2(num_classes=CLASSES)
    teacher.eval()
    student.train()
    for p in student.features[:FROZEN].parameters():
        p.stop_gradient = True
    learning = [p for p in student.parameters() if not p.stop_gradient]
    optimizer = paddle.optimizer.Adam(1e-4, weight_decay=1e-4, parameters=learning)
    view = T.Compose([T.RandomHorizontalFlip(0.5), T.RandomVerticalFlip(0.3), T.RandomRotation(30),
                      T.RandomCrop(size, 8), T.ColorJitter(0.3, 0.3, 0.3, 0.1), T.ToTensor(),
                      T.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
                      T.RandomErasing(0.2)])
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size, size, 3), np.uint8))
    y = paddle.arange(BATCH) % CLASSES

    def step():
        times = [time.perf_counter()]
        x = paddle.stack([view(picture) for _ in range(BATCH)])
        times.append(time.perf_counter())
        with paddle.no_grad():
            t = teacher(x)
        times.append(time.perf_counter())
        z = student(x)
        soft = F.kl_div(F.log_softmax(z / 4), F.softmax(t / 4), reduction="batchmean")
        (0.5 * F.cross_entropy(z, y) + 0.5 * 16 * soft).backward()
        optimizer.step()
        optimizer.clear_grad()
        times.append(time.perf_counter())
        return dict(zip(("view", "teacher", "student"), (b - a for a, b in zip(times, times[1:]))))
    return f"Paddle {paddle.__version__} as it comes", step


if __name__ == "__main__":
    ways = {"torch": torch_step, "torch-half": lambda size: torch_step(size, "bfloat16"),
            "paddle": paddle_step}
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("framework", choices=ways,
                        help="which this Python must have; the other is not needed")
    parser.add_argument("image_size", type=int, help="pixels, such as 224")
    args = parser.parse_args()
    name, step = ways[args.framework](args.image_size)
    for _ in range(3):  # warms up; PyTorch's traced networks change in their first two
        step()
    print(json.dumps(name), flush=True)
    for _ in sys.stdin:
        print(json.dumps(step()), flush=True)
