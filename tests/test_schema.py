"""What an answer keeps to, a JSON schema, a pattern or choices: real models, from Python."""

from __future__ import annotations

import json
import random
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jsonschema
import pytest

import adventures as adv

QUESTION = "Describe a wizard as JSON."
WIZARD = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 30},
        "age": {"type": "integer", "minimum": 1, "maximum": 900},
        "school": {"enum": ["fire", "ice", "föhn"]},
    },
    "required": ["name", "age", "school"],
    "additionalProperties": False,
}
SHORT = {"type": "string", "maxLength": 12}
SCHEMAS: dict[str, dict[str, Any]] = {
    "wizard": WIZARD,
    "enum of all kinds": {"enum": ["a", 1, 2.5, None, True, [1, "x"], {"k": "v"}]},
    "const of unicode": {"const": {"名前": "ドラゴン 🐉", "q": 'a "quote" \\ and\nlines'}},
    "unicode enum": {"enum": ["日本語", "Ünïcödé", "🐉🐲", "é"]},
    "nested arrays": {
        "type": "array",
        "minItems": 1,
        "maxItems": 2,
        "items": {"type": "array", "minItems": 1, "maxItems": 2, "items": {"type": "integer", "maximum": 99}},
    },
    "tuple": {"type": "array", "prefixItems": [{"type": "boolean"}, SHORT], "items": False, "minItems": 2},
    "integer range": {"type": "integer", "minimum": -17, "maximum": 345},
    "exclusive range": {"type": "number", "exclusiveMinimum": 0.5, "exclusiveMaximum": 0.75, "multipleOf": 0.125},
    "multiple": {"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 1000},
    "oneOf apart": {"oneOf": [{"type": "integer", "maximum": 9}, SHORT, {"type": "null"}]},
    "anyOf objects": {
        "anyOf": [
            {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"], "additionalProperties": False},
            {"type": "object", "properties": {"b": SHORT}, "required": ["b"], "additionalProperties": False},
        ]
    },
    "allOf": {
        "allOf": [
            {"type": "object", "properties": {"a": {"type": "integer", "maximum": 5}}, "required": ["a"]},
            {"properties": {"b": {"type": "boolean"}}, "required": ["b"], "maxProperties": 2},
        ]
    },
    "additional": {"type": "object", "additionalProperties": {"type": "boolean"}, "maxProperties": 2},
    "pattern": {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"},
    "pattern of keys": {
        "type": "object",
        "patternProperties": {"^x[0-9]$": {"type": "integer", "maximum": 9}},
        "additionalProperties": False,
        "maxProperties": 2,
    },
    "lengths": {"type": "string", "minLength": 5, "maxLength": 8},
    "uuid": {"type": "string", "format": "uuid"},
    "ipv4": {"type": "string", "format": "ipv4"},
    "several types": {"type": ["boolean", "null", "integer"], "maximum": 50},
    "recursion": {
        "$ref": "#/$defs/tree",
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {"leaf": {"type": "boolean"}, "left": {"$ref": "#/$defs/tree"}},
                "required": ["leaf"],
                "additionalProperties": False,
            }
        },
    },
    "odd names": {
        "type": "object",
        "properties": {'"': {"const": 1}, "a b": {"const": 2}, "": {"const": 3}, "</s>": {"const": 4}},
        "required": ['"', "a b", "", "</s>"],
        "additionalProperties": False,
    },
}


def valid(answer: adv.Generation, schema: dict[str, Any]) -> bool:
    """Whether an answer came to its end; it must then fulfil the schema."""
    text = answer.text()
    if answer.stats.finish_reason != "stop":
        assert answer.stats.finish_reason == "length"
        return False
    checker = jsonschema.Draft202012Validator.FORMAT_CHECKER
    jsonschema.validate(json.loads(text), schema, jsonschema.Draft202012Validator, format_checker=checker)
    return True


@pytest.fixture(scope="module")
def gemma() -> adv.Generator:
    """The real Gemma 3 270M: a SentencePiece vocabulary of 262,144 tokens."""
    return adv.Generator("gemma-3-270m", context=1024)


@pytest.mark.parametrize("schema", SCHEMAS.values(), ids=SCHEMAS)
def test_answers_fulfil_it(smollm2: adv.Generator, gemma: adv.Generator, schema: dict[str, Any]) -> None:
    options: list[dict[str, Any]] = [
        {},
        {"temperature": 0.8, "top_p": 0.9, "seed": 1},
        {"temperature": 2.0, "top_k": 50, "min_p": 0.001, "repeat_penalty": 1.2, "presence_penalty": 0.5, "seed": 2},
    ]
    whole = [valid(smollm2.generate(QUESTION, schema=schema, max_tokens=60, **o), schema) for o in options]
    whole += [valid(gemma.complete("JSON: ", schema=schema, max_tokens=60, **o), schema) for o in options[:2]]
    assert any(whole)


def random_schema(random_: random.Random, depth: int = 0) -> dict[str, Any]:
    kinds = ["enum", "integer", "number", "string", "boolean", "null"] + ["object", "array", "anyOf"] * (depth < 3)
    match random_.choice(kinds):
        case "enum":
            return {"enum": random_.sample(["ä", 'b"', "c\\", 1, -2.5, None, False, "long words", "🐉"], 3)}
        case "integer" | "number" as kind:
            low = random_.randint(-1000, 1000)
            return {"type": kind, "minimum": low, "maximum": low + random_.randint(0, 500)}
        case "string":
            low = random_.randint(0, 4)
            return {"type": "string", "minLength": low, "maxLength": low + random_.randint(0, 9)}
        case "object":
            names = random_.sample(["name", "größe", "a.b", "x y", "id", "日"], random_.randint(0, 3))
            properties = {name: random_schema(random_, depth + 1) for name in names}
            required = [name for name in names if random_.random() < 0.6]
            return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}
        case "array":
            low = random_.randint(0, 2)
            item = random_schema(random_, depth + 1)
            return {"type": "array", "items": item, "minItems": low, "maxItems": low + random_.randint(0, 2)}
        case "anyOf":
            return {"anyOf": [random_schema(random_, depth + 1) for _ in range(2)]}
        case kind:
            return {"type": kind}


