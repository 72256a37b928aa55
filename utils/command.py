"""How every script ends: what the user can mend is one line, not a traceback."""
import sys

from utils.errors import InputError


def run_command(main, memory="close other programs"):
    """Run a script's main(). InputError, OSError and MemoryError become one line and exit status 1.

    memory: what to do when it runs out.
    """
    for stream in (sys.stdout, sys.stderr):
        # For file names that the terminal cannot show; line by line, into a file or a pipe as well.
        stream.reconfigure(errors="backslashreplace", line_buffering=True)
    try:
        main()
    except (InputError, OSError) as error:
        sys.exit(f"error: {error}")
    except MemoryError:
        sys.exit(f"error: out of memory; {memory}")
    except KeyboardInterrupt:
        sys.exit(130)
