"""The Rust core: what computes."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from os import PathLike
from types import TracebackType
from typing import Any, Literal, Self, TypedDict, final, type_check_only

import numpy as np
import pyarrow as pa
from numpy.typing import ArrayLike, NDArray

from adventures.ranking import Ranking

__all__ = [
    "NOT_FOUND",
    "AdventuresError",
    "BusyError",
    "CitationFilter",
    "ColBERT",
    "Embedder",
    "EmbeddingStream",
    "Embeddings",
    "Generation",
    "GenerationStats",
    "Generator",
    "HeatMap",
    "IndexWriter",
    "MultiVectorIndex",
    "Profile",
    "Prompt",
    "Reranker",
    "Scores",
    "TokenLogprob",
    "TokenVectors",
    "TruncationWarning",
    "__version__",
    "leans",
]

__version__: str

class AdventuresError(Exception):
    """What fails inside adventures and is not the caller's doing."""

class BusyError(AdventuresError):
    """No room now; the same call may go through later."""

class TruncationWarning(UserWarning):
    """Texts were longer than the model reads and were cut."""

@final
class Embeddings:
    """The vectors of some texts and what was read to make them."""

    @property
    def vectors(self) -> NDArray[np.float32]:
        """`(n, dim)`, unit rows."""
    @property
    def tokens(self) -> NDArray[np.uint32]:
        """`(n,)`: how many tokens of each text were read, special tokens and prefix included."""
    @property
    def truncated(self) -> list[int]:
        """The indices of the texts that were longer than `max_tokens` and were cut."""

@final
class EmbeddingStream:
    """An iterator over the `Embeddings` of some texts at a time, from `Embedder.encode_stream`."""

    def __iter__(self) -> Self: ...
    def __next__(self) -> Embeddings: ...

