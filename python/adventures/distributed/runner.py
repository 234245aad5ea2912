"""A sync's reading, embedding and writing, done by Daft: in this process, or by workers of a Ray cluster."""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import cloudpickle
import daft
import lance
import numpy as np

from adventures._adventures import AdventuresError
from adventures.census import Census, Change, Difference
from adventures.distributed.parts import parts_of
from adventures.distributed.work import Counting, Share, Writing, Written, answer
from adventures.storage import model_of
from adventures.store import LanceDraft, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tqdm import tqdm

    from adventures._adventures import Embedder
    from adventures.census import Digester
    from adventures.delta import RowSource
    from adventures.passages import Writer
    from adventures.plan import Plan
    from adventures.storage import Draft, Storage

_ROWS = 100_000
_ATTEMPTS = 4


class _Worker:
    """A process, or a thread, that does tasks of one kind."""

    def __init__(self, job: bytes) -> None:
        self._error: Exception | None = None
        try:
            self._job: Counting | Writing = cloudpickle.loads(job)
            self._job.start()
        except Exception as error:  # noqa: BLE001 (raised by the driver, not tried again)
            self._error = error

    @daft.method.batch(return_dtype=daft.DataType.binary(), batch_size=1)
    def do(self, tasks: daft.Series) -> list[bytes]:
        if self._error is not None:
            return [pickle.dumps(self._error) for _ in tasks]
        return [answer(self._job, task) for task in tasks.to_pylist()]


