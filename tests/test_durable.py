"""A library whose writers die, fight and lose their disks: nothing is lost, nothing is there twice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import lancedb
import pytest
from deltalake import DeltaTable, write_deltalake

import adventures as adv
from adventures import lease, store
from adventures.library import Library
from killing import kill
from object_store import Place
from test_follow import COLUMNS, FEED, contents, table
from words import WordEmbedder

TESTS = Path(__file__).parent
# How many writers are killed; a hundred are worth the time now and then.
KILLS = int(os.environ.get("KILLS", "10"))

PREFACE = f"""
import sys
sys.path.insert(0, {str(TESTS)!r})
from words import WordEmbedder
from adventures import BusyError, Library, store
"""


@pytest.fixture
def delta(tmp_path: Path) -> Path:
    """A table of four versions: rows come, change and go."""
    path = tmp_path / "delta"
    write_deltalake(path, table(2000), configuration=FEED)
    write_deltalake(path, table(100, start=2000), mode="append")
    DeltaTable(path).update(predicate="id % 50 = 0", updates={"text": "concat('up ', text)"})
    DeltaTable(path).delete("id % 40 = 1")
    return path


@pytest.fixture
def library(tmp_path: Path) -> Library:
    return Library.open(tmp_path / "library", embedder=WordEmbedder())


def states(delta: Path, folder: Path) -> dict[int, Any]:
    """What a library has of each version that nobody disturbed."""
    found = {}
    for version in range(4):
        fresh = Library.open(folder, embedder=WordEmbedder(), table=f"v{version}")
        fresh.sync(delta, **COLUMNS, version=version)
        found[version] = contents(fresh)
    return found


def at_once(code: str, count: int) -> list[str]:
    """What as many processes print that begin together; each is told its number, and all must end well."""
    start = [sys.executable, "-c", code]
    children = [subprocess.Popen([*start, str(n)], stdin=-1, stdout=-1, stderr=-1, text=True) for n in range(count)]
    for child in children:
        assert child.stdin
        child.stdin.write("\n")
        child.stdin.flush()
    ends = [child.communicate(timeout=300) for child in children]
    assert all(child.returncode == 0 for child in children), [err for _, err in ends]
    return [out for out, _ in ends]


class TestKilled:
    @pytest.mark.timeout(200 + 20 * KILLS)
    def test_at_any_moment(self, library: Library, delta: Path, tmp_path: Path) -> None:
        """SIGKILL while rows are written, indexes made, files compacted and versions published."""
        truth = states(delta, tmp_path / "truth")
        library.sync(delta, **COLUMNS, version=0)
        started = time.monotonic()
        library.sync(delta, **COLUMNS, version=1)
        longest = 2 * (time.monotonic() - started)
        torn: list[Any] = []
        seen = Counter[int]()
        reader = Library.open(library.path, embedder=WordEmbedder())

        def read() -> None:
            hits = reader.search("row of the ledger", k=3000)
            versions = {hit.source.version for hit in hits}
            if len(versions) != 1 or len(hits) != len(truth[versions.pop()]):
                torn.append(Counter(hit.source.version for hit in hits))

        def after() -> None:
            version = library.metadata["source"]["version"]
            assert contents(library) == truth[version]
            seen[version] += 1

        prepare = f"""
from words import WordEmbedder
from adventures import Library, store
store._FRAGMENTS = 0  # every sync compacts
library = Library.open({library.path!r}, embedder=WordEmbedder())
"""
        write = f'library.sync({str(delta)!r}, id="id", text="{{text}}", version=rng.randrange(4))'
        kill(prepare, write, times=KILLS, longest=longest, after=after, read=read)
        assert not torn
        assert len(seen) > 1, seen
        library.sync(delta, **COLUMNS)
        assert contents(library) == truth[3]


class TestWriters:
    """Of several writers one wins at a time."""

    @pytest.fixture(params=["", "file://", "s3://"])
    def place(self, request: pytest.FixtureRequest, tmp_path: Path) -> Place:
        own: Place = (
            request.getfixturevalue("bucket") if request.param == "s3://" else Place(f"{request.param}{tmp_path}")
        )
        return own

    def test_four_at_once(self, place: Place, tmp_path: Path, delta: Path) -> None:
        path, options = f"{place.uri}/library", place.options
        code = f"""{PREFACE}
from pathlib import Path
import time
inside = Path({str(tmp_path / "inside")!r})

class Watched(WordEmbedder):
    def encode(self, texts, kind="passage"):
        inside.mkdir()  # fails where another is in here
        time.sleep(0.02)
        inside.rmdir()
        return super().encode(texts, kind)

library = Library.open({path!r}, embedder=Watched(), storage_options={options!r})
sys.stdin.readline()
won = lost = 0
while won < 3:
    try:
        library.sync({str(delta)!r}, id="id", text="{{text}}", version=(won + int(sys.argv[1])) % 4)
        won += 1
    except BusyError:
        lost += 1
        time.sleep(0.05)