@final
class Embedder:
    """A sentence embedding model, on the CPU: of the BERT family, or a decoder with the adapters of LLM2Vec.

    Encoders are BERT, RoBERTa, XLM-RoBERTa, CamemBERT, MPNet, ModernBERT, Nomic's BERT and GTE's (`new`), as their
    `config.json` names them. They are our own: sequences are packed end to end, never padded, so a vector does not
    depend on what is embedded beside it. A decoder (Mistral, Llama, …) reads as LLM2Vec
    (https://arxiv.org/abs/2404.05961) has it: every token sees all others, texts of more than 400 tokens are cut
    between words, the text is the user's turn where model or adapter say that they are of one of LLM2Vec's instruct
    models (`mistralai/Mistral-7B-Instruct-v0.2`, …), and the vector is the mean over the text's own tokens, of unit
    length here. One embedder serves any number of threads; the GIL is released while it computes, and Ctrl-C stops
    it.

    Args:
        model: A name of the catalogue (`adventures models list`), a Hugging Face id, or a directory with `config.json`,
            `tokenizer.json` and safetensors. A directory or id with `adapter_config.json` is a LoRA adapter of PEFT's;
            the model that it names, a path or an id, is found with it. `model+adapter` is a model and its `adapter`.
        revision: The branch, tag or commit of a Hugging Face id.
        device: `"auto"`, which is the CPU, `"cpu"`, `"cuda"` or `"cuda:N"`, where `adventures-cuda` is installed. What
            this build or machine lacks is an error, never a silent run on the CPU.
        threads: How many threads compute; all that the container grants by default.
        max_tokens: The longest text in tokens, prefix and special tokens included; what the checkpoint states by
            default.
        query_prefix: What is put before a query; by default what the catalogue or the checkpoint states. LLM2Vec calls
            it an instruction, and leaves it out of the mean.
        passage_prefix: What is put before a passage, likewise.
        adapter: A LoRA adapter, named as a model is, to merge into a decoder after the adapter that `model` may be.
            `name` and `revision` tell of it.
        quantize: Rounds a decoder's matrices as it is loaded: `"q8_0"`, 8.5 bits a weight, or `"q4_k"`, 4.5 bits (rows
            that are no multiple of 256: Q5_0); `revision` tells of it. What adapters change takes 32 bits otherwise.
        precision: What an encoder's products are rounded to: `"f32"`, nothing; `"bf16x2"`, where the CPU has AMX, two
            bfloat16 for each number, 16 of its bits; `"bf16"`; `"int8"`, with a scale for 64 numbers of each token and
            each row of weights, and the products for queries, keys and values in bfloat16 or f32. Of all-MiniLM-L6-v2,
            a text's cosine to f32 is 0.99999, 0.9999 and 0.999 at least. `"auto"` is the fastest of this CPU: `"bf16"`
            with AMX, else `"int8"` with AVX-512 VNNI, else `"bf16"` with AVX-512 BF16, else `"f32"`. `revision` tells
            of it, as these are other vectors.
        dim: How many numbers of a vector are kept, the first ones: for models that were trained so that these suffice
            (Matryoshka embeddings).
        normalize: Whether vectors are made of unit length; `revision` tells where not.

    Raises:
        FileNotFoundError: The model, or a file of it, is not there.
        NotImplementedError: The architecture, pooling or device is not supported.
        ValueError: An argument or a file is not what it should be.
    """

    def __new__(
        cls,
        model: str | PathLike[str],
        *,
        revision: str | None = None,
        device: str = "auto",
        threads: int | None = None,
        max_tokens: int | None = None,
        query_prefix: str | None = None,
        passage_prefix: str | None = None,
        adapter: str | PathLike[str] | None = None,
        quantize: Literal["q8_0", "q4_k"] | None = None,
        precision: Literal["f32", "bf16x2", "bf16", "int8", "auto"] = "f32",
        dim: int | None = None,
        normalize: bool = True,
    ) -> Self: ...
    @property
    def name(self) -> str:
        """The catalogue name, the Hugging Face id, or the directory's name."""
    @property
    def revision(self) -> str:
        """The commit or content hash; empty where unknown. Those of model and adapters, and what rounds, are joined."""
    @property
    def path(self) -> str:
        """The directory that the model was read from, without its adapters."""
    @property
    def dim(self) -> int:
        """The length of a vector."""
    @property
    def max_tokens(self) -> int:
        """How many tokens of a text are read at most, prefix and special tokens included."""
    @property
    def pooling(self) -> str:
        """`"mean"` or `"cls"`: how token vectors become one."""
    @property
    def prompts(self) -> dict[str, str]:
        """What is put before a text, by kind: `{"query": …, "passage": …}`."""
    @property
    def precision(self) -> Literal["f32", "bf16x2", "bf16", "int8"]:
        """What products are rounded to."""
    @property
    def threads(self) -> int:
        """How many threads compute."""
    @property
    def device(self) -> str:
        """Where it runs."""
    def embed(self, texts: str | Iterable[str], kind: Literal["query", "passage"] = "passage") -> NDArray[np.float32]:
        """Returns `(n, dim)` unit rows in the order of `texts`; a single `str` is one row.

        Warns:
            TruncationWarning: Some texts were longer than `max_tokens` and were cut; `encode` says which.
        """
    def encode(self, texts: str | Iterable[str], kind: Literal["query", "passage"] = "passage") -> Embeddings:
        """Returns the vectors of `embed` with token counts and the texts that were cut."""
    def embed_arrow(
        self, texts: pa.Array[Any] | pa.ChunkedArray[Any], kind: Literal["query", "passage"] = "passage"
    ) -> pa.FixedSizeListArray[Any]:
        """Returns the rows of `embed` for Arrow strings, as Arrow; no Python object is made of any text or number.

        Raises:
            ValueError: A text is null.

        Warns:
            TruncationWarning: As `embed` does.
        """
    def encode_stream(
        self, texts: Iterable[str], kind: Literal["query", "passage"] = "passage", *, batch: int = 4096
    ) -> EmbeddingStream:
        """Returns what `encode` does, `batch` texts at a time, read as they are needed: for more than fits memory."""
    def count_tokens(self, texts: str | Iterable[str], kind: Literal["query", "passage"] = "passage") -> list[int]:
        """Returns how many tokens each text has, uncut, prefix and special tokens included."""
    def split(self, texts: str | Iterable[str], *, max_tokens: int | None = None, overlap: int = 0) -> list[list[str]]:
        """Cuts each text into pieces that fit, between paragraphs, else sentences, words or characters.

        Args:
            texts: The texts; one that fits is one piece, unchanged.
            max_tokens: The longest piece, prefix and special tokens included; what the model reads by default.
            overlap: How many tokens neighbours may share.
        """
    def split_spans(
        self, texts: str | Iterable[str], *, max_tokens: int | None = None, overlap: int = 0
    ) -> list[list[tuple[int, int]]]:
        """Returns where the pieces of `split` are: a piece is `text[start:end]`. Arguments are those of `split`."""

@final
class Scores:
    """How well some documents answer a query, and what was read to tell."""

    @property
    def scores(self) -> NDArray[np.float32]:
        """`(n,)`; higher is better."""
    @property
    def tokens(self) -> NDArray[np.uint32]:
        """`(n,)`: how many tokens were read of each document with its query, special tokens included."""
    @property
    def truncated(self) -> list[int]:
        """The indices of the documents that were longer than `max_tokens` with their query; the longer was cut."""