@dataclass(slots=True)
class DaftRunner:
    """Syncs a library in LanceDB by Daft.

    The table is cut into parts of `rows` rows. Workers take the census of each, the driver compares it with the
    library, and workers embed what is new and write it as files that no version has. What a worker that dies had not
    handed in is done again; one commit of the driver takes in each part once.

    Attributes:
        load: Opens the model, in each worker: `lambda: adv.Embedder("all-minilm-l6-v2", threads=4)`.
        engine: `"native"`, this process; or `"ray"`, a cluster.
        address: The cluster's; by default the one that there is, or one on this machine.
        workers: How many a cluster has, each with a model of its own; by default as many as it has processors for.
        cpus: How many processors a worker of a cluster has.
        rows: How many rows a part has.
    """

    load: Callable[[], Embedder]
    engine: Literal["native", "ray"] = "native"
    address: str | None = None
    workers: int | None = None
    cpus: int = 1
    rows: int = _ROWS

    def __post_init__(self) -> None:
        if self.engine not in ("native", "ray"):
            raise ValueError(f"engine must be 'native' or 'ray', not {self.engine!r}")
        for name, value in (("workers", self.workers), ("cpus", self.cpus), ("rows", self.rows)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a whole number from 1 on, not {value!r}")

    def check(self, storage: Storage) -> None:
        """Raises ValueError where the library is not in LanceDB."""
        if not isinstance(storage, Store):
            # No TypeError, which would be a bug: the place of a library is the user's.
            raise ValueError(f"Daft writes libraries in LanceDB only; sync {storage} without a runner")  # noqa: TRY004

    def census(self, source: RowSource, digester: Digester, *, first: bool = False) -> Census:
        """Returns the census of a source, with the part that each row is in."""
        parts = parts_of(source.table, self.rows)
        # A worker gets the part in place of the table.
        job = Counting(source.of_part(None), digester, texts=not first)
        found: dict[int, Census] = dict(self._done(job, dict(enumerate(parts))))
        return Census.merged([found[number] for number in range(len(parts))], source)

    def write(self, draft: Draft, plan: Plan, digester: Digester, writer: Writer, bar: tqdm[Any]) -> int:
        """Writes what a plan says, and returns how many of its rows were not found again."""
        assert isinstance(draft, LanceDraft)
        store, published = draft.store, writer.known.published
        uri = f"{store.db.uri}/{store.name}.lance"
        job = Writing(
            load=self.load,
            model=model_of(writer.embedder),
            source=plan.source.of_part(None),
            digester=digester,
            cut=writer.cut,
            schema=writer.schema,
            uri=uri,
            anew=plan.rewrite,
            library=(store.path, store.name, store.storage_options),
            version=None if published is None else published.version,
        )
        shares = dict(self._shares(plan))
        left = sum(len(share.census) for share in shares.values())
        fragments: list[Any] = []
        for _, written in self._done(job, shares):
            assert isinstance(written, Written)
            fragments += [lance.FragmentMetadata.from_json(one) for one in written.fragments]
            left -= written.rows
            work = writer.work
            work.passages += written.passages
            work.tokens += written.tokens
            work.truncated += written.truncated
            bar.update(written.rows)
        operation = (
            lance.LanceOperation.Overwrite(writer.schema, fragments)
            if plan.rewrite
            else lance.LanceOperation.Append(fragments)
        )
        lance.LanceDataset.commit(
            uri, operation, read_version=draft.table.version, storage_options=store.storage_options or None
        )
        table: Any = draft.table
        table.checkout_latest()
        return left

    def _shares(self, plan: Plan) -> Iterator[tuple[int, Share]]:
        """The parts that have something to be written, with what it is."""
        census, difference = plan.census, plan.difference
        assert census.parts is not None
        wanted = np.flatnonzero(plan.wanted)
        if not len(wanted):
            # `split` would give one share all the same.
            return
        wanted = wanted[np.argsort(census.parts[wanted], kind="stable")]
        numbers, starts = np.unique(census.parts[wanted], return_index=True)
        parts = parts_of(plan.source.table, self.rows)
        for number, rows in zip(numbers.tolist(), np.split(wanted, starts[1:]), strict=True):
            some = Census(census.digests[rows], len(rows), [])
            changes = difference.changes[rows]
            stocked = np.full(len(rows), -1, np.int64)
            known = np.flatnonzero(changes <= Change.METADATA)
            stock = plan.stock.some(difference.stocked[rows[known]])
            stocked[known] = np.arange(len(known))
            yield number, Share(parts[number], some, stock, Difference(changes, stocked, np.empty(0, np.int64)))

    def _done(self, job: Counting | Writing, tasks: dict[int, Any]) -> Iterator[tuple[int, Any]]:
        """What workers make of tasks, as they come, each once; those of a worker that died are given out again."""
        left = {number: pickle.dumps(task) for number, task in tasks.items()}
        payload = cloudpickle.dumps(job)
        workers = self._started(len(tasks)) if left else 0
        for attempt in range(_ATTEMPTS if left else 0):
            frame = self._frame(payload, left, workers)
            try:
                for row in frame.iter_rows():
                    done = pickle.loads(row["done"])  # noqa: S301 (of a worker of ours)
                    _raise_failure(done)
                    del left[row["number"]]
                    yield row["number"], done
                break
            except _FailedError as failed:
                raise failed.error from None
            except Exception as error:
                # Daft's own, of a worker that is gone.
                if attempt + 1 == _ATTEMPTS:
                    raise AdventuresError(f"workers were lost {_ATTEMPTS} times; the last time: {error}") from error
        if left:
            raise AdventuresError(f"Daft left {len(left)} of {len(tasks)} parts undone")

    def _frame(self, payload: bytes, tasks: dict[int, bytes], workers: int) -> daft.DataFrame:
        frame = daft.from_pydict({"number": list(tasks), "task": list(tasks.values())})
        if self.engine == "ray":
            frame = frame.into_partitions(min(len(tasks), 4 * workers))
        # In this process one model serves all threads; on a cluster each worker is a process with one of its own.
        own = {"use_process": False} if self.engine == "native" else {"max_concurrency": workers, "cpus": self.cpus}
        kind: Any = daft.cls(_Worker, **own)
        return frame.select(frame["number"], kind(payload).do(frame["task"]).alias("done"))

    def _started(self, tasks: int) -> int:
        """Starts the engine, and returns how many workers it shall have."""
        if self.engine == "ray":
            try:
                ray: Any = import_module("ray")
            except ImportError as error:
                raise ImportError(
                    f"a sync on a Ray cluster needs more packages: pip install 'adventures[distributed]' ({error})"
                ) from error
            if not ray.is_initialized():
                ray.init(address=self.address, include_dashboard=False, log_to_driver=False)
            daft.set_runner_ray(noop_if_initialized=True)
        elif daft.runners.get_or_infer_runner_type() != "native":
            daft.set_runner_native()
        if daft.runners.get_or_create_runner().name != self.engine:
            raise ValueError(f"Daft has another engine than {self.engine} in this process, and cannot change it")
        if self.engine == "native":
            return 1
        # One more than there is room for would be waited for, in silence.
        room = int(ray.cluster_resources().get("CPU", 1)) // self.cpus
        if not room:
            raise ValueError(f"the cluster has no {self.cpus} processors for a worker")
        return min(self.workers or room, room, tasks)


class _FailedError(Exception):
    """A task that would fail again."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


def _raise_failure(done: object) -> None:
    if isinstance(done, Exception):
        raise _FailedError(done)
