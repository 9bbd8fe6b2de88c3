"""What is acknowledged is on disk; what is sent again changes nothing; what counts as a click is one rule."""

import asyncio
import json
import os
import signal
import sqlite3
import stat
import subprocess
import sys
import time
from collections import Counter

import polars as pl
import pytest

from openrlhf_qs import cli
from openrlhf_qs.clicks.click_log import read_click_log
from openrlhf_qs.serve.export import click_log_rows
from openrlhf_qs.serve.live_log import FILE, Event, Impression, LiveLog, clicks_of, forget, read_log

CONVERSATION = [{"role": "user", "content": "How do I learn Turkish?"}, {"role": "assistant", "content": "Read."}]
SUGGESTIONS = ["What shall I read?", "How long does it take?", "Is it hard?"]


def impression(id="i", **what) -> Impression:
    return Impression(id, CONVERSATION, SUGGESTIONS, "new", **what)


def with_log(folder, work, **how):
    """What ``work(log)`` gives, with the log closed again."""

    async def run():
        log = LiveLog(folder, **how)
        try:
            return await work(log)
        finally:
            log.close()

    return asyncio.run(run())


def exported(*folders, window_s=60.0, seen_only=False):
    return list(click_log_rows(folders, window_s, seen_only, Counter()))


def test_an_impression_that_is_sent_again_changes_nothing_and_brings_the_first_one(tmp_path):
    async def work(log):
        first = await log.add(impression(log_prob=-1.5, meta={"temperature": 0.7}))
        again = await log.add(Impression("i", [], [], "another"))
        return first, again

    first, again = with_log(tmp_path, work)
    assert first is None
    assert (again.policy, again.log_prob, again.suggestions) == ("new", -1.5, SUGGESTIONS)
    assert len(exported(tmp_path)) == 1


def test_the_status_of_an_event_says_which_rule_it_met(tmp_path):
    async def work(log):
        await log.add(impression(at=time.time() - 30))
        await log.add(impression("old", at=time.time() - 100))
        events = [
            Event("i", "clicked", 1, "e1"),
            Event("i", "clicked", 1, "e2"),  # the same click with another id
            Event("i", "clicked", 0, "e1"),  # another click with a known id
            Event("i", "clicked", 2),
            Event("i", "clicked", 3),
            Event("i", "clicked"),
            Event("i", "shown"),
            Event("i", "shown", 1),  # of all of them
            Event("old", "clicked", 0),
            Event("who", "clicked", 0),
        ]
        return await log.add_events(events)

    statuses = with_log(tmp_path, work, click_window_s=60.0)
    assert statuses == [
        "accepted",
        "duplicate",
        "duplicate",
        "accepted",
        "no_such_place",
        "no_such_place",
        "accepted",
        "duplicate",
        "late",
        "unknown",
    ]
    rows = {row["impression_id"]: row for row in exported(tmp_path)}
    assert rows["i"]["clicks"] == [0, 1, 1] and rows["old"]["clicks"] == [0, 0, 0]
    assert rows["i"]["meta"]["heard"] == ["clicked", "shown"]


def test_a_click_counts_within_its_window_to_the_second():
    shown = impression(at=1000.0)
    clicks = [Event("i", "clicked", 0, at=1060.0), Event("i", "clicked", 1, at=1060.5), Event("i", "shown", at=1001.0)]
    assert clicks_of(shown, clicks, 60.0) == [1, 0, 0]


def test_a_click_that_went_to_another_machine_is_joined_when_both_logs_are_exported(tmp_path):
    with_log(tmp_path / "a", lambda log: log.add(impression()))
    assert with_log(tmp_path / "b", lambda log: log.add_events([Event("i", "clicked", 2)])) == ["unknown"]
    (row,) = exported(tmp_path / "a", tmp_path / "b")
    assert row["clicks"] == [0, 0, 1]
    assert exported(tmp_path / "a")[0]["clicks"] == [0, 0, 0]


def test_what_cannot_be_written_is_the_error_of_whoever_sent_it_and_of_nobody_else(tmp_path):
    async def work(log):
        bad = Impression("half", [], [], "\ud800")
        sent = [log.add(impression(str(n))) for n in range(20)]
        return await asyncio.gather(*sent[:10], log.add(bad), *sent[10:], return_exceptions=True)

    results = with_log(tmp_path, work)
    assert sum(result is None for result in results) == 20
    assert [type(result) for result in results if result is not None] == [UnicodeEncodeError]
    assert len(exported(tmp_path)) == 20


def test_what_is_exported_is_a_click_log(tmp_path, capsys):
    async def work(log):
        user = log.pseudonym("ann")
        await log.add(impression("a", user=user, log_prob=-3.25, meta={"temperature": 0.7}))
        await log.add(Impression("silent", CONVERSATION, [], "new"))
        await log.add(impression("b"))
        await log.add_events([Event("a", "clicked", 0)])
        return user

    user = with_log(tmp_path / "live", work)
    for name in ("clicks.jsonl", "clicks.parquet"):
        out = tmp_path / name
        cli.main(["log", "export", str(tmp_path / "live"), "--out", str(out)])
        log = read_click_log(out)
        assert log["impression_id"].to_list() == ["a", "b"]
        assert log["clicks"].to_list() == [[1, 0, 0], [0, 0, 0]]
        assert log["log_prob"].to_list() == [-3.25, None] and log["user_id"].to_list() == [user, None]
        assert json.loads(log["meta"][0])["temperature"] == 0.7
        assert log["timestamp"].dtype == pl.Datetime("us", "UTC")
        cli.main(["log", "check", str(out)])
    assert "answers without a suggestion" in capsys.readouterr().out
    assert [row["impression_id"] for row in exported(tmp_path / "live", seen_only=True)] == ["a"]


