r"""Ctrl-C and SIGTERM, turned into a request that the loop heeds between two steps."""

import signal
import threading
from contextlib import contextmanager


@contextmanager
def interruptible():
    """Yields an event that the first Ctrl-C or SIGTERM sets, so that no step is cut in half; a second one interrupts
    at once. Only the main thread hears signals; elsewhere the event is never set."""
    interrupted = threading.Event()

    def handle(number, frame):
        if interrupted.is_set():
            raise KeyboardInterrupt
        interrupted.set()

    if threading.current_thread() is not threading.main_thread():
        yield interrupted
        return
    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupted
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
