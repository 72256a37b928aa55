"""Set before numpy, paddle and cv2 load what they read only once: importing anything of this package does it."""
import os
import platform
import warnings

CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor():
    """Maker and model of the processor, as the system names them."""
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as f:
            found = dict(line.split(":", 1) for line in f.read(4096).splitlines() if ":" in line)
        found = {k.strip(): v.strip() for k, v in found.items()}
        return f"{found.get('vendor_id', '')} {found.get('model name', '')}".strip() or platform.machine()
    return platform.processor()


# One thread per operator: the folds train in one Python thread each, which keeps every core busier than operators that split
# up. It also makes a student's weights independent of how many folds run beside it. The predictor has threads of its own.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# After each layer the predictor's threads spin for 200 ms, in case another one follows, and take a core from the folds, which
# come next. With 1 ms the folds take 6 % less time; with 0 the predictor takes longer, 7 ms instead of 4.5 for one picture.
os.environ.setdefault("KMP_BLOCKTIME", "1")
# A 109 kB file can decode to 5 GB. 120 million pixels are more than phones take.
MAX_PIXELS = int(os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", "120000000"))
os.environ.setdefault("OPENCV_LOG_LEVEL", "SILENT")  # bad files are reported by us, by name
os.environ.setdefault("GLOG_minloglevel", "2")
# Paddle's bundled MKL takes its slow path on AMD unless told what the processor can: 5 is AVX2 (5 times as fast), 7 is
# AVX-512 (on a Zen 5 a product of matrices 235 instead of 125 gigaflops a core, and a picture for a student to learn from
# 5.2 ms instead of 7.4; no other AMD processor with AVX-512 was tried).
if "AMD" in processor().replace("AMD64", ""):
    import cv2
    for kind, number in (("7", 256), ("5", 11)):  # of AVX512_SKX and AVX2 in opencv2/core/cvdef.h
        if cv2.checkHardwareSupport(number):
            os.environ.setdefault("MKL_DEBUG_CPU_TYPE", kind)
warnings.filterwarnings("ignore", message="No ccache found")  # which only Paddle's C++ extensions would use
warnings.filterwarnings("ignore", message="When training, we now always track")  # which is what we want