@final
class Reranker:
    """A cross-encoder, on the CPU: reads a query and a document together and says how well they fit.

    An encoder (see `Embedder`) with a classifier of one label, as sentence-transformers' `CrossEncoder` has it:
    ms-marco-MiniLM, bge-reranker, gte-reranker-modernbert. A pair is read as the tokenizer's own template has it;
    of one that is too long, the longer of both is cut. Pairs are packed end to end, never padded, so a score does
    not depend on what is scored beside it. One reranker serves any number of threads; the GIL is released while it
    computes, and Ctrl-C stops it.

    Args:
        model: A name of the catalogue, a Hugging Face id, or a directory with `config.json`, `tokenizer.json` and
            safetensors.
        revision: The branch, tag or commit of a Hugging Face id.
        device: `"auto"`, which is the CPU, `"cpu"`, `"cuda"` or `"cuda:N"`, where `adventures-cuda` is installed.
        threads: How many threads compute; all that the container grants by default.
        max_tokens: The longest query and document together, in tokens, special tokens included; what the checkpoint
            states by default.
        precision: What products are rounded to, as `Embedder` has it.
        activation: What makes a score of the model's logit: `"sigmoid"`, scores from 0 to 1, or `"none"`. What the
            checkpoint states by default, as sentence-transformers reads it; a sigmoid where it states nothing.
        model_type: `"cross-encoder"`, or `"colbert"` for a model as `ColBERT` reads it; what its files show
            by default.

    Raises:
        FileNotFoundError: The model, or a file of it, is not there.
        NotImplementedError: The architecture or device is not supported.
        ValueError: An argument or a file is not what it should be; the model has several labels.
    """

    def __new__(
        cls,
        model: str | PathLike[str],
        *,
        revision: str | None = None,
        device: str = "auto",
        threads: int | None = None,
        max_tokens: int | None = None,
        precision: Literal["f32", "bf16x2", "bf16", "int8", "auto"] = "f32",
        activation: Literal["sigmoid", "none"] | None = None,
        model_type: Literal["cross-encoder", "colbert"] | None = None,
    ) -> Self: ...
    @property
    def name(self) -> str:
        """The catalogue name, the Hugging Face id, or the directory's name."""
    @property
    def revision(self) -> str:
        """The commit or content hash; empty where unknown."""
    @property
    def path(self) -> str:
        """The directory that the model was read from."""
    @property
    def model_type(self) -> Literal["cross-encoder", "colbert"]:
        """How it compares."""
    @property
    def max_tokens(self) -> int:
        """How many tokens of a query and a document are read at most, special tokens included."""
    @property
    def precision(self) -> Literal["f32", "bf16x2", "bf16", "int8"]:
        """What products are rounded to."""
    @property
    def activation(self) -> Literal["sigmoid", "none"]:
        """What makes a score of the model's logit."""
    @property
    def threads(self) -> int:
        """How many threads compute."""
    @property
    def device(self) -> str:
        """Where it runs."""
    def score(self, query: str, doc: str) -> float:
        """Returns how well a document answers `query`; higher is better.

        Warns:
            TruncationWarning: As `scores` does.
        """
    def scores(self, query: str, docs: str | Iterable[str]) -> NDArray[np.float32]:
        """Returns how well each document answers `query`, `(n,)`, in their order.

        Warns:
            TruncationWarning: Some documents were longer than `max_tokens` with the query; `compare` says which.
        """
    def compare(self, query: str, docs: str | Iterable[str]) -> Scores:
        """Returns the numbers of `scores` with token counts and the documents that were cut."""
    def rank(
        self,
        query: str,
        docs: str | Iterable[str],
        doc_ids: Sequence[int | str] | None = None,
        metadata: Sequence[dict[str, Any]] | None = None,
    ) -> Ranking:
        """Returns the documents in the order of their scores, best first; of equals, the one given first.

        Args:
            query: The question.
            docs: The documents; of none, the ranking is empty.
            doc_ids: What to call them; their positions by default.
            metadata: What is returned along with each.

        Raises:
            ValueError: `doc_ids` or `metadata` are not as many as the documents; an id is there twice.

        Warns:
            TruncationWarning: As `scores` does.
        """

@final
class TokenVectors:
    """The vectors of some texts' tokens, end to end; as a sequence, those of each text, `(tokens, dim)`, not copied."""

    @property
    def vectors(self) -> NDArray[np.float32]:
        """`(tokens, dim)`, of all texts."""
    @property
    def offsets(self) -> NDArray[np.int64]:
        """`(texts + 1,)`: text `i` has the rows `offsets[i]` to `offsets[i + 1]`."""
    @property
    def truncated(self) -> list[int]:
        """The indices of the texts that were too long and were cut."""
    def __len__(self) -> int: ...
    def __getitem__(self, at: int, /) -> NDArray[np.float32]: ...

@final
class HeatMap:
    """A query beside a document, token by token."""

    @property
    def query_tokens(self) -> list[str]:
        """The query's tokens, as the vocabulary has them, `[MASK]` among them."""
    @property
    def doc_tokens(self) -> list[str]:
        """Those tokens of the document that have vectors."""
    @property
    def similarities(self) -> NDArray[np.float32]:
        """`(query_tokens, doc_tokens)`: the product of each pair; the sum of its rows' largest is the score."""

