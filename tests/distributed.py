"""A sync by workers of a local Ray, in a process of its own: `python distributed.py DELTA LIBRARY FOLDER [kill]`.

With `kill`, the first worker that embeds ends itself as the system would: the mark in FOLDER says that it has.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cloudpickle
import ray

import words
from adventures import Library
from adventures.distributed import DaftRunner


@dataclass
class Dies(words.WordEmbedder):
    """Ends its process, once in all."""

    mark: str = ""

    def encode(self, texts: list[str], kind: str = "passage") -> words.Encoded:
        try:
            with Path(self.mark).open("x"):
                os.kill(os.getpid(), signal.SIGKILL)
        except FileExistsError:
            pass
        return super().encode(texts, kind)


def main() -> None:
    delta, path, folder, *kill = sys.argv[1:]
    # Workers have neither this file nor that one.
    for module in (words, sys.modules["__main__"]):
        cloudpickle.register_pickle_by_value(module)
    ray.init(num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False)

    def load() -> Any:
        return Dies(mark=f"{folder}/killed") if kill else words.WordEmbedder()

    runner = DaftRunner(load, engine="ray", workers=2, rows=100)
    library = Library.open(path, embedder=words.WordEmbedder())  # type: ignore[arg-type]
    print(json.dumps(asdict(library.sync(delta, id="id", text="{text}", runner=runner))))


if __name__ == "__main__":
    main()
