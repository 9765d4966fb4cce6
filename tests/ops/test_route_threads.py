"""Threads that compute alone leave every other thread's number as it is."""

import subprocess
import sys

from msa.ops.route.threads import on_threads

# in a process of its own: the pool is made once
NUMBERS = """
import threading
import torch
from msa.ops.route.threads import on_threads

torch.set_num_threads(3)
inside = on_threads(lambda part: [torch.get_num_threads() for _ in part], [*range(40)], 8)
later = []
for work in (lambda: later.append(torch.get_num_threads()), lambda: on_threads(list, [*range(40)], 4)):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
print(set(inside), torch.get_num_threads(), later)
"""


def test_threads_that_come_later_have_all_cores():
    """torch gives a new thread the number that was set last, by whomever."""
    done = subprocess.run([sys.executable, "-c", NUMBERS], capture_output=True, text=True, timeout=240, check=True)
    assert done.stdout.strip() == "{1} 3 [3]"


def test_results_come_in_order():
    for workers in (1, 2, 5, 64):
        assert on_threads(lambda part: [2 * item for item in part], [*range(37)], workers) == [*range(0, 74, 2)]
    assert on_threads(list, [], 4) == []
