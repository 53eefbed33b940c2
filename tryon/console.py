"""What every command shows: lines, progress bars, and which libraries it is loading. Imports nothing heavy."""

import gc
import importlib
import logging
import os
import sys
import warnings

from tqdm import tqdm

logger = logging.getLogger(__name__)

LINE_EVERY = 20.0  # seconds between lines of progress in a log
LINE = "{desc}: {n_fmt} of {total_fmt}, {remaining} left"
MODEL_LIBRARIES = ("torch", "diffusers", "transformers")


def on_terminal() -> bool:
    """Whether the output goes to a terminal. The launcher, which reads the driver's output through a pipe, sets
    TRAIN_TERMINAL=1 if it writes to one."""
    return sys.stderr.isatty() or os.environ.get("TRAIN_TERMINAL") == "1"


def is_first_process() -> bool:
    """Whether this process is the first of those of a training, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def progress_bar(total: int, description: str, visible: bool, initial: int = 0) -> tqdm:
    """A bar on a terminal; in a log a line every LINE_EVERY seconds."""
    shown = {"total": total, "initial": initial, "desc": description, "disable": not visible or total == 0}
    if on_terminal():
        return tqdm(**shown, ncols=110, leave=False)
    often = {"delay": LINE_EVERY, "mininterval": LINE_EVERY, "maxinterval": LINE_EVERY, "miniters": 1}
    return tqdm(**shown, **often, bar_format=LINE, file=_LinesOfTheLog(), leave=False)


class _LinesOfTheLog:
    """What tqdm writes to where there is no terminal."""

    def write(self, text: str) -> None:
        if line := text.strip():
            logger.info("%s", line)

    def flush(self) -> None:
        pass


def set_up_logging(is_main_process: bool) -> None:
    """Plain lines on stdout, above the progress bar; only warnings from processes other than the main one."""

    class AboveTheBar(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            tqdm.write(self.format(record), file=sys.stdout)
            sys.stdout.flush()

    handler = AboveTheBar()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO if is_main_process else logging.WARNING, handlers=[handler], force=True)
    for name in ("accelerate", "httpx", "httpx2"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", ".*broadcast_buffers", FutureWarning)  # accelerate knows no other name for it yet


def load_libraries(*names: str) -> None:
    """Says on stderr that these libraries are being loaded, which takes seconds, and loads them.

    Call it once, after everything that can be checked without them. The progress bars and remarks of diffusers and
    transformers, which a user can do nothing about, are silenced; errors stay. Of several processes the first speaks.
    """
    if is_first_process():
        print(f"loading {', '.join(names[:-1])} and {names[-1]} ...", file=sys.stderr, flush=True)
    # Nearly all that is made by imports stays until the process ends. To look for garbage in it would take a sixth of
    # the time here, and two seconds more at the end.
    gc.disable()
    for name in names:
        library = importlib.import_module(name)
        if name in ("diffusers", "transformers"):
            library.utils.logging.set_verbosity_error()
            library.utils.logging.disable_progress_bar()
        if name == "diffusers":
            library.FluxFillPipeline  # noqa: B018 (its parts are imported when they are first asked for)
    if not gc.get_freeze_count():
        gc.freeze()
    gc.enable()
