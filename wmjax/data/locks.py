"""One process at a time in a folder: a lock that the death of its holder releases, however it died."""

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from wmjax.errors import UserError

LOCK = ".lock"


@contextlib.contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Waits until no other process or thread is in this block for the same folder, which is made if need be.

    Raises:
        UserError: the file system has no locks.

    """
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = _acquire(folder / LOCK)
    try:
        yield
    finally:
        # While the lock is held: whoever waits on the removed file sees that it is not the lock any more.
        (folder / LOCK).unlink(missing_ok=True)
        os.close(descriptor)


def _acquire(path: Path) -> int:
    """An open descriptor that holds the lock of the file at ``path``."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if path.exists() and os.path.samestat(path.stat(), os.fstat(descriptor)):
                return descriptor
        except FileNotFoundError:
            pass  # removed between the two looks at it
        except OSError as error:
            os.close(descriptor)
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                raise UserError(
                    f"{path.parent}: the file system has no file locks ({error.strerror}); write the store elsewhere, "
                    "then copy it"
                ) from error
            raise
        os.close(descriptor)