def test_answers_fulfil_random_schemas(smollm2: adv.Generator) -> None:
    whole = 0
    for seed in range(24):
        schema = random_schema(random.Random(seed))
        answer = smollm2.generate(QUESTION, schema=schema, max_tokens=60, temperature=seed % 4 / 2, seed=seed)
        whole += valid(answer, schema)
    # Numbers and keys without a last digit or letter may go on for ever.
    assert whole > 12


def test_without_it_nothing_changes(smollm2: adv.Generator) -> None:
    options = {"max_tokens": 24, "temperature": 0.9, "seed": 5}
    before = smollm2.generate(QUESTION, **options).text()
    valid(smollm2.generate(QUESTION, schema={"type": "object"}, **options), {"type": "object"})
    assert smollm2.generate(QUESTION, **options).text() == before
    assert smollm2.generate(QUESTION, schema=None, **options).text() == before


def test_seed_makes_it_again_and_side_by_side(smollm2: adv.Generator) -> None:
    def ask(seed: int) -> str:
        schema = WIZARD if seed % 2 else {"type": "object"}
        return smollm2.generate(QUESTION, schema=schema, max_tokens=40, temperature=1.0, seed=seed).text()

    alone = [ask(seed) for seed in range(4)]
    assert len(set(alone)) == 4
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(ask, range(4))) == alone


def test_ends_where_it_must_and_may_be_cut(smollm2: adv.Generator) -> None:
    answer = smollm2.generate(QUESTION, schema={"const": True})
    assert (answer.text(), answer.stats.finish_reason) == ("true", "stop")
    exact = smollm2.generate(QUESTION, schema={"const": True}, max_tokens=answer.stats.generated_tokens)
    assert (exact.text(), exact.stats.finish_reason) == ("true", "stop")
    cut = smollm2.generate(QUESTION, schema=WIZARD, max_tokens=5)
    assert cut.text().startswith("{")
    assert cut.stats.finish_reason == "length"
    stopped = smollm2.generate(QUESTION, schema={"const": ["one", "two", "three"]}, stop="two")
    assert stopped.text().endswith('"')
    assert stopped.stats.finish_reason == "stop_string"


def test_prefix_is_read_by_it(smollm2: adv.Generator) -> None:
    answer = smollm2.generate(QUESTION, schema=WIZARD, prefix='{"name": "Bo', max_tokens=80)
    assert json.loads(answer.text())["name"].startswith("Bo")
    whole = smollm2.generate(QUESTION, schema={"const": [1]}, prefix="[1]")
    assert (whole.text(), whole.stats.generated_tokens, whole.stats.finish_reason) == ("[1]", 0, "stop")


