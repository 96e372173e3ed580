"""Hold SIGUSR1, SIGTERM and Ctrl-C back and ask for them between steps, instead of being interrupted anywhere.

    with held():
        ...                     # train; no signal cuts into a backward pass or a half-written file
        if asked(): save and leave

Our choice. Lightning's own handlers save a checkpoint from inside the handler (any bytecode, mid-backward) or exit with
code 0 and no checkpoint on SIGTERM; on Ctrl-C it exits with code 1 and none. A *blocked* signal does neither: it stays
pending until we look. The mask is inherited by threads and forked loader workers, so a signal that Slurm, or the
terminal, sends to every process kills no worker. Ctrl-C is looked for by a thread of its own: the second one ends the
process at once, even out of a long step or a collective that hangs, where no Python handler would run.
Imports nothing but the standard library, so that the command line can block before numpy and torch start their threads.
"""

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator

STOP = (signal.SIGUSR1, signal.SIGTERM)  # Slurm's warning (--signal) and its "leave now"
HELD = (*STOP, signal.SIGINT)  # and Ctrl-C
EXIT_INTERRUPTED = 130  # what a shell reports for a program that Ctrl-C ended

_depth = 0  # of nested `held`
_seen = False
_interrupted = False


def asked() -> bool:
    """Whether this process has been asked to stop since `held` began. Never blocks; stays True once it was."""
    _drain()
    return _seen


def interrupted() -> bool:
    """Whether one of the requests was a Ctrl-C: somebody wants the run to end, not to be requeued."""
    return _interrupted


def install() -> None:
    """Point the signals at our flag (again: Lightning replaces the SIGTERM handler when a fit starts).

    The handler matters only where a thread older than `held` exists (a notebook, a test): the kernel may then deliver
    the signal there in spite of our mask.
    """
    if threading.current_thread() is threading.main_thread():
        for number in HELD:
            signal.signal(number, _note)


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Block the signals for the duration; restore mask and handlers afterwards. May be nested.

    Child processes of `multiprocessing` born inside (loader workers) are killed at the end: they inherited the mask, so
    the SIGTERM with which Python would end them at exit does not reach them, and Python would wait for ever.
    """
    global _depth, _seen, _interrupted
    if _depth or threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers; whoever trains in a side thread keeps the process's own
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, HELD)
    handlers = {number: signal.getsignal(number) for number in HELD}
    older = set(multiprocessing.active_children())
    install()
    ended = threading.Event()
    watcher = threading.Thread(target=_watch, args=(ended,), daemon=True)
    watcher.start()
    _depth = 1
    try:
        yield
    finally:
        _depth = 0
        ended.set()
        signal.pthread_kill(watcher.ident or 0, signal.SIGINT)  # wakes it
        watcher.join()
        for child in set(multiprocessing.active_children()) - older:
            child.kill()
            child.join()
        _drain(HELD)  # a signal after the last step finds nothing left to save
        _seen = _interrupted = False
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def _watch(ended: threading.Event) -> None:
    """Wait for Ctrl-C until `ended`."""
    while True:
        signal.sigwait({signal.SIGINT})
        if ended.is_set():
            return
        _note(signal.SIGINT, None)


def _note(number: int, frame: object) -> None:
    global _seen, _interrupted
    if number == signal.SIGINT:
        if _interrupted:
            _tell("ended at once; the same command goes on from the last checkpoint")
            os._exit(EXIT_INTERRUPTED)
        _interrupted = True
        _tell("stopping after this step, with what is done kept; Ctrl-C again ends it at once")
    _seen = True


def _tell(text: str) -> None:
    if os.environ.get("LOCAL_RANK", os.environ.get("SLURM_PROCID", "0")) == "0":  # Ctrl-C reaches every rank
        with contextlib.suppress(OSError):  # the terminal may be gone
            os.write(2, f"\nfrisket: {text}\n".encode())


def _drain(numbers: tuple[signal.Signals, ...] = STOP) -> None:
    global _seen
    if signal.sigpending() & set(numbers):
        while signal.sigtimedwait(numbers, 0) is not None:
            _seen = True
