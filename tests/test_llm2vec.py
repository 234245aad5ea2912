"""LLM2Vec models: parity with transformers and PEFT (`tools/goldens_llm2vec.py`), invariance, and what is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import adventures as adv

GOLDENS = Path(__file__).parent / "goldens"
MODEL = GOLDENS / "tiny-llm2vec"
with np.load(MODEL.with_suffix(".npz")) as _arrays:
    GOLDEN = {name: _arrays[name] for name in _arrays.files}
TEXTS: list[str] = json.loads(str(GOLDEN["texts"]))
INSTRUCTION = str(GOLDEN["instruction"])


@pytest.fixture(scope="module")
def both() -> adv.Embedder:
    return adv.Embedder(MODEL / "mntp", adapter=MODEL / "supervised", query_prefix=INSTRUCTION)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy to change."""
    return Path(shutil.copytree(MODEL, tmp_path / "model"))


def change(path: Path, **fields: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_bytes()), **fields}))


@pytest.mark.parametrize("kind", ["query", "passage"])
@pytest.mark.parametrize("adapters", ["mntp", "both"])
def test_vectors_are_those_of_transformers_and_peft(both: adv.Embedder, adapters: str, kind: Any) -> None:
    embedder = both if adapters == "both" else adv.Embedder(MODEL / "mntp", query_prefix=INSTRUCTION)
    want = GOLDEN[f"{adapters}/{kind}"]
    got = embedder.encode(TEXTS, kind)
    assert got.tokens.tolist() == GOLDEN[f"tokens/{kind}"].tolist()
    assert np.abs(got.vectors - want).max() <= 1e-4
    assert (got.vectors * want).sum(1).min() >= 1 - 1e-6
    assert got.truncated == [9, 10, 11]  # more than 400 tokens


def test_facts(both: adv.Embedder) -> None:
    assert (both.dim, both.max_tokens, both.pooling) == (64, 512, "mean")
    assert both.prompts == {"query": INSTRUCTION, "passage": ""}
    assert both.name == "mntp+supervised"
    assert both.path == str(MODEL / "base")
    assert len(both.revision.split("+")) == 3


def test_a_vector_does_not_depend_on_what_is_beside_it(both: adv.Embedder) -> None:
    whole = both.encode(TEXTS).vectors
    assert np.array_equal(whole, np.concatenate([both.encode([text]).vectors for text in TEXTS]))
    order = np.random.default_rng(0).permutation(len(TEXTS))
    assert np.array_equal(both.encode([TEXTS[i] for i in order]).vectors, whole[order])


def test_the_instruction_is_read_and_not_pooled(both: adv.Embedder) -> None:
    text = ["The dragon sleeps at night."]
    query, passage = both.encode(text, "query"), both.encode(text)
    assert query.tokens[0] > passage.tokens[0] + 20
    assert 0.1 < (query.vectors @ passage.vectors.T).item() < 0.999


def test_later_tokens_are_seen(both: adv.Embedder) -> None:
    """A causal model would give the first tokens of both texts the same states."""
    same = "the dragon " * 40
    first, second = both.encode([same + "rope", same + "night"]).vectors
    assert not np.allclose(first, second, atol=1e-4)


def test_each_adapter_changes_the_vectors_and_the_revision(both: adv.Embedder) -> None:
    mntp = adv.Embedder(MODEL / "mntp")
    other = adv.Embedder(MODEL / "base", adapter=MODEL / "supervised")
    embedders = [both, mntp, other]
    vectors = [embedder.encode(["a dragon on a rope"]).vectors for embedder in embedders]
    for i in range(3):
        assert not np.allclose(vectors[i], vectors[i - 1], atol=1e-3)
        assert embedders[i].revision != embedders[i - 1].revision
        assert embedders[i].name != embedders[i - 1].name


