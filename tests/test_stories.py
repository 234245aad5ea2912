"""A real trained model of 260 thousand weights, converted to GGUF, against a plain forward pass written here.

The pass follows `run.c` of https://github.com/karpathy/llama2.c; the story is the one in the model's description.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import adventures as adv
import gguf_file as gguf
import mutant_tokenizers
import tiny

DATA = Path(__file__).parents[1] / ".." / "shared" / "data" / "model-stories260k"

pytestmark = pytest.mark.skipif(not DATA.exists(), reason=f"{DATA} is not here")

STORY = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball. She wanted to play with it, but it was too high."
)


class Stories:
    """The weights of `stories260K.bin` and the pieces of `tok512.bin`."""

    def __init__(self) -> None:
        data = (DATA / "stories260K.bin").read_bytes()
        sizes = struct.unpack("<7i", data[:28])
        self.dim, self.inner, self.layers, self.heads, self.kv_heads, self.vocab, self.context = sizes
        numbers = np.frombuffer(data, np.float32, offset=28)
        width, kv = self.dim, self.dim // self.heads * self.kv_heads
        at = 0

        def take(*shape: int) -> np.ndarray:
            nonlocal at
            at += int(np.prod(shape))
            return numbers[at - int(np.prod(shape)) : at].reshape(shape)

        n = self.layers
        self.embedding = take(self.vocab, width)
        self.attention_norm = take(n, width)
        self.query, self.key, self.value = take(n, width, width), take(n, kv, width), take(n, kv, width)
        self.output = take(n, width, width)
        self.inner_norm = take(n, width)
        self.gate, self.down, self.up = (
            take(n, self.inner, width),
            take(n, width, self.inner),
            take(n, self.inner, width),
        )
        self.final_norm = take(width)

        data = (DATA / "tok512.bin").read_bytes()
        self.pieces: list[bytes] = []
        self.scores: list[float] = []
        place = 4
        while place < len(data):
            score, length = struct.unpack_from("<fi", data, place)
            place += 8 + length
            self.scores.append(score)
            self.pieces.append(data[place - length : place])

    def write(self, path: Path) -> None:
        """Writes a GGUF file. Neighbours are turned together in both formats, so queries and keys stay as they are."""
        file = gguf.GgufFile()
        file.add("general.architecture", gguf.STRING, "llama")
        head = self.dim // self.heads
        for key, value in {
            "context_length": self.context,
            "embedding_length": self.dim,
            "block_count": self.layers,
            "feed_forward_length": self.inner,
            "attention.head_count": self.heads,
            "attention.head_count_kv": self.kv_heads,
            "rope.dimension_count": head,
        }.items():
            file.add(f"llama.{key}", gguf.U32, value)
        file.add("llama.attention.layer_norm_rms_epsilon", gguf.F32, 1e-5)
        file.add("tokenizer.ggml.model", gguf.STRING, "llama")
        tokens = self.tokens()
        file.add("tokenizer.ggml.tokens", gguf.ARRAY, (gguf.STRING, tokens))
        file.add("tokenizer.ggml.scores", gguf.ARRAY, (gguf.F32, self.scores))
        file.add("tokenizer.ggml.token_type", gguf.ARRAY, (gguf.I32, [2, 3, 3] + [6] * 256 + [1] * (len(tokens) - 259)))
        for key, value in {"unknown": 0, "bos": 1, "eos": 2}.items():
            file.add(f"tokenizer.ggml.{key}_token_id", gguf.U32, value)
        file.add_tensor("token_embd.weight", self.embedding)
        file.add_tensor("output_norm.weight", self.final_norm)
        for i in range(self.layers):
            for name, numbers in {
                "attn_norm": self.attention_norm,
                "attn_q": self.query,
                "attn_k": self.key,
                "attn_v": self.value,
                "attn_output": self.output,
                "ffn_norm": self.inner_norm,
                "ffn_gate": self.gate,
                "ffn_up": self.up,
                "ffn_down": self.down,
            }.items():
                file.add_tensor(f"blk.{i}.{name}.weight", numbers[i])
        path.write_bytes(file.to_bytes())

    def write_checkpoint(self, path: Path) -> None:
        """Writes a checkpoint of transformers, where the halves of a head are turned together: rows change places."""
        head = self.dim // self.heads
        config = {
            "model_type": "llama",
            "vocab_size": self.vocab,
            "hidden_size": self.dim,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "intermediate_size": self.inner,
            "max_position_embeddings": self.context,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "tie_word_embeddings": True,
            "bos_token_id": 1,
            "eos_token_id": 2,
        }
        # The story begins with the start token alone, so nothing has to be merged.
        tokenizer = mutant_tokenizers.llama()
        tokenizer["model"] |= {"vocab": {token: i for i, token in enumerate(self.tokens())}, "merges": []}
        tensors = {"model.embed_tokens.weight": self.embedding, "model.norm.weight": self.final_norm}

        def halves(rows: np.ndarray) -> np.ndarray:
            return rows.reshape(-1, head // 2, 2, self.dim).swapaxes(1, 2).reshape(rows.shape)

        for i in range(self.layers):
            for name, numbers in {
                "input_layernorm": self.attention_norm[i],
                "self_attn.q_proj": halves(self.query[i]),
                "self_attn.k_proj": halves(self.key[i]),
                "self_attn.v_proj": self.value[i],
                "self_attn.o_proj": self.output[i],
                "post_attention_layernorm": self.inner_norm[i],
                "mlp.gate_proj": self.gate[i],
                "mlp.up_proj": self.up[i],
                "mlp.down_proj": self.down[i],
            }.items():
                tensors[f"model.layers.{i}.{name}.weight"] = numbers
        path.mkdir()
        tiny.save_safetensors(path / "model.safetensors", tensors)
        (path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        (path / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")

    def tokens(self) -> list[str]:
        """Returns the vocabulary as SentencePiece writes it."""
        tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256))]
        return tokens + [piece.decode().replace(" ", "▁") for piece in self.pieces[len(tokens) :]]

    def logits(self, ids: list[int]) -> np.ndarray:
        """Returns the logits after each of `ids`, in double precision."""
        count, size = len(ids), self.dim // self.heads
        angles = np.arange(count)[:, None] * 10_000.0 ** (-np.arange(0, size, 2) / size)
        turn = np.exp(1j * angles)[:, None]

        def norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
            return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5) * weight

        def rotated(x: np.ndarray, heads: int) -> np.ndarray:
            pairs = x.reshape(count, heads, size // 2, 2)
            turned = (pairs[..., 0] + 1j * pairs[..., 1]) * turn
            return np.stack([turned.real, turned.imag], -1).reshape(count, heads, size)

        x = self.embedding[ids].astype(np.float64)
        future = np.triu(np.full((count, count), -np.inf), 1)
        for i in range(self.layers):
            normed = norm(x, self.attention_norm[i])
            query = rotated(normed @ self.query[i].T, self.heads)
            group = self.heads // self.kv_heads
            key = rotated(normed @ self.key[i].T, self.kv_heads).repeat(group, 1)
            value = (normed @ self.value[i].T).reshape(count, self.kv_heads, size).repeat(group, 1)
            scores = np.einsum("qhd,khd->hqk", query, key) / np.sqrt(size) + future
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            x = x + np.einsum("hqk,khd->qhd", weights, value).reshape(count, -1) @ self.output[i].T
            normed = norm(x, self.inner_norm[i])
            gate = normed @ self.gate[i].T
            x = x + (gate / (1 + np.exp(-gate)) * (normed @ self.up[i].T)) @ self.down[i].T
        return norm(x, self.final_norm) @ self.embedding.T


@pytest.fixture(scope="module")
def stories() -> Stories:
    return Stories()


@pytest.fixture(scope="module")
def folder(stories: Stories, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stories")
    stories.write(folder / "stories260k.gguf")
    stories.write_checkpoint(folder / "checkpoint")
    return folder


@pytest.mark.parametrize("name", ["stories260k.gguf", "checkpoint"])
def test_the_story_of_its_description(folder: Path, name: str) -> None:
    generator = adv.Generator(folder / name)
    assert (generator.architecture, generator.vocab_size, generator.context) == ("llama", 512, 512)
    answer = generator.complete("", max_tokens=120)
    assert answer.text().strip().startswith(STORY)
    assert answer.stats.prompt_tokens == 1, "the start token"


# From GGUF, keys and values are held in half precision, as llama.cpp does.
@pytest.mark.parametrize(("name", "close"), [("stories260k.gguf", 2e-2), ("checkpoint", 1e-3)])
def test_every_token_and_its_probability(folder: Path, stories: Stories, name: str, close: float) -> None:
    answer = adv.Generator(folder / name).complete("", max_tokens=200, logprobs=20)
    answer.text()
    said: Any = answer.logprobs
    assert len(said) > 100
    ids = [1, *(token.id for token in said)]
    logits = stories.logits(ids[:-1])
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for row, token in zip(expected, said, strict=True):
        second, best = np.sort(row)[-2:]
        assert token.id == int(row.argmax()) or best - second < close
        furthest = max(abs(other.logprob - row[other.id]) for other in token.alternatives)
        assert furthest < close, (token, furthest)
