"""Progress of long work on standard error: a bar on a terminal, a plain line every few seconds anywhere else.

Plain lines, because a log or a notebook's output keeps every redraw of a bar.
"""

import sys
import time

_LINE_SECONDS = 10.0


class Progress:
    """`with Progress(total, "step") as progress: progress.update(done, "loss 0.3")`."""

    def __init__(self, total: int, unit: str, shown: bool = True, initial: int = 0):
        self.total, self.initial, self.done = total, initial, initial
        self.start = self.last = time.monotonic()
        self.shown, self.bar = shown, None
        if shown and sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, initial=initial, unit=unit, dynamic_ncols=True, file=sys.stderr)
        self.unit = unit

    def update(self, done: int, facts: str = "") -> None:
        """`done` of `total` are finished; `facts` stands behind the counter."""
        if self.bar is not None:
            self.bar.set_postfix_str(facts, refresh=False)
            self.bar.update(done - self.done)
        self.done = done
        now = time.monotonic()
        if self.shown and self.bar is None and (now - self.last >= _LINE_SECONDS or done == self.total):
            self.last = now
            left = (now - self.start) / max(done - self.initial, 1) * (self.total - done)
            print(f"{self.unit} {done}/{self.total}, {facts}, {_time(left)} left", file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()


def _time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