def test_a_library_refuses_other_adapters(both: adv.Embedder, tmp_path: Path) -> None:
    from adventures import demo

    demo.write_table(tmp_path / "table")
    library = adv.Library.open(tmp_path / "library", embedder=both)
    library.sync(tmp_path / "table", id="scenario", text="{scenario}", where="price < 30", progress=False)
    assert library.search("a dragon asleep", k=1)
    with pytest.raises(ValueError, match="was embedded with mntp"):
        adv.Library.open(tmp_path / "library", embedder=adv.Embedder(MODEL / "mntp"))
    rounded = adv.Embedder(MODEL / "mntp", adapter=MODEL / "supervised", query_prefix=INSTRUCTION, quantize="q8_0")
    with pytest.raises(ValueError, match=r"q8_0"):
        adv.Library.open(tmp_path / "library", embedder=rounded)


@pytest.mark.parametrize(("quantize", "least"), [("q8_0", 0.999), ("q4_k", 0.98)])
def test_quantized_vectors_are_near(both: adv.Embedder, quantize: Any, least: float) -> None:
    rounded = adv.Embedder(MODEL / "mntp", adapter=MODEL / "supervised", quantize=quantize)
    cosines = (rounded.encode(TEXTS).vectors * both.encode(TEXTS).vectors).sum(1)
    assert least < cosines.min() < 1 - 1e-6
    assert rounded.revision.endswith(f"+{quantize}")
    single = np.concatenate([rounded.encode([text]).vectors for text in TEXTS])
    assert np.array_equal(single, rounded.encode(TEXTS).vectors)


def test_pieces_fit(both: adv.Embedder) -> None:
    text = " ".join(f"Sentence {i} tells of the dragon of hill {i}." for i in range(60))
    (pieces,) = both.split(text)
    assert len(pieces) > 2
    assert both.encode(pieces).truncated == []
    assert max(both.count_tokens(both.split(text, max_tokens=40)[0])) <= 40


def test_fewer_tokens(both: adv.Embedder) -> None:
    small = adv.Embedder(MODEL / "mntp", adapter=MODEL / "supervised", max_tokens=40)
    found = small.encode(["the dragon " * 60, "a rope"])
    assert found.truncated == [0]
    assert found.tokens[0] <= 40
    assert np.array_equal(found.vectors[1], both.encode(["a rope"]).vectors[0])


def test_a_merged_model_needs_no_adapter(model: Path) -> None:
    with pytest.raises(
        NotImplementedError, match='model_type "mistral" writes; it becomes an embedder by the adapters'
    ):
        adv.Embedder(model / "base")
    (model / "base" / "llm2vec_config.json").write_text('{"max_length": 100, "doc_max_length": 50}')
    embedder = adv.Embedder(model / "base")
    assert embedder.max_tokens == 100
    assert embedder.encode("the dragon " * 60).tokens[0] < 75


def test_a_model_without_turns_reads_the_text_alone(model: Path) -> None:
    before = adv.Embedder(model / "mntp").count_tokens("a rope")[0]
    change(model / "base" / "config.json", _name_or_path="someone/else")
    embedder = adv.Embedder(model / "mntp")
    assert embedder.count_tokens("a rope")[0] == before - 9
    assert embedder.encode(["", "a"]).tokens.tolist()[0] == 1


