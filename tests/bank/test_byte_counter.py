import sys
import threading

from msa.bank import ByteCounter


def test_nothing_is_lost_between_threads():
    counter, before = ByteCounter(), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [threading.Thread(target=lambda: [counter.add(3) for _ in range(5000)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(before)
    assert counter.total == 8 * 5000 * 3
