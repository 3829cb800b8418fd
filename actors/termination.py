"""Schedulers of clusters end a job with SIGTERM: that is to end as Ctrl-C does."""

from __future__ import annotations

import signal
import threading


def ends_as_interrupted() -> None:
    """From now on SIGTERM raises KeyboardInterrupt. Ray takes the signal over as it starts: call this again then."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
