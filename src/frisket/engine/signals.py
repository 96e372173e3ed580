"""Hold SIGUSR1 and SIGTERM back and ask for them between steps, instead of being interrupted anywhere.

    with held():
        ...                     # train; no signal cuts into a backward pass or a half-written file
        if asked(): save and leave

Our choice. Lightning's own handlers save a checkpoint from inside the handler (any bytecode, mid-backward) or exit with
code 0 and no checkpoint on SIGTERM. A *blocked* signal does neither: it stays pending until we look. The mask is
inherited by threads and forked loader workers, so a signal that Slurm sends to every process kills no worker.
Imports nothing but the standard library, so that the command line can block before numpy and torch start their threads.
"""

import contextlib
import multiprocessing
import signal
import threading
from collections.abc import Iterator

STOP = (signal.SIGUSR1, signal.SIGTERM)  # Slurm's warning (--signal) and its "leave now"

_seen = False


def asked() -> bool:
    """Whether this process has been asked to stop since `held` began. Never blocks; stays True once it was."""
    _drain()
    return _seen


def install() -> None:
    """Point both signals at our flag (again: Lightning replaces the SIGTERM handler when a fit starts).

    The handler matters only where a thread older than `held` exists (a notebook, a test): the kernel may then deliver
    the signal there in spite of our mask.
    """
    if threading.current_thread() is threading.main_thread():
        for number in STOP:
            signal.signal(number, _note)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Block both signals for the duration; restore mask and handlers afterwards. May be nested.

    Child processes of `multiprocessing` born inside (loader workers) are killed at the end: they inherited the mask, so
    the SIGTERM with which Python would end them at exit does not reach them, and Python would wait for ever.
    """
    global _seen
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers; whoever trains in a side thread keeps the process's own
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, STOP)
    handlers = {number: signal.getsignal(number) for number in STOP}
    nested = any(number in mask for number in STOP)
    older = set(multiprocessing.active_children())
    install()
    try:
        yield
    finally:
        if not nested:
            for child in set(multiprocessing.active_children()) - older:
                child.kill()
                child.join()
            _drain()  # a signal after the last step finds nothing left to save
            _seen = False
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _note(number: int, frame: object) -> None:
    global _seen
    _seen = True


def _drain() -> None:
    global _seen
    if signal.sigpending() & set(STOP):
        while signal.sigtimedwait(STOP, 0) is not None:
            _seen = True