def test_users_are_pseudonyms_and_can_be_forgotten_while_the_server_runs(tmp_path):
    async def work(log):
        for n in range(50):
            await log.add(impression(f"a{n}", user=log.pseudonym("ann@example.org")))
        await log.add(impression("b", user=log.pseudonym("bob")))
        await log.add_events([Event("a1", "clicked", 0), Event("b", "clicked", 0)])
        removed = forget(tmp_path, "ann@example.org"), forget(tmp_path, "nobody")
        await log.add(impression("c"))
        return removed

    assert with_log(tmp_path, work) == (50, 0)
    assert [row["impression_id"] for row in exported(tmp_path)] == ["b", "c"]
    raw = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert b"ann@example.org" not in raw and b"a1" + b"\x00" not in raw
    db = sqlite3.connect(tmp_path / FILE)
    assert db.execute("select impression from event").fetchall() == [("b",)]


def test_nobody_is_forgotten_by_an_empty_name_and_an_unknown_user_is_said(tmp_path, capsys):
    async def work(log):
        await log.add(impression("of somebody whom the chat does not name", user=""))

    with_log(tmp_path, work)
    with pytest.raises(SystemExit):
        cli.main(["log", "forget", "", "--log", str(tmp_path)])
    cli.main(["log", "forget", "ann", "--log", str(tmp_path)])
    said = capsys.readouterr()
    assert "give a user" in said.err and "no impression of ann: nothing was removed" in " ".join(said.out.split())
    assert len(exported(tmp_path)) == 1


def test_what_was_forgotten_is_overwritten(tmp_path):
    secret = "a question that nobody else would ask"

    async def work(log):
        asked = [{"role": "user", "content": secret}]
        await log.add(Impression("a", asked, SUGGESTIONS, "new", user=log.pseudonym("ann")))

    with_log(tmp_path, work)
    assert secret.encode() in (tmp_path / FILE).read_bytes()
    forget(tmp_path, "ann")
    assert not any(secret.encode() in file.read_bytes() for file in tmp_path.iterdir())


def test_what_is_older_than_it_may_be_kept_is_removed(tmp_path):
    async def work(log):
        await log.add(impression("old", at=time.time() - 1000))
        await log.add(impression("new"))
        await log.find("new")

    with_log(tmp_path, work, retention_s=500.0)
    with_log(tmp_path, lambda log: log.find("new"), retention_s=500.0)
    assert [row["impression_id"] for row in exported(tmp_path)] == ["new"]


def test_nobody_else_on_the_machine_can_read_the_log(tmp_path):
    with_log(tmp_path / "live", lambda log: log.add(impression()))
    modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in (tmp_path / "live").iterdir()}
    assert set(modes.values()) == {0o600}, modes
    assert stat.S_IMODE((tmp_path / "live").stat().st_mode) == 0o700


def test_two_processes_of_one_machine_may_write_into_one_log(tmp_path):
    async def work(log):
        other = LiveLog(tmp_path)
        try:
            same = log.pseudonym("ann") == other.pseudonym("ann")
            await asyncio.gather(*((log, other)[n % 2].add(impression(str(n // 2))) for n in range(60)))
        finally:
            other.close()
        return same

    assert with_log(tmp_path, work)
    assert len(exported(tmp_path)) == 30


WRITER = """
import asyncio, sys
from openrlhf_qs.serve.live_log import Event, Impression, LiveLog

async def write():
    log = LiveLog(sys.argv[1])
    async def one(number):
        for n in range(10_000):
            id = f"{number}-{n}"
            await log.add(Impression(id, [{"role": "user", "content": "x" * 500}], ["a", "b"], "new"))
            await log.add_events([Event(id, "clicked", n % 2)])
            print(id, flush=True)
    await asyncio.gather(*map(one, range(8)))

asyncio.run(write())
"""


@pytest.mark.parametrize("seconds", [0.3, 0.7])
def test_a_killed_process_loses_nothing_that_it_acknowledged(tmp_path, seconds):
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    first = writer.stdout.readline()  # it has begun
    time.sleep(seconds)
    os.kill(writer.pid, signal.SIGKILL)
    acknowledged = [first, *writer.stdout]
    acknowledged = {line.strip() for line in acknowledged if line.endswith("\n")}
    found = {one.id: clicks_of(one, events) for one, events in read_log(tmp_path)}
    assert len(acknowledged) > 20
    assert acknowledged <= found.keys()
    assert all(
        found[id] == [int(id.endswith(("0", "2", "4", "6", "8"))), int(id[-1] in "13579")] for id in acknowledged
    )
    assert len(exported(tmp_path)) == len(found)
