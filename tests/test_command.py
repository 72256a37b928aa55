"""The command line of every script answers before Paddle loads."""
import subprocess
import sys

import pytest

from conftest import ROOT, run_program


@pytest.mark.parametrize("options, status", [(["--help"], 0), (["--model-path", "x"], 2)])
@pytest.mark.parametrize("script", ["inference.py", "export.py", "serve.py"])
def test_help_and_mistyped_options_do_not_wait_for_paddle(script, options, status):
    code = ("import runpy, sys\nsys.argv = sys.argv[1:]\ntry:\n"
            "    runpy.run_path(sys.argv[0], run_name='__main__')\n"
            "finally:\n    assert 'paddle' not in sys.modules")
    done = run_program("-c", code, script, *options)
    assert done.returncode == status and "Traceback" not in done.stderr, done.stderr
    assert "usage: " + script in (done.stderr if status else done.stdout)
    assert not status or "(did you mean --model_path?); --help lists" in done.stderr


def test_help_and_typing_errors_do_not_wait_for_paddle():
    for args, status, said in ((["--help"], 0, "--num_folds"), (["--epochs", "3"], 2, "--epochs"),
                               (["--resume", ""], 1, "error: --resume ''")):
        code = ("import runpy, sys; sys.modules['paddle'] = None\n"  # importing it would fail
                f"sys.argv = ['main.py', *{args}]; runpy.run_path('main.py', run_name='__main__')")
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True,
                              text=True)
        assert done.returncode == status and said in done.stdout + done.stderr, done.stderr
