"""Kill real runs at random moments, resume them, compare with a run that was never stopped.

    python benchmarks/kill.py --kills 3         # to try it: a few minutes on 2 cores
    python benchmarks/kill.py --kills 30        # recorded in docs/reliability.md

A short run on the sample set saves a checkpoint after every step, so that many kills fall into a
save. Every process is killed (kill -9): of four, one early, one while it writes its report, two at
any moment. The run continues in the next process, until one lives to its end. Then weights,
out-of-fold predictions and scores must be those of the run that was never stopped, byte for byte;
else the exit status is 1.
"""
import argparse
import glob
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), os.pardir)
RUN = ["main.py", "--sample", "--image_size", "32", "--num_folds", "3", "--folds", "0", "2",
       "--num_epochs", "6", "--warmup_epochs", "1", "--batch_size", "32", "--control"]


def start(*args):
    return subprocess.Popen([sys.executable, *args], cwd=ROOT, stdout=subprocess.DEVNULL,
                            stderr=subprocess.PIPE, encoding="utf-8")


def lives(process, seconds):
    """Whether a process is still running after `seconds`; None waits for its end."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return True
    return False


def ends(folder):
    """{name: content} of what must not differ."""
    files = sorted(glob.glob(os.path.join(folder, "saved", "*.pdparams")))
    files += sorted(f for name in ("out_of_fold.csv", "scalars.csv", "mistakes.csv")
                    for f in glob.glob(os.path.join(folder, "logs", "*", name)))
    content = {}
    for path in files:
        with open(path, "rb") as f:
            content[os.path.basename(path)] = f.read()
    return content


def main():
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="how many (default: 30)")
    parser.add_argument("--seed", type=int, default=0, help="of the random moments (default: 0)")
    args = parser.parse_args()
    rng, kills, runs, wrong = random.Random(args.seed), [], 0, 0
    with tempfile.TemporaryDirectory() as where:
        run = [*RUN, "--data_dir", os.path.join(where, "sample"),
               "--cache_dir", os.path.join(where, "cache")]

        def places(name):
            return ["--log_dir", os.path.join(where, name, "logs"),
                    "--save_dir", os.path.join(where, name, "saved")]
        began = time.time()
        process = start(*run, *places("whole"))
        if process.wait():
            sys.exit(process.stderr.read())
        seconds, whole = time.time() - began, ends(os.path.join(where, "whole"))
        print(f"never stopped: {seconds:.0f} s", flush=True)
        killed = os.path.join(where, "killed")
        logs = os.path.join(killed, "logs")
        report = os.path.join(logs, "*", "report.json")
        while len(kills) < args.kills or os.path.exists(logs):
            found = glob.glob(os.path.join(logs, "*", "checkpoint-*", "complete"))
            for left in glob.glob(os.path.join(logs, "*", "*.tmp")) + glob.glob(report):
                os.remove(left)  # of an earlier kill, or it would count twice
            command = [*run, *places("killed")]
            if found:
                command = ["main.py", "--resume", os.path.dirname(os.path.dirname(found[0]))]
            process = start(*command, "--save_minutes", "0")
            if len(kills) < args.kills:
                kind = rng.choice(["early", "late", "any", "any"])
                while kind == "late" and process.poll() is None and not glob.glob(report):
                    time.sleep(0.01)
                longest = dict(early=seconds / 5, late=4, any=seconds)[kind]
                alive = lives(process, rng.uniform(0, longest))
            else:
                alive = lives(process, None)
            if alive:
                process.kill()
                process.wait()
                found = sorted(glob.glob(os.path.join(logs, "*", "checkpoint-*", "complete")))
                unfinished = [d for d in glob.glob(os.path.join(logs, "*", "checkpoint-*"))
                              if os.path.join(d, "complete") not in found]
                if unfinished or glob.glob(os.path.join(logs, "*", "*.tmp")):
                    moment = "in a save"
                elif glob.glob(report):
                    moment = "in the report"
                else:
                    last = os.path.basename(os.path.dirname(found[-1])) if found else ""
                    moment = f"after {last}" if found else "before the first checkpoint"
                kills.append(moment)
                print(f"kill {len(kills)}: {moment}", flush=True)
                if found or not glob.glob(report):
                    continue
            error = process.stderr.read()
            same = (process.returncode == 0 or alive) and ends(killed) == whole
            runs, wrong = runs + 1, wrong + (not same)
            print(f"run {runs} ended: "
                  + ("the same, byte for byte" if same else f"NOT THE SAME\n{error}"), flush=True)
            shutil.rmtree(killed)
    fixed = {moment: kills.count(moment)
             for moment in ("in a save", "before the first checkpoint", "in the report")}
    print(f"{len(kills)} kills of {runs} runs: " + ", ".join(f"{n} {k}" for k, n in fixed.items())
          + f", {len(kills) - sum(fixed.values())} between saves; {wrong} runs ended differently")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
