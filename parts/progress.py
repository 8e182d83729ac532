"""A progress bar: tqdm's on a terminal; where standard error is none, a line now and then."""
import sys

from tqdm import tqdm

EVERY = 30  # seconds between two lines


class Lines:
    """A file for tqdm that makes a line of each of its states, without padding."""

    def write(self, text):
        if text := text.strip():  # tqdm begins with \r, and clears with blanks
            print(text, file=sys.stderr)

    def flush(self):
        sys.stderr.flush()


def progress_bar(*args, leave=False, **options):
    """tqdm(*args, **options), as it suits where it is shown. What is done before the first line is
    due shows nothing."""
    if sys.stderr.isatty():
        return tqdm(*args, leave=leave, **options)
    return tqdm(*args, **options, file=Lines(), mininterval=EVERY, delay=EVERY, leave=False)