def test_a_bias_cannot_allow_what_it_forbids(smollm2: adv.Generator) -> None:
    schema = {"enum": ["yes", "no"]}
    ids = smollm2.tokenize("Sure! The answer")
    biased = smollm2.generate(QUESTION, schema=schema, logit_bias=dict.fromkeys(ids, 100.0))
    assert json.loads(biased.text()) in schema["enum"]
    plain = json.loads(smollm2.generate(QUESTION, schema=schema).text())
    first = smollm2.tokenize(plain)[0]
    other = smollm2.generate(QUESTION, schema=schema, logit_bias={first: -100.0, **dict.fromkeys(ids, 50.0)})
    assert json.loads(other.text()) in schema["enum"]
    with pytest.raises(ValueError, match=r"^logit_bias: every token that the schema allows here is banned$"):
        smollm2.generate(QUESTION, schema=schema, logit_bias={ids[0]: float("inf")}).text()


def test_logprobs_are_the_models_own(smollm2: adv.Generator) -> None:
    free = smollm2.generate(QUESTION, max_tokens=1, logprobs=3)
    free.text()
    kept = smollm2.generate(QUESTION, schema={"const": [7]}, logprobs=3)
    kept.text()
    assert free.logprobs is not None
    assert kept.logprobs is not None
    assert [t.id for t in kept.logprobs[0].alternatives] == [t.id for t in free.logprobs[0].alternatives]
    assert kept.logprobs[0].logprob < free.logprobs[0].logprob < 0
    assert len(kept.logprobs) == kept.stats.generated_tokens


@pytest.mark.parametrize(
    ("schema", "options", "error", "message"),
    [
        ("json", {}, TypeError, "schema='json': expected a JSON schema as a dict, not str"),
        (True, {}, TypeError, "schema=True: expected a JSON schema as a dict, not bool"),
        ({"const": {1, 2}}, {}, TypeError, "schema: not JSON: Object of type set is not JSON serializable"),
        ({"const": float("nan")}, {}, ValueError, "schema: not JSON: Out of range float values.*"),
        ({"const": "\ud800"}, {}, ValueError, "schema: not JSON: .* column 18"),
        ({"type": "strin"}, {}, ValueError, "schema: Invalid type: strin"),
        ({"not": {}}, {}, ValueError, r'schema: Unimplemented keys: \["not"\]'),
        ({"type": "string", "format": "emil"}, {}, ValueError, "schema: Unknown format: emil"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, {}, ValueError, r"schema: .*minimum \(5\) .*\(4\)"),
        ({"enum": []}, {}, ValueError, "schema: Unsatisfiable schema: anyOf is empty"),
        ({"$ref": "#"}, {}, ValueError, "schema: it allows no answer"),
        ({"$ref": "#/$defs/no"}, {}, ValueError, "schema: Pointer '/[$]defs/no' does not exist"),
        ({"$ref": "http://127.0.0.1:9/x"}, {}, ValueError, "schema: Resource 'http://127.0.0.1:9/x' is not present .*"),
        ({"$ref": "file:///etc/passwd"}, {}, ValueError, "schema: Resource 'file:///etc/passwd' is not present .*"),
        ({"oneOf": [{"type": "object"}, {}]}, {}, ValueError, "schema: oneOf constraints are not supported"),
        ({"enum": ["x" * 300_000]}, {}, ValueError, "schema: it has 300014 bytes of JSON, at most 262144 are read"),
        ({"pattern": "a?" * 5000}, {}, ValueError, "schema: its patterns have 10000 bytes, at most 8192 are read"),
        ({"pattern": "(", "type": "string"}, {}, ValueError, "schema: regex parse error: .* unclosed group"),
        (
            {"type": "object"},
            {"prefix": "Sure"},
            ValueError,
            'prefix="Sure": no answer .* begins so keeps to the schema',
        ),
    ],
)
def test_bad_input(
    smollm2: adv.Generator, schema: Any, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        smollm2.generate("x", schema=schema, **options)
    assert re.fullmatch(message, str(raised.value)), str(raised.value)


PATTERNS = [
    r"[A-Z][a-z]{1,9} the [A-Z][a-z]{1,9}",
    r"^\d{1,2}/\d{1,2}/\d{4}$",
    r"(red|green|blue)(, (red|green|blue)){1,3}",
    r"[äöüß]{2,4} – [一-龥]{2}",
    r"\$[1-9][0-9]{0,3}\.[0-9]{2}",
    r"(?i)yes|no",
    r"a\\b#c",
]


@pytest.mark.parametrize("pattern", PATTERNS)
def test_answers_match_a_pattern(smollm2: adv.Generator, gemma: adv.Generator, pattern: str) -> None:
    whole = 0
    for seed in range(3):
        options: dict[str, Any] = {"pattern": pattern, "max_tokens": 40, "temperature": seed / 2, "seed": seed}
        for answer in (smollm2.generate(QUESTION, **options), gemma.complete("It is ", **options)):
            text = answer.text()
            if answer.stats.finish_reason == "stop":
                assert re.fullmatch(pattern, text), text
                whole += 1
    assert whole


def test_answers_are_one_of_the_choices(smollm2: adv.Generator, gemma: adv.Generator) -> None:
    choices = [
        "red",
        "red apple",
        'a (b|c) [d]* \\ / # "e" ^$',
        "ÄÖ 日本 🐉",
        "two\nlines\tand a tab",
        " space",
        "</s><|im_end|>",
    ]
    seen = set()
    for seed in range(12):
        for generator in (smollm2, gemma):
            answer = generator.complete("The answer:", choices=choices, temperature=3.0, seed=seed, max_tokens=40)
            seen.add(answer.text())
            assert answer.stats.finish_reason == "stop"
    assert seen <= set(choices)
    assert len(seen) > 1
    for choice in choices:
        assert smollm2.generate("x", choices=(c for c in [choice])).text() == choice
    assert smollm2.generate(QUESTION, choices=["red apple"], prefix="red a").text() == "red apple"
    many = [f"item {i * 7919 % 1000:03}" for i in range(900)]
    assert smollm2.generate(QUESTION, choices=many).text() in many


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"pattern": 7}, TypeError, "pattern=7: expected a str, not int"),
        ({"pattern": ""}, ValueError, "pattern: it is empty"),
        ({"pattern": "("}, ValueError, "pattern: .*unclosed group.*"),
        ({"pattern": "(?=a)a"}, ValueError, "pattern: .*look-around.*"),
        ({"pattern": r"(a)\1"}, ValueError, "pattern: .*backreferences.*"),
        ({"pattern": r"a\bb"}, ValueError, "pattern: .*lookarounds not supported.*"),
        ({"pattern": "x" * 8193}, ValueError, "pattern: it has 8193 bytes, at most 8192 are read"),
        ({"pattern": "\ud800"}, ValueError, "pattern is not valid Unicode: .*"),
        ({"pattern": "[0-9]+", "prefix": "no"}, ValueError, 'prefix="no": no answer .* begins so keeps to the pattern'),
        ({"choices": "yes"}, TypeError, "choices='yes': expected an iterable of str, not str"),
        ({"choices": 7}, TypeError, "choices=7: expected an iterable of str, not int"),
        ({"choices": []}, ValueError, "choices: there is none"),
        ({"choices": ["a", 7]}, TypeError, r"choices\[1\]=7: expected a str, not int"),
        ({"choices": ["a", ""]}, ValueError, r"choices\[1\]: an empty text is no answer"),
        ({"choices": ["a" * 9000]}, ValueError, "choices: they have 9000 bytes, at most 8192 are read"),
        ({"choices": ["a"], "pattern": "a"}, ValueError, "pattern and choices: an answer keeps to one of them"),
        ({"schema": {}, "choices": ["a"]}, ValueError, "schema and choices: an answer keeps to one of them"),
    ],
)
def test_bad_patterns_and_choices(
    smollm2: adv.Generator, options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error) as raised:
        smollm2.generate("x", **options)
    assert re.fullmatch(message, str(raised.value)), str(raised.value)
    assert smollm2.generate("x", choices=["fine"]).text() == "fine"


