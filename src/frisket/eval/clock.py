"""The clock and the switches of every measurement of time: latency's and the bench's.

Use     seconds = timer(device)(call, 10)                     # of ten calls
        with switched(threads=1, tf32=False): …
Source  our choice: CUDA events on a GPU, from an idle stream to the end of the work; wall time on a CPU, or, where one
        thread does all, that thread's own CPU time, which a busy machine disturbs least.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch


def timer(device: torch.device, *, one_thread: bool = False) -> Callable[..., float]:
    """A function (call, number=1) -> seconds that `number` calls took. one_thread: count this thread's CPU time."""
    tick = time.thread_time if one_thread else time.perf_counter

    def passed(call: Callable[[], Any], number: int = 1) -> float:
        start = tick()
        for _ in range(number):
            call()
        return tick() - start

    def events(call: Callable[[], Any], number: int = 1) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize(device)
        begin.record(torch.cuda.current_stream(device))
        for _ in range(number):
            call()
        end.record(torch.cuda.current_stream(device))
        torch.cuda.synchronize(device)
        return begin.elapsed_time(end) / 1000  # it tells milliseconds

    return events if device.type == "cuda" else passed


@contextmanager
def switched(*, threads: int | None = None, tf32: bool | None = None) -> Iterator[None]:
    """CPU threads, and TF32 for convolutions and matrix products alike, within the context; None: as they are."""
    before = torch.get_num_threads(), torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32
    if threads is not None:
        torch.set_num_threads(threads)
    if tf32 is not None:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before[1:]
