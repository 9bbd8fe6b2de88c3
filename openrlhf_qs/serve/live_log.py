"""The log of a server: every impression and every event, on disk before it is acknowledged.

One SQLite file in WAL mode. One thread writes; what waits while it works goes into one transaction, whose commit is
one flush of the disk for all of it (group commit). Whoever asked is told after the commit: a process or a machine that
dies at any moment loses nothing that was acknowledged, and an id that is sent again changes nothing. Several processes
of one machine may write into one file; a network file system will not do. Why SQLite and no journal of our own:
docs/SERVING.md.

What counts as a click is decided in one place, :func:`clicks_of`, from what was kept.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import os
import queue
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

from openrlhf_qs.form.prompt import Message

T = TypeVar("T")
Kind = Literal["shown", "clicked", "dismissed", "passed"]
Status = Literal["accepted", "duplicate", "late", "unknown", "no_such_place"]

FILE, SALT = "live.sqlite", "salt"
CLICK_WINDOW_S = 24 * 3600.0  # a click that comes later is none
MAX_BATCH = 512  # of what waits, in one transaction
BUSY_S = 30.0  # that another process may write
SCHEMA = """
create table if not exists impression (
    id text primary key, at real not null, user text, chat text, n_shown integer not null, row text not null
) without rowid;
create index if not exists impression_at on impression (at);
create index if not exists impression_user on impression (user);
create index if not exists impression_chat on impression (chat, at);
create table if not exists event (
    id text primary key, impression text not null, kind text not null, place integer not null, at real not null,
    source text not null, status text not null
) without rowid;
create index if not exists event_impression on event (impression);
create index if not exists event_at on event (at);
"""


@dataclass
class Impression:
    """What was answered to one request.

    Attributes:
        id: unique; whoever sends it again gets what was answered first.
        conversation, suggestions: as asked and as shown; no suggestion where the server was silent.
        policy: the arm.
        log_prob: nats, of the response, where what is shown is one as it was written.
        user, chat: pseudonyms, from :meth:`LiveLog.pseudonym`.
        meta: anything else, JSON.
        at: seconds since 1970.
    """

    id: str
    conversation: Sequence[Message]
    suggestions: Sequence[str]
    policy: str
    log_prob: float | None = None
    user: str | None = None
    chat: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    at: float = field(default_factory=time.time)

    def row(self) -> str:
        """All but what has a column of its own, as JSON."""
        row = {
            "conversation": list(self.conversation),
            "suggestions": list(self.suggestions),
            "policy": self.policy,
            "log_prob": self.log_prob,
            "meta": self.meta,
        }
        return json.dumps(row, ensure_ascii=False)

    @classmethod
    def read(cls, id: str, at: float, user: str | None, chat: str | None, row: str) -> Impression:
        return cls(id=id, at=at, user=user, chat=chat, **json.loads(row))


@dataclass
class Event:
    """What became of an impression.

    Attributes:
        impression: its id.
        kind: ``passed`` where the user's next message was another one than those suggested.
        place: of the suggestion, from 0; -1 for all of them.
        id: unique; empty: one is made from the other three, which happen once.
        source: who said it: ``client``, or ``next_message``.
    """

    impression: str
    kind: Kind
    place: int = -1
    id: str = ""
    source: str = "client"
    at: float = field(default_factory=time.time)


class LiveLog:
    """The log in one folder; safe to call from many tasks and threads.

    Args:
        folder: is made where it is not there, for this user alone.
        retention_s: what is older is removed, hourly; None: nothing is.
        click_window_s: see :func:`clicks_of`.
    """

    def __init__(
        self, folder: str | Path, retention_s: float | None = None, click_window_s: float = CLICK_WINDOW_S
    ) -> None:
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.salt = _salt(self.folder)
        self.retention_s, self.click_window_s = retention_s, click_window_s
        self._waiting: queue.SimpleQueue[tuple[Callable[[sqlite3.Connection], Any], Future] | None] = (
            queue.SimpleQueue()
        )
        _connect(self.folder).close()  # an error is this caller's
        self._writer = threading.Thread(target=self._write, name="live log", daemon=True)
        self._writer.start()

    def pseudonym(self, identity: str) -> str:
        """What stands in the log for a user or a chat; who does not have the salt cannot tell whom it is."""
        return _pseudonym(self.salt, identity)

    async def add(self, impression: Impression) -> Impression | None:
        """Keep an impression. Where one with that id is there, that one is returned and nothing changes."""
        row = impression.row()  # not in the thread that all wait for

        def work(db: sqlite3.Connection) -> Impression | None:
            at = (impression.at, impression.user, impression.chat, len(impression.suggestions), row)
            done = db.execute("insert or ignore into impression values (?, ?, ?, ?, ?, ?)", (impression.id, *at))
            return None if done.rowcount else _impression(db, impression.id)

        return await self._do(work)

    async def add_events(self, events: Sequence[Event]) -> list[Status]:
        """Keep events, in one transaction; the status of each. One of an impression that is not known is kept: that
        may be in the log of another machine."""
        return await self._do(lambda db: [self._add_event(db, event) for event in events])

    async def find(self, id: str) -> Impression | None:
        return await self._do(lambda db: _impression(db, id))

    async def last_of_chat(self, chat: str) -> Impression | None:
        """The newest impression of a chat in which something was shown."""
        query = "select id from impression where chat = ? and n_shown > 0 order by at desc limit 1"

        def work(db: sqlite3.Connection) -> Impression | None:
            found = db.execute(query, (chat,)).fetchone()
            return _impression(db, found[0]) if found else None

        return await self._do(work)

    def close(self) -> None:
        """End after what waits is written."""
        self._waiting.put(None)
        self._writer.join()

    async def _do(self, work: Callable[[sqlite3.Connection], T]) -> T:
        done: Future = Future()
        self._waiting.put((work, done))
        return await asyncio.wrap_future(done)

    def _add_event(self, db: sqlite3.Connection, event: Event) -> Status:
        found = db.execute("select at, n_shown from impression where id = ?", (event.impression,)).fetchone()
        one_place = event.kind in ("clicked", "dismissed")
        if found and event.place >= found[1] or event.place < -1 or (event.kind == "clicked" and event.place < 0):
            return "no_such_place"
        place = event.place if one_place else -1
        status: Status = "unknown" if not found else "accepted"
        if found and event.kind == "clicked" and event.at - found[0] > self.click_window_s:
            status = "late"
        own_id = f"{event.impression}/{event.kind}/{place}"
        same = "select 1 from event where id = ? or (impression = ? and kind = ? and place = ?)"
        if db.execute(same, (event.id or own_id, event.impression, event.kind, place)).fetchone():
            return "duplicate"
        values = (event.id or own_id, event.impression, event.kind, place, event.at, event.source, status)
        db.execute("insert into event values (?, ?, ?, ?, ?, ?, ?)", values)
        return status

    def _write(self) -> None:
        db, next_removal, ended = _connect(self.folder), 0.0, False
        while not ended:
            batch = [self._waiting.get()]
            while len(batch) < MAX_BATCH and not self._waiting.empty():
                batch.append(self._waiting.get())
            ended = None in batch
            # Who has gone meanwhile was told nothing, and has shown nothing.
            _commit(db, [one for one in batch if one is not None and one[1].set_running_or_notify_cancel()])
            if self.retention_s is not None and time.time() > next_removal:
                _commit(db, [(lambda db: remove_before(db, time.time() - self.retention_s), Future())])
                next_removal = time.time() + 3600
        db.close()


def _commit(db: sqlite3.Connection, batch: Sequence[tuple[Callable, Future]]) -> None:
    """All of the batch in one transaction. Where that fails, each in one of its own: what cannot be written is the
    error of whoever wants it written, and of nobody else."""
    if not batch:
        return
    try:
        db.execute("begin immediate")
        results = [work(db) for work, _ in batch]
        db.execute("commit")
    except Exception as error:
        if db.in_transaction:
            db.execute("rollback")
        if len(batch) == 1:
            batch[0][1].set_exception(error)
        else:
            for one in batch:
                _commit(db, [one])
        return
    for (_, done), result in zip(batch, results, strict=True):
        done.set_result(result)


def clicks_of(impression: Impression, events: Sequence[Event], window_s: float = CLICK_WINDOW_S) -> list[int]:
    """0 or 1 for each suggestion.

    A place is clicked where a click of it came within ``window_s`` of the impression. A second click of one place is
    the same click; clicks of several places are several.
    """
    places = {one.place for one in events if one.kind == "clicked" and one.at - impression.at <= window_s}
    return [int(place in places) for place in range(len(impression.suggestions))]


def read_log(folder: str | Path) -> Iterator[tuple[Impression, list[Event]]]:
    """Every impression with its events, the oldest first, while a server may write on. ValueError where there is no
    log."""
    db = _connect(existing(folder))
    try:
        db.execute("begin")  # one state of the log, whatever is written meanwhile
        rows = db.execute("select id, at, user, chat, row from impression order by at, id")
        for id, *rest in rows:
            found = db.execute(
                "select impression, kind, place, id, source, at from event where impression = ? order by at, id", (id,)
            )
            yield Impression.read(id, *rest), [Event(*one) for one in found]
    finally:
        db.close()


def unjoined_events(folder: str | Path) -> list[Event]:
    """Events of impressions that are not in this log."""
    db = _connect(existing(folder))
    try:
        query = (
            "select impression, kind, place, id, source, at from event "
            "where impression not in (select id from impression) order by at, id"
        )
        return [Event(*one) for one in db.execute(query)]
    finally:
        db.close()


def forget(folder: str | Path, user: str) -> int:
    """Remove a user's impressions with their events, and overwrite where they were. Returns how many there were.

    Args:
        user: as the chat names it, or as the log does.
    """
    folder = existing(folder)
    db = _connect(folder)
    try:
        db.execute("begin immediate")
        n = _remove(db, "user in (?, ?)", (user, _pseudonym(_salt(folder), user)))
        db.execute("commit")
        db.execute("pragma wal_checkpoint(truncate)")
        return n
    finally:
        db.close()


def remove_before(db: sqlite3.Connection, at: float) -> int:
    """Remove what is older, inside a transaction."""
    db.execute("delete from event where at < ? and impression not in (select id from impression)", (at,))
    return _remove(db, "at < ?", (at,))


def _remove(db: sqlite3.Connection, which: str, values: tuple) -> int:
    db.execute(f"delete from event where impression in (select id from impression where {which})", values)
    return db.execute(f"delete from impression where {which}", values).rowcount


def existing(folder: str | Path) -> Path:
    """``folder``, where there is a log in it; else ValueError."""
    if not (Path(folder) / FILE).is_file():
        raise ValueError(f"{folder} has no {FILE}: give the folder of `openrlhf-qs serve --log`")
    return Path(folder)


def _impression(db: sqlite3.Connection, id: str) -> Impression | None:
    found = db.execute("select id, at, user, chat, row from impression where id = ?", (id,)).fetchone()
    return Impression.read(*found) if found else None


def _connect(folder: Path) -> sqlite3.Connection:
    """A connection whose commits are on disk, and whose removals are overwritten."""
    file = folder / FILE
    if not file.exists():
        os.close(os.open(file, os.O_CREAT, 0o600))
    db = sqlite3.connect(file, timeout=BUSY_S, isolation_level=None)
    for pragma in ("journal_mode = wal", "synchronous = full", "secure_delete = on"):
        db.execute(f"pragma {pragma}")
    db.executescript(SCHEMA)
    return db


def _pseudonym(salt: bytes, identity: str) -> str:
    return hmac.new(salt, identity.encode("utf-8", "replace"), hashlib.sha256).hexdigest()[:32]


def _salt(folder: Path) -> bytes:
    """The secret of the pseudonyms, made once."""
    file = folder / SALT
    temporary = folder / f".{SALT}.{os.getpid()}.{secrets.token_hex(4)}"
    if not file.exists():
        with open(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as out:
            out.write(secrets.token_bytes(32))
            out.flush()
            os.fsync(out.fileno())
        try:
            os.link(temporary, file)  # of several processes that start at once one wins
        except FileExistsError:
            pass
        finally:
            temporary.unlink()
    return file.read_bytes()
