"""Copies the tests that cargo built, as it reports them on standard input, to a directory, under their plain names."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path


def main() -> None:
    target = Path(sys.argv[1])
    for line in sys.stdin:
        message = json.loads(line)
        if message.get("reason") == "compiler-artifact" and message.get("executable") and message["profile"]["test"]:
            shutil.copy(message["executable"], target / message["target"]["name"])


if __name__ == "__main__":
    main()
