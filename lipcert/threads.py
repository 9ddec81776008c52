"""Several threads, each of which computes on one: results must not depend on how many there are.

BLAS cuts a product differently for every number of threads, which changes the last bits. So the certifier hands whole
pieces of work (a micro-batch, a layer) to threads that compute alone.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch


@contextlib.contextmanager
def one_thread_each(device: torch.device) -> Iterator[Callable[[Callable, Iterable], Iterator]]:
    """A `map` with as many workers as torch has threads; on an accelerator, and for one thread, the ordinary map."""
    threads = torch.get_num_threads()
    if device.type != "cpu" or threads == 1:
        yield map
        return
    torch.set_num_threads(1)
    pool = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield pool.map
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
