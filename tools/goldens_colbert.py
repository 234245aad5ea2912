"""Writes what ColBERT's tests expect, from torch, transformers and scipy (`make goldens`).

tests/goldens/colbert.npz holds, of each of tests/tiny_colbert.py's checkpoints, the vectors of queries and documents
end to end and where each begins, the scores of all pairs, and the documents' vectors after pooling.

The reference is transformers' own models over padded batches under a mask, and what is around it in
colbert/modeling/tokenization of https://github.com/stanford-futuredata/ColBERT and in pylate/models/colbert.py of
https://github.com/lightonai/pylate, written down anew.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from scipy.cluster import hierarchy
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModel

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests")]

import tiny  # noqa: E402
import tiny_colbert  # noqa: E402


class Reference:
    """A checkpoint, read by torch."""

    def __init__(self, path: Path, variant: tiny_colbert.Variant) -> None:
        self.variant = variant
        self.tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
        tensors = tiny.load_safetensors(path / "model.safetensors")
        if variant.layout == "pylate":
            tensors |= tiny.load_safetensors(path / "1_Dense" / "model.safetensors")
        self.linear = torch.from_numpy(tensors.pop("linear.weight").copy())
        state = {name.removeprefix("bert."): torch.from_numpy(tensor.copy()) for name, tensor in tensors.items()}
        self.model = AutoModel.from_config(AutoConfig.from_pretrained(path), attn_implementation="eager").eval()
        missing = self.model.load_state_dict(state, strict=False)
        assert not missing.unexpected_keys, missing
        assert all(key.startswith("pooler.") for key in missing.missing_keys), missing

    def id(self, token: str) -> int:
        """Returns a token's id."""
        found = self.tokenizer.token_to_id(token)
        assert found is not None, token
        return found

    def ids(self, text: str, mark: str, maxlen: int) -> list[int]:
        """Returns a text's ids, cut so that the last stays, the mark behind the first."""
        whole = self.tokenizer.encode(text).ids
        if len(whole) > maxlen - 1:
            whole = [*whole[: maxlen - 2], whole[-1]]
        return [whole[0], self.id(mark), *whole[1:]]

    def encode(self, sequences: list[list[int]], masks: list[list[int]]) -> torch.Tensor:
        """Runs a padded batch."""
        longest = max(map(len, sequences))
        ids = torch.tensor([ids + [0] * (longest - len(ids)) for ids in sequences])
        mask = torch.tensor([mask + [0] * (longest - len(mask)) for mask in masks])
        with torch.no_grad():
            hidden = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return torch.nn.functional.normalize(hidden @ self.linear.T, dim=-1)

    def queries(self, texts: list[str]) -> list[torch.Tensor]:
        """Returns the vectors of each query."""
        maxlen = self.variant.query_maxlen
        sequences = [self.ids(text, self.variant.query, maxlen) for text in texts]
        masks = [[1] * len(ids) for ids in sequences]
        if self.variant.expands:
            seen = int(self.variant.attends)
            masks = [mask + [seen] * (maxlen - len(mask)) for mask in masks]
            sequences = [ids + [self.id("[MASK]")] * (maxlen - len(ids)) for ids in sequences]
        return [rows[: len(ids)] for rows, ids in zip(self.encode(sequences, masks), sequences, strict=True)]

    def documents(self, texts: list[str]) -> list[torch.Tensor]:
        """Returns the vectors of each document."""
        sequences = [self.ids(text, self.variant.doc, self.variant.doc_maxlen) for text in texts]
        skipped = {self.tokenizer.token_to_id(word) for word in self.variant.skiplist}
        rows = self.encode(sequences, [[1] * len(ids) for ids in sequences])
        kept = [[i for i, id_ in enumerate(ids) if id_ not in skipped] for ids in sequences]
        return [rows[i][at] for i, at in enumerate(kept)]


def pooled(rows: torch.Tensor, factor: int) -> torch.Tensor:
    """Replaces clusters by their means, in the order of their first tokens; the first token stays."""
    first, rest = rows[:1], rows[1:]
    clusters = max(len(rest) // factor, 1)
    if clusters >= len(rest):
        return rows
    distances = (1 - rest @ rest.T).numpy()[np.triu_indices(len(rest), k=1)]
    labels = hierarchy.fcluster(hierarchy.linkage(distances, method="ward"), t=clusters, criterion="maxclust")
    means = [rest[torch.from_numpy(labels == label)].mean(0) for label in dict.fromkeys(labels)]
    return torch.cat([first, torch.stack(means)])


def ragged(name: str, rows: list[torch.Tensor]) -> dict[str, np.ndarray]:
    offsets = np.cumsum([0, *map(len, rows)])
    return {f"{name}/vectors": torch.cat(rows).numpy(), f"{name}/offsets": offsets}


def main() -> None:
    """Writes the file."""
    torch.manual_seed(0)
    found: dict[str, np.ndarray] = {}
    for name, variant in tiny_colbert.VARIANTS.items():
        with tempfile.TemporaryDirectory() as folder:
            reference = Reference(tiny_colbert.colbert(Path(folder) / name, name), variant)
            texts = tiny_colbert.TEXTS
            queries, documents = reference.queries(texts), reference.documents(texts)
            found |= ragged(f"{name}/queries", queries) | ragged(f"{name}/documents", documents)
            scores = [[float((q @ d.T).max(1).values.sum()) for d in documents] for q in queries]
            found[f"{name}/scores"] = np.array(scores, np.float32)
            found |= ragged(f"{name}/pooled", [pooled(rows, 3) for rows in documents])
            # Of what is beside an edge, the sum of a text's vectors tells as well.
            for kind, rows in (("queries", reference.queries), ("documents", reference.documents)):
                edges = rows(tiny_colbert.EDGES)
                found[f"{name}/edges/{kind}"] = torch.stack([row.sum(0) for row in edges]).numpy()
                found[f"{name}/edges/{kind}/lengths"] = np.array([len(row) for row in edges])
    np.savez_compressed(ROOT / "tests" / "goldens" / "colbert.npz", **found)


if __name__ == "__main__":
    main()
