"""The command line of every script: its options, and how it ends."""
import argparse
import difflib
import os
import re
import signal
import sys

from utils import VERSION
from utils.errors import InputError

DASHES = "-‐‑–—−"  # word processors and web pages turn one into another


class Parser(argparse.ArgumentParser):
    """ArgumentParser that shows a script's docstring, and what a mistyped option may mean."""

    def __init__(self, description, **options):
        super().__init__(description=description, allow_abbrev=False,
                         formatter_class=argparse.RawDescriptionHelpFormatter, **options)
        self.add_argument("--version", action="version", version=f"VisionDistillGC {VERSION}")

    def parse_args(self, args=None, namespace=None):
        # argparse itself would first complain that required options are missing
        args = sys.argv[1:] if args is None else args
        unknown = [a for a in args if re.match(rf"[{DASHES}]+[^{DASHES}\d.]", a) and " " not in a
                   and a.split("=")[0] not in self._option_string_actions
                   and not os.path.exists(a)]
        if unknown:
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return super().parse_args(args, namespace)

    def error(self, message):
        """Exit with status 2, with a hint for each option that does not exist."""
        what, _, unknown = message.partition("unrecognized arguments: ")
        if not what:
            message = "unrecognized arguments: " + ", ".join(map(self._hint, unknown.split()))
        super().error(f"{message}; --help lists all options")

    def _hint(self, argument):
        """The argument and the options that it may mean: by letters, words, or their help."""
        name = re.sub(rf"[{DASHES}]", "_", argument.split("=")[0].lower().strip(DASHES))
        options = {a.option_strings[-1].lstrip("-"): a.help for a in self._actions
                   if a.option_strings}
        words = re.compile(rf"\b{re.escape(name.replace('_', ' '))}\b", re.IGNORECASE)
        found = [] if not name[:1].isalpha() else [name] if name in options else (
            difflib.get_close_matches(name, options, 2)
            or [o for o in options if words.search(o.replace("_", " "))]
            or [o for o in options if words.search(options[o])])
        if "data_dir" in options and os.path.isdir(argument):  # `main.py photos`
            found = ["data_dir"]
        meant = " or ".join(f"--{o}" for o in found[:3])
        return f"{argument} (did you mean {meant}?)" if meant else argument


def discard(stream):
    """From here on, what is written to this standard stream (1 or 2) goes nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def run_command(main, memory="close other programs"):
    """Run a script's main(). InputError, OSError and MemoryError become one line and exit status 1.

    memory: what to do when it runs out. A script calls this twice, for its options and its work; in
    between it loads Paddle, and Ctrl-C ends it without a traceback.
    """
    on_ctrl_c = signal.getsignal(signal.SIGINT)
    if on_ctrl_c == signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed before the start, as by `>&-`
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))
        # For file names that the terminal cannot show; line by line, into a file or a pipe as well.
        getattr(sys, name).reconfigure(errors="backslashreplace", line_buffering=True)
    try:
        try:
            main()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has closed it, such as `| head`
        discard(1)  # or Python tries again at the end, and shows a traceback
        sys.exit(141)  # as of a program that the signal SIGPIPE ends
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
    except MemoryError:
        sys.exit(f"error: out of memory; {memory}")
    except KeyboardInterrupt:
        sys.exit(130)
    if on_ctrl_c == signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
