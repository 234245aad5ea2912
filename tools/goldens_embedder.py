"""Writes what the embedder's tests expect, from transformers and sentence-transformers (`make goldens`).

- tests/goldens/tiny.npz: unit vectors of tests/tiny.py's checkpoints, by transformers in f32
- tests/goldens/cross.npz: scores of its cross-encoders, by sentence-transformers
- tests/goldens/minilm.npz: unit vectors of 500 texts by sentence-transformers and all-MiniLM-L6-v2, and the texts
- tests/goldens/nfcorpus.json: nDCG@10 of the same model on NFCorpus, by pytrec_eval, where the data set is given
"""

from __future__ import annotations

import json
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pytrec_eval
import torch
from sentence_transformers import CrossEncoder, SentenceTransformer
from transformers import AutoModel, PreTrainedTokenizerFast

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "python")]
GOLDENS = ROOT / "tests" / "goldens"

import tiny  # noqa: E402


def tiny_vectors(path: Path, name: str, kind: str) -> list[list[float]]:
    """Embeds tiny.TEXTS with plain transformers: padded batch, mask, pooling by hand."""
    if name == "dense":  # its modules are what is compared
        texts = [(tiny.prefixes(name)[kind] + text).strip() for text in tiny.TEXTS]
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"), pad_token="[PAD]")
        modules = SentenceTransformer(str(path), device="cpu")
        modules[0].tokenizer = tokenizer
        return modules.encode(texts).tolist()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"))
    tokenizer.pad_token = "<pad>" if name == "multilingual-e5" else "[PAD]"
    model = AutoModel.from_pretrained(path, attn_implementation="eager").eval()
    limit = 48 if (path / "sentence_bert_config.json").exists() else (64 if "multi" in name else 66)
    texts = [(tiny.prefixes(name)[kind] + text).strip() for text in tiny.TEXTS]
    batch = tokenizer(texts, padding=True, truncation=True, max_length=limit, return_tensors="pt")
    with torch.no_grad():
        hidden = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).last_hidden_state
    mask = batch["attention_mask"][..., None].float()
    pooled = hidden[:, 0] if name == "bge" else (hidden * mask).sum(1) / mask.sum(1)
    return torch.nn.functional.normalize(pooled, dim=1).tolist()


def cross_scores(path: Path, name: str) -> np.ndarray:
    """Scores tiny.TEXTS for each of tiny.QUERIES."""
    roberta = name == "bge-reranker"
    names = {"pad_token": "<pad>"} if roberta else {"pad_token": "[PAD]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(path / "tokenizer.json"), **names)
    tokenizer.model_input_names = ["input_ids", "attention_mask"] + ([] if roberta else ["token_type_ids"])
    model = CrossEncoder(str(path), device="cpu")
    model.tokenizer = tokenizer
    model.max_length = 64 if roberta else 66
    return np.array([model.predict([(query, text) for text in tiny.TEXTS]) for query in tiny.QUERIES], np.float32)


def minilm_texts() -> list[str]:
    """Returns 500 texts: our demo rows and questions, and shapes that go wrong elsewhere."""
    folder = ROOT / "python" / "adventures" / "demo"
    rows = [json.loads(line) for line in (folder / "library.jsonl").read_text("utf-8").splitlines()]
    texts = [f"For {row['scenario']} you should use {row['advice']}" for row in rows[:300]]
    texts += [row["scenario"] for row in rows[:100]]
    texts += tiny.TEXTS
    texts += [" ".join(texts[i : i + 2 + i % 17]) for i in range(0, 300, 5)]
    return texts[:500]


def nfcorpus(model: SentenceTransformer, path: Path) -> dict[str, float]:
    """Searches BEIR's NFCorpus exactly, title and text joined by a space, 256 tokens, the 100 best of each query."""
    with zipfile.ZipFile(path) as archive:
        corpus = [json.loads(line) for line in archive.open("nfcorpus/corpus.jsonl")]
        queries = {q["_id"]: q["text"] for q in map(json.loads, archive.open("nfcorpus/queries.jsonl"))}
        lines = archive.read("nfcorpus/qrels/test.tsv").decode().splitlines()[1:]
    judged: dict[str, dict[str, int]] = {}
    for query, document, grade in (line.split("\t") for line in lines):
        judged.setdefault(query, {})[document] = int(grade)
    documents = model.encode([f"{d['title']} {d['text']}".strip() for d in corpus], normalize_embeddings=True)
    questions = model.encode([queries[q] for q in judged], normalize_embeddings=True)
    run = {}
    for query, scores in zip(judged, questions @ documents.T, strict=True):
        best = np.argsort(-scores)[:100]
        run[query] = {corpus[i]["_id"]: float(scores[i]) for i in best}
    results = pytrec_eval.RelevanceEvaluator(judged, {"ndcg_cut_10"}).evaluate(run)
    return {"ndcg@10": float(np.mean([result["ndcg_cut_10"] for result in results.values()]))}


def main() -> None:
    """Writes the files. Arguments: all-MiniLM-L6-v2's directory, and NFCorpus' BEIR zip where it is at hand."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        vectors = {
            f"{name}/{kind}": np.array(tiny_vectors(path, name, kind), np.float32)
            for name, path in tiny.family(Path(folder)).items()
            for kind in ("query", "passage")
        }
        scores = {name: cross_scores(path, name) for name, path in tiny.cross_encoders(Path(folder)).items()}
    np.savez_compressed(GOLDENS / "tiny.npz", **vectors)
    np.savez_compressed(GOLDENS / "cross.npz", **scores)
    texts = minilm_texts()
    assert len(texts) == 500
    model = SentenceTransformer(sys.argv[1], device="cpu")
    rows = model.encode(texts, normalize_embeddings=True, batch_size=32)
    # Half precision moves a cosine by 1e-7, far below what is tested, and halves the file.
    np.savez_compressed(GOLDENS / "minilm.npz", vectors=rows.astype(np.float16), texts=np.array(json.dumps(texts)))
    if len(sys.argv) > 2:
        scores = nfcorpus(model, Path(sys.argv[2]))
        (GOLDENS / "nfcorpus.json").write_text(json.dumps(scores) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
