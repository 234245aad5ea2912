"""Run the notebooks, so that the outputs that are committed are those of the code beside them.

python tools/notebooks.py                    all of notebooks/
python tools/notebooks.py notebooks/01-….ipynb
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def run(path: Path) -> nbformat.NotebookNode:
    """Returns a notebook with the outputs of a fresh kernel of this very interpreter, started in an empty folder."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        # The kernel called python3 may belong to any other installation.
        kernel = Path(folder) / "kernels" / "this"
        kernel.mkdir(parents=True)
        command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        (kernel / "kernel.json").write_text(
            json.dumps({"argv": command, "display_name": "this", "language": "python"}), encoding="utf-8"
        )
        work = Path(folder) / "work"
        work.mkdir()
        before = os.environ.get("JUPYTER_PATH")
        os.environ["JUPYTER_PATH"] = folder
        try:
            client = NotebookClient(
                notebook,
                kernel_name="this",
                timeout=240,
                record_timing=False,
                coalesce_streams=True,
                resources={"metadata": {"path": str(work)}},
            )
            client.execute()
        finally:
            if before is None:
                del os.environ["JUPYTER_PATH"]
            else:
                os.environ["JUPYTER_PATH"] = before
    # The kernel's own words on itself differ from machine to machine.
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


if __name__ == "__main__":
    for place in [Path(name) for name in sys.argv[1:]] or sorted(NOTEBOOKS.glob("*.ipynb")):
        nbformat.write(run(place), place)
        print(f"{place}: {place.stat().st_size / 1024:.0f} KB")
