"""Give a folder another's place in one step, where the system can. It knows nothing of outputs.

Source: rename(2), renameat2(2) RENAME_EXCHANGE.
"""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

from ..errors import OutputError, TransferError
from ..fs.io import attempt, explain

_AT_FDCWD = -100

_RENAME_EXCHANGE = 2

_IN_THE_WAY = frozenset({errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR})


def rename_to_new(files: Path, out: Path) -> None:
    """Make a folder the output in one step. Raises: OutputError where OUT is there by now."""
    if os.name == "nt" and out.is_dir():
        out.rmdir()
    try:
        attempt("rename", out, os.rename, files, out)
    except TransferError as error:
        cause = error.__cause__
        if isinstance(cause, OSError) and cause.errno in _IN_THE_WAY:
            raise OutputError(
                f"{out}: came to be while the run was at work; it is left as it is"
            ) from error
        raise


def exchange(one: Path, other: Path) -> bool:
    """Swap two folders in one step; False where the system cannot."""
    library = None if os.name == "nt" else ctypes.CDLL(None, use_errno=True)
    renameat2 = getattr(library, "renameat2", None)
    if renameat2 is None:
        return False
    names = _AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other)
    code = errno.EINTR
    while code == errno.EINTR:
        if renameat2(*names, _RENAME_EXCHANGE) == 0:
            return True
        code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise explain("rename", other, OSError(code, os.strerror(code)))
