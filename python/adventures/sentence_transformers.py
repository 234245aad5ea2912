"""`SentenceTransformer` as the package of that name has it, without torch: `encode` gives numpy arrays."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from adventures._adventures import Embedder

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from os import PathLike

    from numpy.typing import ArrayLike, NDArray

__all__ = ["SentenceTransformer"]

Similarity = Literal["cosine", "dot", "euclidean", "manhattan"]
_SIMILARITIES = ("cosine", "dot", "euclidean", "manhattan")
# What its users may pass and what we take of it: these values, which change nothing.
_IGNORED: dict[str, tuple[object, ...]] = {
    "modules": (None,),
    "trust_remote_code": (False,),
    "cache_folder": (None,),
    "local_files_only": (False,),
    "token": (None,),
    "use_auth_token": (None,),
    "model_kwargs": (None, {}),
    "tokenizer_kwargs": (None, {}),
    "config_kwargs": (None, {}),
    "model_card_data": (None,),
    "backend": ("torch",),
    "output_value": ("sentence_embedding",),
    "precision": ("float32",),
    "convert_to_numpy": (True,),
    "convert_to_tensor": (False,),
    "pool": (None,),
    "chunk_size": (None,),
}
# Texts between two looks at the bar.
_STEP = 1024


class SentenceTransformer:
    """A sentence embedding model with sentence-transformers' methods, over an `Embedder`.

    As there, a text has a prompt only where `prompt_name`, `prompt` or a default of the checkpoint gives it one, and
    vectors are of unit length only where the checkpoint says so or `normalize_embeddings` does. What is not supported
    is refused by name.

    Args:
        model_name_or_path: As `Embedder` takes it.
        device: `None` or `"cpu"`.
        prompts: What is put before texts, by name; those of the checkpoint and of the catalogue are there too.
        default_prompt_name: Which of them texts have where no other is named.
        similarity_fn_name: What `similarity` computes; what the checkpoint says by default, else the cosine.
        revision: The branch, tag or commit of a Hugging Face id.
        truncate_dim: How many numbers of a vector are kept.
        threads: How many threads compute.
        others: Other arguments of the original, with their defaults.
    """

    def __init__(
        self,
        model_name_or_path: str | PathLike[str],
        *,
        device: str | None = None,
        prompts: Mapping[str, str] | None = None,
        default_prompt_name: str | None = None,
        similarity_fn_name: Similarity | None = None,
        revision: str | None = None,
        truncate_dim: int | None = None,
        threads: int | None = None,
        **others: Any,
    ) -> None:
        _refuse(others, "SentenceTransformer")
        options: dict[str, Any] = {
            "revision": revision,
            "device": device or "auto",
            "threads": threads,
            "normalize": False,
        }
        embedder = Embedder(model_name_or_path, **options)
        stated = {"query": embedder.prompts["query"], "document": embedder.prompts["passage"]}
        if embedder.prompts["passage"]:
            # What has no prompt is embedded without.
            embedder = Embedder(model_name_or_path, passage_prefix="", **options)
        self.embedder = embedder
        config = _json(Path(embedder.path) / "config_sentence_transformers.json", {})
        modules = _json(Path(embedder.path) / "modules.json", [])
        self._normalizes = any(module["type"].endswith("Normalize") for module in modules)
        self.prompts: dict[str, str] = {**stated, **config.get("prompts", {}), **(prompts or {})}
        self.default_prompt_name: str | None = default_prompt_name or config.get("default_prompt_name")
        if self.default_prompt_name is not None:
            self._prompt(self.default_prompt_name, None)
        self.similarity_fn_name: str = similarity_fn_name or config.get("similarity_fn_name") or "cosine"
        if self.similarity_fn_name not in _SIMILARITIES:
            known = ", ".join(_SIMILARITIES)
            raise ValueError(f"similarity_fn_name={self.similarity_fn_name!r}: expected one of {known}")
        self.truncate_dim = self._checked(truncate_dim)

    @property
    def max_seq_length(self) -> int:
        """How many tokens of a text are read at most."""
        return self.embedder.max_tokens

    @property
    def device(self) -> str:
        """Where it runs."""
        return self.embedder.device

    def get_sentence_embedding_dimension(self) -> int:
        """Returns the length of a vector."""
        return self.truncate_dim or self.embedder.dim

    def encode(
        self,
        sentences: str | Sequence[str] | NDArray[np.str_],
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        *,
        device: str | None = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        **others: Any,
    ) -> NDArray[np.float32]:
        """Returns `(n, dim)` vectors of texts, `(dim,)` of a single one.

        Args:
            sentences: The texts.
            prompt_name: Which of `prompts` is put before each.
            prompt: What is put before each; counts more than `prompt_name`.
            batch_size: For callers of the original: nothing is padded, so there is no size to choose.
            show_progress_bar: Whether to show a bar on stderr; not by default.
            device: `None`, or where the model is.
            normalize_embeddings: Whether to make vectors of unit length.
            truncate_dim: How many numbers of a vector are kept; those of the model by default.
            others: Other arguments of the original, with their defaults.

        Raises:
            NotImplementedError: An argument has a value that is not supported.
            ValueError: There is no such prompt; a number is out of range.

        Warns:
            TruncationWarning: Texts were longer than `max_seq_length` and were cut.
        """
        _refuse(others, "encode")
        if device not in (None, self.device):
            raise NotImplementedError(f"encode(device={device!r}): the model is on {self.device}")
        if isinstance(batch_size, bool) or not isinstance(batch_size, int) or batch_size < 1:
            raise ValueError(f"batch_size must be a whole number from 1 on, not {batch_size!r}")
        dim = self._checked(truncate_dim) or self.truncate_dim
        before = self._prompt(prompt_name or self.default_prompt_name, prompt)
        single = isinstance(sentences, str)
        texts = [sentences] if isinstance(sentences, str) else list(sentences)
        if before:
            for at, text in enumerate(texts):
                if not isinstance(text, str):
                    raise TypeError(f"sentences[{at}] must be a string, not {type(text).__name__}")
            texts = [before + text for text in texts]
        vectors = self._embed(texts, shown=bool(show_progress_bar))
        if self._normalizes:
            vectors = _unit(vectors)
        if dim is not None:
            vectors = vectors[:, :dim]
        if normalize_embeddings and (dim is not None or not self._normalizes):
            vectors = _unit(vectors)
        return vectors[0] if single else vectors

    def encode_query(self, sentences: str | Sequence[str], **options: Any) -> NDArray[np.float32]:
        """Returns `encode` with the prompt of queries."""
        return self._encode_as(("query",), sentences, options)

    def encode_document(self, sentences: str | Sequence[str], **options: Any) -> NDArray[np.float32]:
        """Returns `encode` with the prompt of documents."""
        return self._encode_as(("document", "passage", "corpus"), sentences, options)

    def similarity(self, embeddings1: ArrayLike, embeddings2: ArrayLike) -> NDArray[np.float32]:
        """Returns `(n, m)`: how alike each pair of vectors is, by `similarity_fn_name`; higher is more alike."""
        left, right = (np.atleast_2d(np.asarray(each, np.float32)) for each in (embeddings1, embeddings2))
        if self.similarity_fn_name in ("euclidean", "manhattan"):
            order = 2 if self.similarity_fn_name == "euclidean" else 1
            rows = [-np.linalg.norm(right - row, ord=order, axis=1) for row in left]
            return np.array(rows, np.float32).reshape(len(left), len(right))
        if self.similarity_fn_name == "cosine":
            left, right = _unit(left), _unit(right)
        found: NDArray[np.float32] = left @ right.T
        return found

    def _encode_as(
        self, names: tuple[str, ...], sentences: str | Sequence[str], options: dict[str, Any]
    ) -> NDArray[np.float32]:
        if "prompt" not in options and "prompt_name" not in options:
            options = {**options, "prompt_name": next((name for name in names if self.prompts.get(name)), None)}
        return self.encode(sentences, **options)

    def _embed(self, texts: list[str], *, shown: bool) -> NDArray[np.float32]:
        if not shown or len(texts) <= _STEP:
            return self.embedder.embed(texts)
        from tqdm import tqdm

        parts = []
        with tqdm(total=len(texts), desc="encode", unit=" texts", file=sys.stderr, dynamic_ncols=True) as bar:
            for start in range(0, len(texts), _STEP):
                parts.append(self.embedder.embed(texts[start : start + _STEP]))
                bar.update(len(parts[-1]))
        return np.concatenate(parts)

    def _prompt(self, name: str | None, prompt: str | None) -> str:
        if prompt is not None or name is None:
            return prompt or ""
        if name not in self.prompts:
            known = ", ".join(map(repr, self.prompts)) or "none"
            raise ValueError(f"no prompt {name!r}; there are {known}")
        return self.prompts[name]

    def _checked(self, dim: int | None) -> int | None:
        whole = isinstance(dim, int) and not isinstance(dim, bool)
        if dim is not None and not (whole and 1 <= dim <= self.embedder.dim):
            raise ValueError(f"truncate_dim must be from 1 to {self.embedder.dim}, not {dim!r}")
        return dim


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    return unit


def _refuse(others: dict[str, Any], where: str) -> None:
    for name, value in others.items():
        if name not in _IGNORED:
            raise TypeError(f"{where} has no argument {name!r}")
        if not any(value is allowed or value == allowed for allowed in _IGNORED[name]):
            raise NotImplementedError(f"{where}({name}={value!r}): not supported; it is {_IGNORED[name][0]!r} here")


def _json(path: Path, default: Any) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return default
    except ValueError as error:
        raise ValueError(f"{path} is broken: {error}") from error