def test_a_schema_that_holds_itself_or_is_too_deep(smollm2: adv.Generator) -> None:
    circle: dict[str, Any] = {}
    circle["items"] = circle
    with pytest.raises(ValueError, match=r"^schema: not JSON: Circular reference"):
        smollm2.generate("x", schema=circle)
    deep: dict[str, Any] = {}
    for _ in range(300):
        deep = {"items": deep}
    with pytest.raises(ValueError, match=r"^schema: not JSON: recursion limit exceeded"):
        smollm2.generate("x", schema=deep)


@pytest.mark.alone
def test_ctrl_c_stops_it() -> None:
    code = """
import adventures as adv, os, signal, threading, time
generator = adv.Generator("smollm2-135m-instruct")
answer = generator.generate("Tell a very long story.", schema={"type": "string", "minLength": 10**6}, max_tokens=8000)
next(answer)
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
start = time.monotonic()
try:
    answer.text()
except KeyboardInterrupt:
    print(time.monotonic() - start < 2, answer.stats.finish_reason)
"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
    assert out.stdout.strip() == "True closed", out.stdout + out.stderr


@pytest.mark.parametrize("shape", [{"schema": WIZARD}, {"pattern": "a+"}, {"choices": ["a", "b"]}])
def test_a_chat_that_cites_takes_none(stock: adv.Library, smollm2: adv.Generator, shape: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=rf"^{next(iter(shape))}: an answer that cites its sources is text"):
        adv.Chat(stock, smollm2, **shape)