@final
class ColBERT:
    """A late-interaction model (https://arxiv.org/abs/2004.12832), on the CPU: a vector for each token.

    Reads the checkpoints of https://github.com/stanford-futuredata/ColBERT (`linear.weight` beside BERT's weights, with
    or without `artifact.metadata`) and of https://github.com/lightonai/pylate (a Dense module). Queries are filled up
    with `[MASK]` to `query_maxlen` tokens, which are not attended to unless the checkpoint says so; punctuation of
    documents is read but has no vectors, unless it says otherwise. Sequences are packed, never padded, so vectors do
    not depend on what is embedded beside them. One model serves any number of threads; the GIL is released while it
    computes, and Ctrl-C stops it.

    Args:
        model: A Hugging Face id, or a directory with `config.json`, `tokenizer.json` and safetensors.
        revision: The branch, tag or commit of a Hugging Face id.
        device: `"auto"`, which is the CPU, `"cpu"`, `"cuda"` or `"cuda:N"`, where `adventures-cuda` is installed.
        threads: How many threads compute; all that the container grants by default.
        query_maxlen: How many tokens a query has, mark and special tokens included; what the checkpoint states by
            default, else 32.
        doc_maxlen: How many tokens of a document are read at most, likewise; else 220 as Stanford's ColBERT has it, or
            PyLate's 180.
        precision: What the encoder's products are rounded to, as of `Embedder`; `revision` tells of it.

    Raises:
        FileNotFoundError: The model, or a file of it, is not there.
        NotImplementedError: The architecture or device is not supported.
        ValueError: An argument or a file is not what it should be; the directory holds no ColBERT model.
    """

    def __new__(
        cls,
        model: str | PathLike[str],
        *,
        revision: str | None = None,
        device: str = "auto",
        threads: int | None = None,
        query_maxlen: int | None = None,
        doc_maxlen: int | None = None,
        precision: Literal["f32", "bf16x2", "bf16", "int8", "auto"] = "f32",
    ) -> Self: ...
    @property
    def name(self) -> str:
        """The Hugging Face id, or the directory's name."""
    @property
    def revision(self) -> str:
        """The commit or content hash, and what rounds; empty where unknown."""
    @property
    def path(self) -> str:
        """The directory that the model was read from."""
    @property
    def dim(self) -> int:
        """The length of a vector."""
    @property
    def max_tokens(self) -> int:
        """The most that `query_maxlen` and `doc_maxlen` can be."""
    @property
    def query_maxlen(self) -> int:
        """How many tokens a query has."""
    @property
    def doc_maxlen(self) -> int:
        """How many tokens of a document are read at most."""
    @property
    def precision(self) -> Literal["f32", "bf16x2", "bf16", "int8"]:
        """What products are rounded to."""
    @property
    def threads(self) -> int:
        """How many threads compute."""
    @property
    def device(self) -> str:
        """Where it runs."""
    def embed_query(self, query: str, *, query_maxlen: int | None = None) -> NDArray[np.float32]:
        """Returns `(tokens, dim)` unit rows, `query_maxlen` of them where the model fills queries up.

        Args:
            query: The query.
            query_maxlen: Another length than the model's, for this call.

        Warns:
            TruncationWarning: The query was longer and was cut.
        """
    def embed_queries(
        self, queries: str | Iterable[str], *, query_maxlen: int | None = None
    ) -> list[NDArray[np.float32]]:
        """Returns the vectors of `embed_query` for each query."""
    def embed_documents(
        self, texts: str | Iterable[str], *, doc_maxlen: int | None = None, pool_factor: int = 1
    ) -> list[NDArray[np.float32]]:
        """Returns `(tokens, dim)` unit rows for each text, as views of one array.

        Args:
            texts: The documents.
            doc_maxlen: Another length than the model's, for this call.
            pool_factor: Above 1, how many times fewer vectors there are to be: similar tokens are replaced by their
                mean, which is not of unit length (https://arxiv.org/abs/2409.14683). The first is kept.

        Warns:
            TruncationWarning: Some texts were longer than `doc_maxlen` and were cut; `encode_documents` says which.
        """
    def encode_documents(
        self, texts: str | Iterable[str], *, doc_maxlen: int | None = None, pool_factor: int = 1
    ) -> TokenVectors:
        """Returns the vectors of `embed_documents` end to end, with the texts that were cut."""
    def split(self, texts: str | Iterable[str], *, doc_maxlen: int | None = None, overlap: int = 0) -> list[list[str]]:
        """Cuts each text into pieces that are read whole, between paragraphs, else sentences, words or characters.

        Args:
            texts: The texts; one that fits is one piece, unchanged.
            doc_maxlen: The longest piece, mark and special tokens included; the model's own by default.
            overlap: How many tokens neighbours may share.
        """
    def maxsim(
        self,
        query_vectors: ArrayLike | TokenVectors,
        docs: TokenVectors | tuple[NDArray[Any], NDArray[Any]] | Iterable[ArrayLike],
    ) -> NDArray[np.float32]:
        """Returns `(docs,)` scores: the largest product with a token of the document, summed over the query's tokens.

        Scores are in f32 and depend on nothing but query and document. Of a document without tokens the score is
        negative infinity, of one with a number that is not finite it is nan.

        Args:
            query_vectors: `(tokens, dim)`; of several queries `(queries, tokens, dim)` or `TokenVectors`, whose scores
                are `(queries, docs)` and read each document once.
            docs: What `encode_documents` returns, a tuple of its `vectors` and `offsets`, or an array for each
                document. The first two are read where they lie, if in f32 and contiguous; arrays are copied together.
        """
    def scores(self, query: str, docs: str | Iterable[str]) -> NDArray[np.float32]:
        """Returns `(docs,)`: the score of each text.

        Warns:
            TruncationWarning: The query, or some texts, were cut.
        """
    def rank(
        self,
        query: str,
        docs: str | Iterable[str],
        *,
        doc_ids: Sequence[int | str] | None = None,
        metadata: Sequence[dict[str, Any]] | None = None,
    ) -> Ranking:
        """Returns texts in the order of their scores.

        Raises:
            ValueError: `doc_ids` or `metadata` are not as many as the texts; an id is there twice.

        Warns:
            TruncationWarning: The query, or some texts, were cut.
        """
    def heat(self, query: str, doc: str) -> HeatMap:
        """Returns how each token of a query fits each of a document."""

