"""Set what numpy, paddle and cv2 read only once, when they load: import this package first."""
import os
import platform
import warnings

VERSION = "0.1.0"  # also in CITATION.cff and CHANGELOG.md; a test compares


def cores(quota_file="/sys/fs/cgroup/cpu.max"):
    """Processor cores for this process, at most a container's quota (--cpus, cgroup 2)."""
    allowed = hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0))
    allowed = allowed or os.cpu_count() or 1
    try:
        with open(quota_file, encoding="ascii") as f:  # "200000 100000", or "max 100000"
            quota, period = map(int, f.read().split())
        return max(1, min(allowed, quota // period))
    except (OSError, ValueError, ZeroDivisionError):
        return allowed


def processor():
    """Maker and model of the processor, as the system names them."""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as f:
            lines = [line.split(":", 1) for line in f.read(4096).splitlines() if ":" in line]
        info = {key.strip(): value.strip() for key, value in lines}
        name = f"{info.get('vendor_id', '')} {info.get('model name', '')}".strip()
        return name or platform.machine()
    return platform.processor()


CORES = cores()
# One thread per operator: students train in one Python thread each, which keeps the cores busier
# than splitting operators and makes weights independent of how many students train at a time.
# The predictor has threads of its own.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The predictor's threads spin for 200 ms after each layer, on cores that the students need; 1 ms is
# 6 % faster in training, 0 ms slower for a single image.
os.environ.setdefault("KMP_BLOCKTIME", "1")
# A file of 109 kB can decode to 5 GB; 120 million pixels are more than phones take
MAX_PIXELS = int(os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", "120000000"))
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # unreadable files are reported by name
os.environ.setdefault("GLOG_minloglevel", "2")
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # ONNX Runtime would report its use
# Paddle's MKL takes its slowest path on AMD unless told what the processor can do: 5 is AVX2 (5
# times as fast), 7 is AVX-512 (a student's step takes 5.2 instead of 7.4 ms on Zen 5).
if "AMD" in processor().replace("AMD64", ""):
    import cv2
    for kind, feature in (("7", 256), ("5", 11)):  # AVX512_SKX and AVX2 in opencv2/core/cvdef.h
        if cv2.checkHardwareSupport(feature):
            os.environ.setdefault("MKL_DEBUG_CPU_TYPE", kind)
warnings.filterwarnings("ignore", message="No ccache found")  # for C++ extensions, not used here
warnings.filterwarnings("ignore", message="When training, we now always track")  # as intended