print(won, lost)
"""
        assert sum(int(out.split()[1]) for out in at_once(code, 4)) > 0, "nobody was in the way of anybody"
        library = Library.open(path, embedder=WordEmbedder(), storage_options=options)
        version = library.metadata["source"]["version"]
        assert contents(library) == states(delta, tmp_path / "truth")[version]

    def test_a_lease_of_the_dead_is_taken_over(
        self, tmp_path: Path, delta: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = f"file://{tmp_path / 'library'}"
        code = f"""{PREFACE}
import os
class Dies(WordEmbedder):
    def encode(self, texts, kind="passage"):
        os._exit(9)
Library.open({path!r}, embedder=Dies()).sync({str(delta)!r}, id="id", text="{{text}}")
"""
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 9
        library = Library.open(path, embedder=WordEmbedder())
        with pytest.raises(adv.BusyError, match="is being written by another sync on "):
            library.sync(delta, **COLUMNS)
        monkeypatch.setattr(lease, "_SILENCE", 0.0)
        with pytest.raises(adv.AdventuresError, match=r"the lease on .* was lost to another writer"):
            library.sync(delta, **COLUMNS)
        assert len(library) == 0
        monkeypatch.setattr(lease, "_SILENCE", 60.0)
        library.sync(delta, **COLUMNS)
        library.sync(delta, **COLUMNS, version=0)
        assert len(library) == 2000

    @pytest.mark.parametrize("moment", ["embedding", "write", "index"])
    def test_a_lease_that_was_lost_publishes_nothing(
        self, tmp_path: Path, delta: Path, moment: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        path = f"file://{tmp_path / 'library'}"
        db = lancedb.connect(path)
        lost: list[int] = []

        def lose() -> None:
            db.create_table("passages-lease-9", schema=lease._SCHEMA)
            lost.append(db.open_table("passages").version)

        class Loses(WordEmbedder):
            def encode(self, texts: list[str], kind: str = "passage") -> Any:
                if moment == "embedding" and not lost:
                    lose()
                return super().encode(texts, kind)

        library = Library.open(path, embedder=WordEmbedder())
        library.sync(delta, **COLUMNS, version=0)
        if moment != "embedding":
            done = getattr(store.LanceDraft, moment)

            def then_lose(*args: Any, **more: Any) -> None:
                done(*args, **more)
                lose()

            monkeypatch.setattr(store.LanceDraft, moment, then_lose)
        with pytest.raises(adv.AdventuresError, match="was lost to another writer; nothing was published"):
            Library.open(path, embedder=Loses()).sync(delta, **COLUMNS)
        assert len(library) == 2000
        # Nor does it write, or undo, what may be the other's by now.
        assert db.open_table("passages").version == lost[0]

    @pytest.mark.alone
    @pytest.mark.parametrize("place", ["file://", "s3://"], indirect=True)
    def test_a_lease_has_one_holder(self, place: Place, tmp_path: Path) -> None:
        """Of many that ask at once: LanceDB tells several of them that they made the same table."""
        code = f"""{PREFACE}
import time, lancedb
from pathlib import Path
from adventures.lease import leased
db = lancedb.connect({place.uri + "/library"!r}, storage_options={place.options!r})
inside = Path({str(tmp_path / "inside")!r})
sys.stdin.readline()
won, end = 0, time.time() + 5
while time.time() < end:
    try:
        with leased(db, "passages", "the library") as lease:
            inside.mkdir()  # fails where another is in here
            lease.check()
            won += 1
            inside.rmdir()
    except BusyError:
        pass