@final
class GenerationStats:
    """What an answer has cost so far."""

    @property
    def prompt_tokens(self) -> int:
        """How many tokens the prompt has."""
    @property
    def read_tokens(self) -> int:
        """How many of them have been read so far, those of `cached_tokens` among them."""
    @property
    def cached_tokens(self) -> int:
        """How many of them were not read again, as an earlier answer's prompt began with them too."""
    @property
    def generated_tokens(self) -> int:
        """How many tokens were generated, the end token not counted."""
    @property
    def drafted_tokens(self) -> int:
        """How many tokens were guessed from earlier text, to be read together with the one before."""
    @property
    def accepted_tokens(self) -> int:
        """How many of these guesses were right."""
    @property
    def prompt_seconds(self) -> float:
        """How long it took until the prompt was read, waiting for a slot included."""
    @property
    def seconds(self) -> float:
        """How long all of it took."""
    @property
    def seed(self) -> int:
        """What makes the same answer again."""
    @property
    def finish_reason(self) -> Literal["stop", "stop_string", "length", "context", "closed", "error"] | None:
        """Why it ended; None while it runs.

        By the model's end token, by a stop string, by `max_tokens`, by a full context, because it was closed, or
        because it failed: then reading it raises the error, once.
        """

@final
class TokenLogprob:
    """A token and its log probability as the model said it: at temperature 1, before any bias, penalty or filter."""

    @property
    def id(self) -> int:
        """The token."""
    @property
    def bytes(self) -> bytes:
        """What it stands for, which need not be whole characters; nothing for a control token."""
    @property
    def logprob(self) -> float:
        """The natural logarithm of its probability; finite."""
    @property
    def alternatives(self) -> tuple[TokenLogprob, ...]:
        """Which tokens were most likely in its place, the first most; none where it is itself such an alternative."""

