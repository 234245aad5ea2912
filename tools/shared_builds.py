"""Fails where what the wheel and the service share would be built twice, with other features each.

    python tools/shared_builds.py

Cargo unites the features of the crates that it is told to build. A crate of which only one side wants more would be
built again, and with it all that depend on it: for the service that is Lance. What is listed here is asked of the other
side too, as adventures-py/Cargo.toml and adventures-server/Cargo.toml show.
"""

from __future__ import annotations

import subprocess
import sys

# What is linked, and what runs while it is built: a crate may be there once for each.
EDGES = ("normal,no-proc-macro", "normal,build")


def crates(package: str, edges: str) -> set[str]:
    """Returns what a package is made of, a line each: crate, version, features."""
    command = ["cargo", "tree", "--locked", "--package", package, "--edges", edges, "--prefix", "none"]
    tree = subprocess.run([*command, "--format", "{p} {f}"], check=True, capture_output=True, text=True).stdout
    return {line.removesuffix(" (*)").strip() for line in tree.splitlines() if line.strip()}


def name(crate: str) -> str:
    """Returns crate and version."""
    return " ".join(crate.split()[:2])


def main() -> None:
    alone = []
    for edges in EDGES:
        wheel, service = crates("adventures-py", edges), crates("adventures-server", edges)
        shared = {name(crate) for crate in crates("adventures", edges)}
        for crate in sorted(crate for crate in wheel - service if name(crate) in shared):
            others = sorted(other for other in service if name(other) == name(crate))
            alone.append(f"the wheel builds {crate}\n  the service {' and '.join(others)}")
    sys.exit("\n".join(alone) or None)


if __name__ == "__main__":
    main()
