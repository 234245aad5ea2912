"""The chat service on Modal: `modal deploy deploy/modal_app.py`.

The models are in the image, libraries in a volume (`modal volume put adventures-libraries data/library library`), the
key and the host's name in a secret (`modal secret create adventures ADVENTURES_API_KEY=… ADVENTURES_ALLOW_HOST=…`).
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import modal

PORT = 8080
MODELS = ("all-minilm-l6-v2", "smollm2-135m-instruct")
ROOT = Path(__file__).resolve().parent.parent

app = modal.App("adventures")
libraries = modal.Volume.from_name("adventures-libraries", create_if_missing=True)
image = (
    modal.Image.from_registry("rust:1.95-bookworm", add_python="3.12")
    .apt_install("protobuf-compiler", "libprotobuf-dev")
    .add_local_dir(str(ROOT), "/src", copy=True, ignore=[".git", ".venv", "data", "dist", "target"])
    .run_commands(
        "cd /src && cargo build --release --locked -p adventures-server",
        "cp /src/target/release/adventures-server /usr/local/bin/",
        "pip install /src",
        "rm -rf /src/target /root/.cargo/registry",
    )
    .env({"ADVENTURES_CACHE": "/models", "ADVENTURES_LOG_FORMAT": "json"})
    .run_commands(f"adventures models pull {' '.join(MODELS)}")
)


def command(*, library: str = "/libraries/library", indexes: str = "/libraries/indexes", port: int = PORT) -> list[str]:
    """Returns the command line of the service; without a library the model answers from itself.

    With ADVENTURES_COLBERT in the secret, the name of one of `MODELS`, clients may make ColBERT indexes in the volume.
    """
    arguments = ["adventures-server", "--host", "0.0.0.0", "--port", str(port)]
    if Path(library).is_dir():
        arguments += ["--library", library]
    if os.environ.get("ADVENTURES_COLBERT"):
        arguments += ["--indexes", indexes]
    hosts = os.environ.get("ADVENTURES_ALLOW_HOST")
    return arguments + (["--allow-host", hosts] if hosts else [])


@app.function(
    image=image,
    cpu=4.0,
    memory=4096,
    volumes={"/libraries": libraries},
    secrets=[modal.Secret.from_name("adventures", required_keys=["ADVENTURES_API_KEY", "ADVENTURES_ALLOW_HOST"])],
    timeout=3600,
    scaledown_window=300,
)
@modal.concurrent(max_inputs=64)
@modal.web_server(PORT, startup_timeout=60)
def serve() -> None:
    """Starts the service; Modal passes requests on to its port."""
    subprocess.Popen(command())