@pytest.mark.parametrize(
    ("change_of", "fields", "error", "message"),
    [
        ("mntp", {"base_model_name_or_path": "../nowhere/at/all"}, FileNotFoundError, "nowhere/at/all"),
        ("mntp", {"base_model_name_or_path": None}, ValueError, 'names no model in "base_model_name_or_path"'),
        ("mntp", {"base_model_name_or_path": "."}, ValueError, "is an adapter too"),
        ("mntp", {"base_model_name_or_path": "../supervised"}, ValueError, "is an adapter too"),
        ("mntp", {"peft_type": "IA3"}, NotImplementedError, 'peft_type "IA3"'),
        ("mntp", {"use_dora": True}, NotImplementedError, "use_dora is true"),
        ("mntp", {"fan_in_fan_out": True}, NotImplementedError, "fan_in_fan_out is true"),
        ("mntp", {"modules_to_save": ["lm_head"]}, NotImplementedError, r'modules_to_save is \["lm_head"\]'),
        ("mntp", {"bias": "all"}, NotImplementedError, 'bias "all"'),
        ("mntp", {"init_lora_weights": "pissa"}, NotImplementedError, 'init_lora_weights "pissa"'),
        ("mntp", {"r": 5}, ValueError, r"has shape \[4, 64\], the configuration asks for \[5, 64\]"),
        ("mntp", {"r": 0}, ValueError, "the rank of .* is 0"),
        ("mntp", {"r": "4"}, ValueError, '"r" must be a whole number, it is "4"'),
        ("mntp", {"lora_alpha": None}, ValueError, '"lora_alpha" must be a number, it is missing'),
        ("mntp", {"target_modules": ["q_proj", "w_proj"]}, ValueError, 'no tensor changes "w_proj"'),
        ("mntp", {"rank_pattern": {".*_proj": 2}}, NotImplementedError, r'rank_pattern "\.\*_proj"'),
        ("base", {"num_hidden_layers": 1}, ValueError, "which this model does not have"),
        ("base", {"hidden_size": 65}, ValueError, "has shape"),
        ("base", {"vocab_size": 5}, ValueError, "they do not belong together"),
    ],
)
def test_bad_configurations(
    model: Path, change_of: str, fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    file = "config.json" if change_of == "base" else "adapter_config.json"
    change(model / change_of / file, **fields)
    with pytest.raises(error, match=message):
        adv.Embedder(model / "mntp")


def test_bad_tensors(model: Path) -> None:
    weights = model / "mntp" / "adapter_model.safetensors"
    whole = weights.read_bytes()
    for old, new, error, message in [
        (b"layers.1.mlp.up_proj.lora_A", b"layers.7.mlp.up_proj.lora_A", ValueError, "lacks its other half"),
        (b"layers.1.mlp.up_proj.lora_", b"layers.7.mlp.up_proj.lora_", ValueError, "which this model does not have"),
        (b"up_proj.lora_A.weight", b"up_proj.lora_C.weight", NotImplementedError, "lora_C.weight"),
        (b"base_model.model.layers.1", b"best_model.model.layers.1", NotImplementedError, "best_model.model"),
    ]:
        weights.write_bytes(whole.replace(old, new))
        with pytest.raises(error, match=message):
            adv.Embedder(model / "mntp")
    weights.write_bytes(whole[:-4] + np.float32("inf").tobytes())
    with pytest.raises(ValueError, match="holds inf at element"):
        adv.Embedder(model / "mntp")
    weights.unlink()
    with pytest.raises(FileNotFoundError, match=r"no adapter_model\.safetensors"):
        adv.Embedder(model / "mntp")
    (model / "mntp" / "adapter_model.bin").write_bytes(b"")
    with pytest.raises(NotImplementedError, match="pickle"):
        adv.Embedder(model / "mntp")


def test_pooling_that_is_not_supported(model: Path) -> None:
    (model / "mntp" / "llm2vec_config.json").write_text('{"pooling_mode": "eos_token"}')
    with pytest.raises(NotImplementedError, match='pooling_mode "eos_token"; supported is "mean"'):
        adv.Embedder(model / "mntp")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"adapter": "mntp"}, LookupError, "no model 'mntp' in the catalogue"),
        ({"adapter": MODEL / "base"}, ValueError, r"tiny-llm2vec/base is no adapter: it has no adapter_config\.json"),
        ({"adapter": 7}, TypeError, "named by a string or a path"),
        ({"quantize": "q3"}, ValueError, 'quantize="q3": expected "q8_0" or "q4_k"'),
        ({"quantize": 8}, TypeError, "quantize=8: expected a str"),
        ({"max_tokens": 641}, ValueError, "max_tokens=641: this model reads 1 to 640"),
        ({"max_tokens": 5}, ValueError, "max_tokens=5: the prefix"),
    ],
)
def test_bad_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        adv.Embedder(MODEL / "mntp", **options)


def test_an_encoder_takes_neither(minilm: adv.Embedder) -> None:
    with pytest.raises(NotImplementedError, match="cannot be merged into an encoder"):
        adv.Embedder(minilm.path, adapter=MODEL / "mntp")
    with pytest.raises(NotImplementedError, match='quantize="q8_0" is for decoders'):
        adv.Embedder(minilm.path, quantize="q8_0")


def test_a_base_that_is_a_file(smollm2: adv.Generator) -> None:
    with pytest.raises(NotImplementedError, match="an embedder is a directory of safetensors"):
        adv.Embedder(smollm2.path, adapter=MODEL / "mntp")
