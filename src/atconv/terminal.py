"""What a person sees of a command: lines on a terminal, and none from libraries."""

from __future__ import annotations

import io
import logging
import os
import sys
from typing import NoReturn

from atconv.io import escape_controls

__all__ = ["fail", "log_to_terminal", "printable", "quiet_libraries"]


def fail(line: str, code: int = 2) -> NoReturn:
    """End with a line on stderr."""
    print(printable(line), file=sys.stderr)
    raise SystemExit(code)


def printable(text: str) -> str:
    """Text whose control characters, such as those in names of files, are escaped."""
    return escape_controls(text, kept="\t\n")


class _TerminalHandler(logging.Handler):
    """Information to stdout, warnings to stderr, as they are. Looks both up at each line: bars redirect
    them."""

    def emit(self, record: logging.LogRecord) -> None:
        stream = sys.stderr if record.levelno > logging.INFO else sys.stdout
        print(printable(record.getMessage()), file=stream, flush=True)


def quiet_libraries() -> None:
    """What libraries log is for developers, and hides the one line about bad input."""
    if os.environ.get("ATCONV_DEBUG", "0") == "0" and not sys.warnoptions:
        for name in ("torch", "timm", "accelerate"):
            logging.getLogger(name).setLevel(logging.ERROR)
        for name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY"):  # read when those are imported
            os.environ.setdefault(name, "error")


def log_to_terminal() -> None:
    logger = logging.getLogger("atconv")
    for stream in (sys.stdout, sys.stderr):  # names of files and classes may not fit the locale
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    main_process = os.environ.get("RANK", "0") == "0"
    logger.setLevel(logging.INFO if main_process else logging.WARNING)
    if not any(isinstance(handler, _TerminalHandler) for handler in logger.handlers):
        logger.addHandler(_TerminalHandler())
