"""Kills writers in the middle of their work, one after the other."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def kill(
    prepare: str, write: str, *, times: int, longest: float, after: Callable[[], None], read: Callable[[], None]
) -> None:
    """Kills as many processes that write without end, while a thread reads without end.

    Args:
        prepare: Python that a process starts with.
        write: Python that it then runs again and again; `rng` is its source of chance.
        times: How many are killed: in its first writing, its second, its third, and so on.
        longest: How many seconds into that at most.
        after: Called after each death.
        read: Called by the thread.
    """
    code = f"""
import random, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
{prepare}
rng = random.Random(int(sys.stdin.readline()))
while True:
    print("go", flush=True)
    {write}
"""
    rng = random.Random(times)
    stop = threading.Event()

    def reading() -> None:
        while not stop.wait(0.03):
            read()

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", code], stdin=-1, stdout=-1, text=True)

    thread = threading.Thread(target=reading)
    thread.start()
    waiting = start()
    try:
        for number in range(times):
            # The next one is started while this one works, for that takes seconds.
            child, waiting = waiting, start()
            assert child.stdin
            assert child.stdout
            child.stdin.write(f"{number}\n")
            child.stdin.flush()
            for _ in range(1 + number % 3):
                assert child.stdout.readline() == "go\n"
            stop.wait(rng.uniform(0, longest))
            child.kill()
            child.communicate()
            after()
    finally:
        waiting.kill()
        waiting.communicate()
        stop.set()
        thread.join()
