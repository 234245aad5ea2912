"""A writer's lease on a store without locks: one writer at a time, for as long as it says that it is there.

A lease is a small LanceDB table of its own, numbered; the highest number holds it. Of several writers that make the
same table at once LanceDB tells more than one that it did: the later ones' is its second version. So it belongs to the
one whose note the first version has: that is a commit that only one can win, on every store that LanceDB commits to
safely.
The holder renews it by commits. A holder that died stops renewing, and after a while somebody else takes the next
number; what it wrote is not published.
"""

from __future__ import annotations

import json
import os
import re
import socket
import threading
import time
import uuid
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from adventures._adventures import AdventuresError, BusyError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from lancedb.db import DBConnection
    from lancedb.table import Table

# How long a silent holder is believed in, and how often one speaks: clocks of two machines may differ by a minute.
_SILENCE = 180.0
_RENEWAL = 30.0
# How often a commit is tried: who tried to make the same table may have been faster.
_TRIES = 5
_SCHEMA = pa.schema([pa.field("lease", pa.string())])


@dataclass(slots=True)
class Lease:
    """The right to write a table, while it is held."""

    db: DBConnection
    table: str
    number: int
    what: str
    owner: str
    _spoken: float = field(default_factory=time.monotonic)

    @property
    def name(self) -> str:
        """The name of the LanceDB table that it is."""
        return f"{self.table}-lease-{self.number}"

    def check(self) -> None:
        """Raises AdventuresError where somebody else has taken over, or will soon."""
        if time.monotonic() - self._spoken > _SILENCE / 2 or _newest(self.db, self.table) != self.number:
            raise AdventuresError(f"the lease on {self.what} was lost to another writer; nothing was published")

    def renew(self) -> None:
        """Says that the holder is there."""
        before = time.monotonic()
        self.say(held=True)
        self._spoken = before

    def say(self, *, held: bool) -> None:
        """Notes whether the holder is there."""
        note = {"path": "lease", "metadata": {"lease": _note(self.owner, held=held)}}
        for _ in range(_TRIES - 1):
            with suppress(OSError, RuntimeError, ValueError):
                self.db.open_table(self.name).update_field_metadata(note)
                return
        self.db.open_table(self.name).update_field_metadata(note)


@contextmanager
def leased(db: DBConnection, table: str, what: str) -> Iterator[Lease]:
    """Holds the lease on a table for the length of a `with` block.

    Raises:
        BusyError: Somebody else holds it.
    """
    lease = _taken(db, table, what)
    done = threading.Event()
    thread = threading.Thread(target=_keep_alive, args=(lease, done), name="adventures-lease", daemon=True)
    thread.start()
    try:
        yield lease
    finally:
        done.set()
        thread.join()
        with suppress(OSError, RuntimeError, ValueError):
            lease.say(held=False)


def _keep_alive(lease: Lease, done: threading.Event) -> None:
    while not done.wait(_RENEWAL):
        # A renewal that fails is tried again; the holder asks `check` before it publishes.
        with suppress(OSError, RuntimeError, ValueError):
            lease.renew()


def _taken(db: DBConnection, table: str, what: str) -> Lease:
    newest = _newest(db, table)
    busy = f"{what} is being written by another sync"
    if newest:
        says = _said(db, f"{table}-lease-{newest}")
        if says is None or (says["held"] and time.time() - says["at"] < _SILENCE):
            who = "" if says is None else f" on {says['host']}"
            raise BusyError(f"{busy}{who}; wait for it to end")
    lease = Lease(db, table, newest + 1, what, uuid.uuid4().hex)
    try:
        schema = _SCHEMA.with_metadata({"lease": _note(lease.owner, held=True)})
        ours = _first(db.create_table(lease.name, schema=schema)) == lease.owner
        # Somebody who was held up since it looked makes a table anew that was taken, given back and dropped meanwhile.
        ours = ours and _newest(db, table) == lease.number
    except (OSError, RuntimeError, ValueError) as error:
        if _newest(db, table) > newest:
            raise BusyError(f"{busy}; wait for it to end") from error
        raise AdventuresError(f"cannot take the lease on {what}: {error}") from error
    if not ours:
        raise BusyError(f"{busy}; wait for it to end")
    # Numbers only grow, so nobody takes those of the dead again; the last but one may still be read by who lost.
    for number in _numbers(db, table):
        if number < lease.number - 1:
            with suppress(OSError, RuntimeError, ValueError):
                db.drop_table(f"{table}-lease-{number}")
    return lease


def _note(owner: str, *, held: bool) -> str:
    who = {"owner": owner, "host": socket.gethostname(), "process": os.getpid()}
    return json.dumps({"held": held, "at": time.time(), **who})


def _said(db: DBConnection, name: str) -> dict[str, Any] | None:
    """What a lease's holder said last; None where it cannot be read, being written at this moment."""
    try:
        table = db.open_table(name)
        newest = table.version
        owner = _first(table)
        # Between its notes are those of who tried to make the same table.
        for version in range(newest, 0, -1):
            table.checkout(version)
            note = _noted(table)
            if str(note.get("owner")) == owner:
                return note
    except (KeyError, OSError, RuntimeError, ValueError):
        pass
    return None


def _first(table: Table) -> str:
    """Who made a table: the owner of its first version."""
    table.checkout(1)
    return str(_noted(table).get("owner"))


def _noted(table: Table) -> dict[str, Any]:
    schema = table.schema
    raw = (schema.field("lease").metadata or {}).get(b"lease") or (schema.metadata or {})[b"lease"]
    return dict(json.loads(raw))


def _newest(db: DBConnection, table: str) -> int:
    return max(_numbers(db, table), default=0)


def _numbers(db: DBConnection, table: str) -> list[int]:
    pattern = re.compile(re.escape(table) + r"-lease-(\d+)")
    names: list[str] = []
    token: str | None = None
    while True:
        page = db.list_tables(page_token=token, limit=1000)
        names += page.tables
        token = page.page_token
        if not token:
            return [int(match[1]) for name in names if (match := pattern.fullmatch(name))]
