"""LoRA adapters and rounding: what a generator makes of them, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

import adventures as adv
from adventures.cli import app
from adventures.models import locate

MODEL = Path(__file__).parent / "goldens" / "tiny-llm2vec"
GEMMA = MODEL.with_name("tiny-gemma")
GOLDEN = json.loads(MODEL.with_suffix(".json").read_bytes())
TEXT = "the dragon sleeps, a rope in the night"


def text(generator: adv.Generator) -> str:
    return generator.complete(TEXT, max_tokens=24).text()


@pytest.mark.parametrize(
    ("model", "adapter"),
    [(MODEL / "base", MODEL / "causal"), (MODEL / "causal", None), (f"{MODEL / 'base'}+{MODEL / 'causal'}", None)],
)
def test_logprobs_are_those_of_peft(model: Any, adapter: Any) -> None:
    generator = adv.Generator(model, adapter=adapter)
    answer = generator.complete(TEXT, max_tokens=1, logprobs=20)
    answer.text()
    assert generator.tokenize(TEXT) == GOLDEN["ids"][1:]
    assert answer.logprobs is not None
    found = answer.logprobs[0].alternatives
    logits = GOLDEN["logits"][-1]
    assert [token.id for token in found] == sorted(range(len(logits)), key=lambda id_: -logits[id_])[:20]
    for token in found:
        assert abs((token.logprob - found[0].logprob) - (logits[token.id] - logits[found[0].id])) <= 1e-4


def test_an_adapter_changes_the_text_and_the_names() -> None:
    plain, changed = adv.Generator(MODEL / "base"), adv.Generator(MODEL / "base", adapter=MODEL / "causal")
    assert text(plain) != text(changed)
    assert (changed.name, changed.path) == ("base+causal", plain.path)
    assert changed.revision.startswith(f"{plain.revision}+local-")
    alone = locate(MODEL / "causal")
    assert (alone.name, alone.path, alone.adapters) == ("causal", MODEL / "base", (MODEL / "causal",))


@pytest.mark.parametrize("quantize", ["q8_0", "q4_k"])
@pytest.mark.parametrize("adapter", [None, MODEL / "causal"])
def test_rounded_models_write(quantize: Any, adapter: Path | None) -> None:
    rounded = adv.Generator(MODEL / "base", adapter=adapter, quantize=quantize)
    answer = rounded.complete(TEXT, max_tokens=24, logprobs=0)
    assert answer.text()
    whole = adv.Generator(MODEL / "base", adapter=adapter).complete(TEXT, max_tokens=1, logprobs=20)
    whole.text()
    assert answer.logprobs
    assert whole.logprobs
    assert answer.logprobs[0].id in [token.id for token in whole.logprobs[0].alternatives[:5]]


def test_another_family_writes_rounded() -> None:
    assert adv.Generator(GEMMA, quantize="q8_0").complete("why?", max_tokens=8).text()


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has shape|which this model does not have"):
        adv.Generator(GEMMA, adapter=MODEL / "causal")
    model = Path(shutil.copytree(MODEL, tmp_path / "model"))
    config = model / "causal" / "adapter_config.json"
    config.write_text("[]")
    with pytest.raises(ValueError, match="is not a JSON object"):
        adv.Generator(model / "base", adapter=model / "causal")
    with pytest.raises(ValueError, match="names no model"):
        adv.Generator(model / "causal")
    config.write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        adv.Generator(model / "base", adapter=model / "causal")


def test_a_gguf_file_takes_neither(smollm2: adv.Generator) -> None:
    with pytest.raises(NotImplementedError, match="cannot be merged into a GGUF file"):
        adv.Generator(smollm2.path, adapter=MODEL / "causal")
    with pytest.raises(ValueError, match='quantize="q4_k" is for safetensors'):
        adv.Generator(smollm2.path, quantize="q4_k")


def test_commands(tmp_path: Path) -> None:
    spec = f"{MODEL / 'mntp'}+{MODEL / 'supervised'}"
    run = CliRunner().invoke
    embedded = run(app, ["embed", "-e", spec, "--quantize", "q8_0"], input="a rope\na dragon\n")
    assert embedded.exit_code == 0, embedded.output
    assert len(embedded.stdout.splitlines()) == 2
    from adventures import demo

    demo.write_table(tmp_path / "table")
    library = ["--library", str(tmp_path / "library")]
    model = ["-e", spec, "--quantize", "q8_0"]
    rows = ["--delta", str(tmp_path / "table"), "--id", "scenario", "--text", "{scenario}", "--rows", "price < 20"]
    synced = run(app, ["sync", *library, *rows, *model])
    assert synced.exit_code == 0, synced.output
    found = run(app, ["search", *library, "a dragon", *model, "-k", "1"])
    assert found.exit_code == 0, found.output
    other = run(app, ["search", *library, "a dragon", "-e", str(MODEL / "mntp")])
    assert other.exit_code == 1
    assert "was embedded with mntp+supervised" in other.output
