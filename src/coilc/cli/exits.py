"""Exit codes and the one place where an exception becomes a sentence on stderr."""

from __future__ import annotations

import sys
import traceback
from enum import IntEnum
from typing import NoReturn

from coilc import settings
from coilc.ir import CoilError, InputError, ParseError
from coilc.runtime import errors as runtime_errors


class Exit(IntEnum):
    """What the shell sees. The README lists them; scripts may rely on the numbers."""

    OK = 0
    FAILED = 1  # a comparison left its tolerance, or the doctor found a fault
    BAD_INPUT = 2  # an option, a file or an array does not fit
    UNSUPPORTED = 3  # the model uses something that coilc cannot represent or lower
    ARTIFACT = 4  # the artifact is damaged, or cannot run on this machine
    INTERNAL = 70  # a bug in coilc
    INTERRUPTED = 130


# The first row that fits decides.
_CODES: tuple[tuple[tuple[type[BaseException], ...], Exit], ...] = (
    ((KeyboardInterrupt,), Exit.INTERRUPTED),
    ((runtime_errors.ArtifactError, runtime_errors.RunError, runtime_errors.StateError), Exit.ARTIFACT),
    ((InputError, runtime_errors.InputError, ParseError, OSError), Exit.BAD_INPUT),
    ((CoilError,), Exit.UNSUPPORTED),
)


def code_of(error: BaseException) -> Exit:
    """The exit code that an exception means."""
    return next((code for kinds, code in _CODES if isinstance(error, kinds)), Exit.INTERNAL)


def sentence_of(error: BaseException) -> str:
    """What to print for an exception, without the word 'error' in front."""
    if isinstance(error, KeyboardInterrupt):
        return "interrupted"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {(error.strerror or str(error)).lower()}"
    if code_of(error) is Exit.INTERNAL:
        text = str(error).strip().split("\n")[0]
        return f"{type(error).__name__}: {text}\n  this is a bug in coilc; COILC_DEBUG=1 shows the traceback"
    return str(error)


def report_and_exit(error: BaseException) -> NoReturn:
    """Print ``coilc: <sentence>`` (and the traceback when ``COILC_DEBUG=1``) and end the process."""
    if settings.DEBUG.get():
        traceback.print_exception(error)
    print(f"coilc: {sentence_of(error)}", file=sys.stderr)
    sys.exit(int(code_of(error)))