print(won)
"""
        assert sum(map(int, at_once(code, 6))) > 10

    def test_who_lost_a_lease_does_not_hold_it_up(self, tmp_path: Path) -> None:
        """One who tried to make the same table leaves a note in it, that it is held."""
        db = lancedb.connect(f"file://{tmp_path}/library")
        with lease.leased(db, "passages", "the library") as held:
            note = lease._SCHEMA.with_metadata({"lease": lease._note("another", held=True)})
            held.say(held=True)
            db.create_table(held.name, schema=note, mode="overwrite")
            with pytest.raises(adv.BusyError), lease.leased(db, "passages", "the library"):
                pass
        db.create_table(held.name, schema=note, mode="overwrite")
        with lease.leased(db, "passages", "the library") as next_:
            assert next_.number == held.number + 1

    def test_a_lease_is_renewed(self, tmp_path: Path, delta: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lease, "_SILENCE", 1.0)
        monkeypatch.setattr(lease, "_RENEWAL", 0.05)
        path = f"file://{tmp_path / 'library'}"
        other = Library.open(path, embedder=WordEmbedder())

        class Slow(WordEmbedder):
            def encode(self, texts: list[str], kind: str = "passage") -> Any:
                if not self.embedded:
                    time.sleep(3)
                    with pytest.raises(adv.BusyError):
                        other.sync(delta, **COLUMNS)
                return super().encode(texts, kind)

        assert Library.open(path, embedder=Slow()).sync(delta, **COLUMNS).added > 2000


class TestRepair:
    def last(self, folder: Path, pattern: str) -> Path:
        return max(folder.glob(pattern), key=lambda file: file.stat().st_mtime_ns)

    @pytest.fixture
    def synced(self, library: Library, delta: Path) -> Library:
        for version in range(3):
            library.sync(delta, **COLUMNS, version=version)
        return library

    @pytest.mark.parametrize("damage", ["empty", "half", "zeros"])
    @pytest.mark.parametrize("what", ["_versions/*.manifest", "_refs/tags/published.json", "data/*.lance"])
    def test_power_cuts(self, synced: Library, delta: Path, tmp_path: Path, what: str, damage: str) -> None:
        truth = states(delta, tmp_path / "truth")
        folder = Path(synced.path) / "passages.lance"
        file = self.last(folder, what)
        data = file.read_bytes()
        file.write_bytes({"empty": b"", "half": data[: len(data) // 2], "zeros": bytes(len(data))}[damage])
        broken = False
        try:
            broken = contents(Library.open(synced.path, embedder=WordEmbedder())) != truth[2]
        except adv.AdventuresError as error:
            broken = "`adventures library repair`" in str(error)
        except (RuntimeError, ValueError, OSError, KeyError):
            broken = True
        assert broken
        report = Library.repair(synced.path)
        library = Library.open(synced.path, embedder=WordEmbedder())
        # The version before is whole: what was torn came after it.
        assert report.version == library.metadata["source"]["version"]
        assert report.version in (1, 2)
        assert contents(library) == truth[report.version]
        assert library.search("row 7 of the ledger", hybrid=True)[0].id == "7#0"
        library.sync(delta, **COLUMNS)
        assert contents(library) == truth[3]

    def test_what_was_never_published_is_let_go(self, synced: Library, delta: Path) -> None:
        before = contents(synced)
        raw = lancedb.connect(synced.path).open_table("passages")
        raw.delete("ordinal = 0")
        versions = Path(synced.path) / "passages.lance" / "_versions"
        newest = self.last(versions, "*.manifest")
        newest.write_bytes(b"")
        report = Library.repair(synced.path)
        assert (report.version, report.rolled_back) == (2, False)
        assert str(newest) in report.moved
        assert Path(report.moved[str(newest)]).exists()
        assert contents(Library.open(synced.path, embedder=WordEmbedder())) == before

    @pytest.mark.parametrize(("names_from", "indexes"), [(50_000, ["text_idx"]), (1, ["row_id_idx", "text_idx"])])
    def test_a_broken_index_is_made_anew(
        self, library: Library, delta: Path, names_from: int, indexes: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(store, "NAMES_FROM", names_from)
        library.sync(delta, **COLUMNS)
        before = contents(library)
        for file in (Path(library.path) / "passages.lance" / "_indices").rglob("*.lance"):
            file.write_bytes(b"")
        with pytest.raises(adv.AdventuresError):
            Library.open(library.path, embedder=WordEmbedder()).search("row 7", hybrid=True)
        assert sorted(Library.repair(library.path).rebuilt) == indexes
        library = Library.open(library.path, embedder=WordEmbedder())
        assert contents(library) == before
        assert library.search("row 7", hybrid=True, expand=1)

    def test_a_whole_library_stays_as_it_is(self, synced: Library) -> None:
        version = synced.table.version
        report = Library.repair(synced.path)
        assert (report.moved, report.rolled_back, report.rebuilt) == ({}, False, [])
        assert Library.open(synced.path).table.version == version

    def test_nothing_to_save(self, synced: Library, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match="no library at"):
            Library.repair(tmp_path / "none")
        shutil.rmtree(Path(synced.path) / "passages.lance" / "data")
        with pytest.raises(
            adv.AdventuresError, match=r"none of its 2 published versions can be read; move .* sync anew"
        ):
            Library.repair(synced.path)
        with pytest.raises(ValueError, match="an object store tears no files"):
            Library.repair(f"file://{synced.path}")

    def test_what_is_published_is_on_the_disk(
        self, library: Library, delta: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Every file that the tag leads to is synced before it, and the tag after."""
        done: list[str] = []
        plain = os.fsync
        monkeypatch.setattr(
            os, "fsync", lambda handle: (done.append(str(Path(f"/proc/self/fd/{handle}").readlink())), plain(handle))
        )
        for version in range(3):
            done.clear()
            before = {str(file) for file in Path(library.path).rglob("*") if file.is_file()}
            library.sync(delta, **COLUMNS, version=version)
            tag = str(Path(library.path) / "passages.lance" / "_refs" / "tags" / "published.json")
            files = {str(file) for file in Path(library.path).rglob("*") if file.is_file()} - before - {tag}
            new = {file for file in files if "passages.lance" in file}
            last = len(done) - 1 - done[::-1].index(tag)
            assert new
            assert new <= set(done)
            assert {file for file in new if "/_refs/" not in file} <= set(done[:last])
            assert {str(Path(file).parent) for file in new} <= set(done)