@final
class Generation:
    """A running answer: an iterator, and an async iterator, of pieces of text.

    Pieces are whole UTF-8 and together are exactly `text()`. The model runs on a thread of its own; `close()`, leaving
    a `with` block, dropping the object and Ctrl-C stop it within one step. It runs two pieces ahead of its reader.
    """

    def __iter__(self) -> Self: ...
    def __next__(self) -> str: ...
    def __aiter__(self) -> Self: ...
    def __anext__(self) -> Awaitable[str]: ...
    def text(self) -> str:
        """Waits for the end and returns the whole answer, what was iterated over before included."""
    def close(self) -> None:
        """Stops the model within one step, or one piece of the prompt. What was not read yet is dropped."""
    def __enter__(self) -> Self: ...
    def __exit__(
        self, exc_type: type[BaseException] | None, exc_value: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...
    def _poll(self) -> str | None: ...
    @property
    def logprobs(self) -> list[TokenLogprob] | None:
        """How likely each token generated so far was; None where `logprobs` was not asked for.

        One for each of `stats.generated_tokens`, those of a stop string, which the text lacks, among them. The model
        may be ahead of what was read.
        """
    @property
    def stats(self) -> GenerationStats:
        """What the answer has cost so far."""

@final
class Generator:
    """A model that writes, on the CPU: GGUF (`llama`, `gemma3`, …) or a directory of safetensors (`gemma`, …).

    The decoder is our own; weights are used where they lie in the memory-mapped file. One generator serves any number
    of threads: answers are computed side by side, and each is the same as if it were alone. What was read of a prompt
    is kept for prompts that begin alike, in blocks of 64 tokens. Text in messages and prompts is data: what looks like
    a control token in it is read as text.

    Args:
        model: A name of the catalogue (`adventures models list`), a Hugging Face id, a `.gguf` file, or a directory
            with `config.json`, `tokenizer.json` and safetensors.
        revision: The branch, tag or commit of a Hugging Face id.
        device: `"auto"`, which is the CPU, `"cpu"`, `"cuda"` or `"cuda:N"`, where `adventures-cuda` is installed. What
            this build or machine lacks is an error, never a silent run on the CPU.
        threads: How many threads compute; all that the container grants by default.
        context: The most tokens of prompt and answer together; what the model was trained for by default.
        slots: How many answers are computed side by side, from 1 to 64; others wait for their turn.
        prefix_bytes: The most bytes that are kept of prompts for prompts that begin alike; 0 keeps nothing.
        adapter: A LoRA adapter of PEFT's, named as a model is, to merge into safetensors. `model` may be an adapter
            itself; the model that it names is found with it.
        quantize: Rounds the matrices of safetensors as they are loaded, as llama.cpp does: `"q8_0"`, 8.5 bits a weight,
            or `"q4_k"`, 4.5 bits, with Q6_K for the head (rows that are no multiple of 256: Q5_0 and Q8_0; of 32: as
            they are). What an adapter changes takes 32 bits a weight otherwise.

    Raises:
        FileNotFoundError: The model, or a file of it, is not there.
        NotImplementedError: The architecture, a tensor's type or the device is not supported.
        ValueError: An argument or a file is not what it should be.
    """

    def __new__(
        cls,
        model: str | PathLike[str],
        *,
        revision: str | None = None,
        device: str = "auto",
        threads: int | None = None,
        context: int | None = None,
        slots: int = 4,
        prefix_bytes: int = 268435456,
        adapter: str | PathLike[str] | None = None,
        quantize: Literal["q8_0", "q4_k"] | None = None,
    ) -> Self: ...
    @property
    def name(self) -> str:
        """The catalogue name, the Hugging Face id, or the name of the file or directory."""
    @property
    def revision(self) -> str:
        """The commit or content hash; empty where unknown."""
    @property
    def path(self) -> str:
        """The file or directory that the model was read from."""
    @property
    def profile(self) -> dict[str, Any]:
        """How the catalogue says this model is best asked; empty where it says nothing."""
    @property
    def architecture(self) -> str:
        """The architecture's name, as the file says it."""
    @property
    def context(self) -> int:
        """The most tokens of prompt and answer together."""
    @property
    def vocab_size(self) -> int:
        """The number of logits."""
    @property
    def kept_bytes(self) -> int:
        """How many bytes are used by what is kept of prompts."""
    @property
    def threads(self) -> int:
        """How many threads compute."""
    @property
    def device(self) -> str:
        """Where it runs."""
    def generate(
        self,
        messages: str | Iterable[Mapping[str, str]],
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        typical_p: float = 1.0,
        repeat_penalty: float = 1.0,
        repeat_window: int = 64,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        seed: int | None = None,
        stop: str | Iterable[str] | None = None,
        logprobs: int | None = None,
        prompt_lookup: bool = True,
        prefix: str = "",
        schema: dict[str, Any] | None = None,
        pattern: str | None = None,
        choices: Iterable[str] | None = None,
    ) -> Generation:
        """Starts the answer to a conversation, through the model's chat template.

        A template that knows no system role gets the system text at the start of the first user turn.

        Args:
            messages: `[{"role": "system" | "user" | "assistant", "content": str}, …]`; a `str` is one question.
            max_tokens: The most tokens to generate.
            temperature: Divides the logits; 0 takes the most likely token every time, whatever `top_p`, `top_k`,
                `min_p` and `typical_p` are.
            top_p: Keeps the most likely tokens whose probabilities add up to this.
            top_k: Keeps this many of the most likely tokens; 0 keeps all.
            min_p: Keeps tokens at least this share as likely as the most likely one.
            typical_p: Keeps the tokens whose information is nearest to the entropy, until their probabilities add up
                to this (Meister et al. 2023).
            repeat_penalty: Makes recent tokens less likely; 1 changes nothing.
            repeat_window: How many tokens are recent, prompt included.
            frequency_penalty: Taken from the logit of a token for each time that it was generated; from -2 to 2.
            presence_penalty: Taken from the logit of a token once, if it was generated; from -2 to 2.
            logit_bias: Added to the logits of tokens, by id: `-inf` bans a token, `inf` bans all that do not have it.
            seed: Makes the random choices repeatable.
            stop: Texts that end the answer; they are not part of it.
            logprobs: Keeps the log probability of each token with this many alternatives, at most 20, for
                `Generation.logprobs`.
            prompt_lookup: Reads several tokens at a time where the answer repeats earlier text, as quotes of passages
                do; the answer is the same either way.
            prefix: What the answer begins with: part of the prompt, and of the output.
            schema: A JSON schema that the answer keeps to; `{"type": "object"}` is any JSON object. It is at most
                262,144 bytes of JSON, 8,192 of them patterns; references lead to places in it. Keywords that cannot be
                kept to, such as `if`, `not` and `uniqueItems`, are an error.
            pattern: A regular expression that the whole answer matches, in the syntax of Rust's `regex`, of at most
                8,192 bytes. It has neither references to groups nor a look ahead or behind.
            choices: Texts one of which is the answer, of at most 8,192 bytes together.

        At most one of `schema`, `pattern` and `choices` is given. With a schema the model chooses each token, by all of
        these options, among those that the schema allows. `logit_bias` cannot allow what the schema forbids, and
        `logprobs` are the model's own, as if there were no schema. An answer whose `finish_reason` is `"stop"` is whole
        JSON that fulfils the schema; one that ends at `max_tokens`, at the end of the context or at a text of `stop`,
        be it inside a string of the JSON, is cut there. A key that the schema does not name may come twice in an
        object. All of this holds for a pattern and for choices too.

        Raises:
            NotImplementedError: The model has no chat template, or no end token and is given a schema, a pattern or
                choices.
            TypeError: An option is of another type; the error names the option and the value.
            ValueError: An option is out of range, the chat template is broken or refuses the messages, the schema is no
                such thing, cannot be kept to or allows no answer that begins with `prefix`, more than one of
                `schema`, `pattern` and `choices` is given, or the prompt leaves no room in the context. Reading the
                answer raises it where keeping to the schema becomes too much work.
        """
    def complete(
        self,
        prompt: str,
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        typical_p: float = 1.0,
        repeat_penalty: float = 1.0,
        repeat_window: int = 64,
        frequency_penalty: float = 0.0,
        presence_penalty: float = 0.0,
        logit_bias: Mapping[int, float] | None = None,
        seed: int | None = None,
        stop: str | Iterable[str] | None = None,
        logprobs: int | None = None,
        prompt_lookup: bool = True,
        schema: dict[str, Any] | None = None,
        pattern: str | None = None,
        choices: Iterable[str] | None = None,
    ) -> Generation:
        """Starts the continuation of a text, without a template; the options are those of `generate`."""
    def tokenize(self, text: str) -> list[int]:
        """Returns the token ids of a text, among them never a control token."""
    def detokenize(self, ids: Iterable[int]) -> str:
        """Returns the text of token ids; control tokens have none, and what is not UTF-8 becomes U+FFFD.

        A vocabulary that writes a space before the first word of a text gives it back with that space.

        Raises:
            ValueError: An id is out of the vocabulary; the error names its place.
        """
    def count_tokens(self, text: str) -> int:
        """Returns how many tokens a text has."""
    def count_prompt(self, messages: str | Iterable[Mapping[str, str]], *, prefix: str = "") -> int:
        """Returns how many tokens `generate` would read."""

NOT_FOUND: str
"""The answer to a question that nothing in the library is about."""

def leans(question: str) -> bool:
    """Whether an English question is understood only after the one before it."""

@final
class Profile:
    """How to prompt a model, as its catalogue entry says.

    A large model gets rules and numbered passages; a small one what was found to work: few passages, worked examples,
    an answer that has begun.
    """

    @staticmethod
    def of(generator: Generator) -> Profile:
        """Returns the profile of a generator's catalogue entry; the plain one where it has none.

        Raises:
            ValueError: The entry has a field of the wrong kind.
        """
    @property
    def passages(self) -> int | None:
        """How many go into a prompt at most; None for as many as were found and fit."""
    @property
    def prefix(self) -> str:
        """What each answer begins with."""

@final
class Prompt:
    """What a generator reads."""

    @staticmethod
    def build(
        generator: Generator,
        profile: Profile,
        *,
        question: str,
        passages: Sequence[str],
        history: Sequence[tuple[str, str]] = ...,
        system: str | None = None,
        reserve: int = 512,
    ) -> Prompt:
        """Returns the longest prompt that fits: what does not fit goes, the oldest turn first, then the last passage.

        Args:
            generator: Counts, and knows its context.
            profile: How to prompt it.
            question: The question.
            passages: What was found, best first; at least one.
            history: Earlier questions and their answers, the oldest first.
            system: Replaces the persona, or the profile's instruction.
            reserve: Tokens to leave for the answer; a quarter of the context at most is left.

        Raises:
            ValueError: The question with one passage is longer than the context.
        """
    @property
    def messages(self) -> list[dict[str, str]]:
        """The conversation, the question last."""
    @property
    def passages(self) -> int:
        """How many of the passages are in it."""
    @property
    def dropped(self) -> int:
        """How many did not fit into the context."""

@final
class CitationFilter:
    """Passes a text on piece by piece, holding back what may become a citation until it is clear what it is.

    `[1]`, `[^1]`, `[1, 2]`, `[1-3]`, `[Passage 1]` and the same in other brackets come out as `[1]` or `[1][2]`;
    numbers that were not given are left out, with the blanks before them. Other brackets are text like any other.
    However the text is cut into pieces, what comes out is the same.

    Args:
        count: How many passages were given; they are numbered from 1.
        always: Whether a text that cites nothing ends with `[1]`.
    """

    def __new__(cls, count: int, *, always: bool = False) -> Self: ...
    @property
    def cited(self) -> list[int]:
        """The numbers that were cited so far, in the order of their first mention."""
    def feed(self, piece: str) -> str:
        """Returns the text that is decided now."""
    def finish(self) -> str:
        """Returns what is left at the end of the text: nothing of a citation that was cut off, no blanks."""

@type_check_only
class IndexInfo(TypedDict):
    """What an index is made of; it is a dict at run time."""

    path: str
    generation: int
    """Commits before this one."""
    documents: int
    """Those that are not deleted."""
    deleted: int
    """Those that are, and take room until the index is compacted."""
    tokens: int
    """Those of deleted documents included."""
    dim: int
    """0 before the first document."""
    nbits: int
    centroids: int
    """0 while vectors are kept as they are."""
    segments: int
    bytes: int
    seed: int
    model: str | None
    """What it was said at `create` to be made with."""

@final
class MultiVectorIndex:
    """Documents as many vectors each, on disk: what `adventures.ColbertIndex` is made of."""

    @staticmethod
    def create(
        path: str | PathLike[str],
        *,
        dim: int | None = None,
        nbits: int = 4,
        seed: int = 42,
        threads: int | None = None,
        model: str | None = None,
    ) -> tuple[MultiVectorIndex, IndexWriter]:
        """Begins an index in an empty directory, which is made if it is not there; it is one once the writer commits.

        Raises:
            ValueError: Something is there already, or an argument is out of range.
            BusyError: Another writer is at it.
        """
    @staticmethod
    def open(path: str | PathLike[str], *, threads: int | None = None) -> MultiVectorIndex:
        """Opens the last commit; files are memory-mapped, and read when they are used.

        Raises:
            FileNotFoundError: There is no index.
            ValueError: It is broken, or of another version.
        """
    def writer(self, *, upsert: bool = False) -> IndexWriter:
        """Returns the one that changes the index; with `upsert`, documents replace those of the same id.

        Raises:
            BusyError: There is another, in this process or any.
        """
    def search(
        self,
        queries: Iterable[NDArray[np.float32]],
        *,
        k: int = 10,
        ids: Iterable[str] | None = None,
        probes: int | None = None,
        candidates: int | None = None,
        exhaustive: bool = False,
    ) -> list[list[tuple[str, str | None, float, str | None]]]:
        """Returns id, text, score and the JSON of the metadata of what is nearest to each query, the best first."""
    def verify(self) -> None:
        """Reads all files.

        Raises:
            ValueError: One is not what was written.
        """
    def refresh(self) -> bool:
        """Reads what others have committed; returns whether there is any."""
    def ids(self) -> list[str]:
        """Returns the ids of all documents."""
    def info(self) -> IndexInfo:
        """Returns what the index is made of."""
    def __len__(self) -> int: ...
    def __contains__(self, key: object, /) -> bool: ...

@final
class IndexWriter:
    """The one that changes an index: nothing changes without `commit` or `compact`, and after a failure it is done."""

    def push(
        self,
        ids: Iterable[str],
        vectors: Iterable[NDArray[np.float32]],
        *,
        texts: Sequence[str | None] | None = None,
        metadata: Sequence[str | None] | None = None,
    ) -> None:
        """Adds documents: `(tokens, dim)` vectors of each, texts, and metadata as JSON.

        Raises:
            ValueError: An id is empty, given twice or there already; a number is not finite; the shapes do not fit.
        """
    def delete(self, key: str) -> bool:
        """Deletes a document of the commit before; returns whether it is there."""
    def delete_all(self, keys: Iterable[str]) -> str | None:
        """Deletes documents of the commit before up to the first that is not there, and returns that."""
    def commit(self, progress: Callable[[str, int, int], object] | None = None) -> int:
        """Makes all this the index and returns how many documents it has; `progress` is told `(stage, done, total)`."""
    def compact(self) -> int:
        """As `commit`, with the room of deleted documents given back and small files merged."""
    def abandon(self) -> None:
        """Changes nothing, and lets others write."""
