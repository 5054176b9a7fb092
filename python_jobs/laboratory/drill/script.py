"""The drill, step by step. Each says what happened, what was seen and typed, and what it promised.

Commands are run as an operator runs them, each in a process of its own.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from python_jobs.db import URL_VARIABLE, connect, rows, value
from python_jobs.laboratory.drill.world import PAGE, READERS, World

HOURS = 8  # a wave that drift has not stopped by then is a promise that is broken
ACTIVE, ASLEEP = range(1, READERS + 1, 2), range(2, READERS + 1, 2)
WIDTH = 76


@dataclass(frozen=True)
class Typed:
    """What the operator typed, a command or SQL, and the answer: text, or rows."""

    what: str
    answer: Any


@dataclass
class Step:
    """One step of the drill. seen: rows of open_alerts. promises: what, and whether it was kept."""

    title: str
    happened: str
    seen: list[Any] = field(default_factory=list)
    typed: list[Typed] = field(default_factory=list)
    promises: list[tuple[str, bool]] = field(default_factory=list)

    @property
    def broken(self) -> list[str]:
        """The promises that were not kept."""
        return [what for what, is_kept in self.promises if not is_kept]


def run_drill(url: str) -> Iterator[Step]:
    """Drift, freeze, investigate, roll back, resume slower: its steps, each as it ends.

    url: of a migrated and empty database, which is filled. Ends early after a step that did not
    keep a promise: the next one builds on it.
    """
    with connect(url, autocommit=True) as connection:
        drill = Drill(url, World(connection))
        for act in (
            drill.live_a_day, drill.suffer_a_wave, drill.investigate, drill.roll_back,
            drill.drop_what_waits, drill.resume_slower,
        ):  # fmt: skip
            step = act()
            yield step
            if step.broken:
                return


class Drill:
    """What one step leaves to the next."""

    def __init__(self, url: str, world: World) -> None:
        self.url, self.world = url, world
        self.spam: list[int] = []
        self.checkpoint: Any = None
        self.began: datetime
        self.quiet_at: datetime
        self.before = self.in_wave = 0.0  # posts of a reader's subject on a page

    def live_a_day(self) -> Step:
        """Readers teach, and a checkpoint is made by itself."""
        world = self.world
        world.tick()
        world.read_and_like(range(1, READERS + 1), 12)
        world.tick()
        world.pass_time(timedelta(days=1))
        world.tick()
        self.quiet_at = world.now
        self.before = self._own_subject()
        world.read_and_like(ACTIVE, 4)
        world.tick()
        query = "select * from two_tower.checkpoints where is_good and engagements > 0"
        self.checkpoint = next(iter(rows(world.connection, f"{query} order by id desc")), None)
        return Step(
            "A day as any",
            f"{READERS} readers like what they read. The daily checkpoint is made by itself.",
            seen=self._alerts(),
            promises=[
                ("A good checkpoint holds what they taught", self.checkpoint is not None),
                ("Nothing is wrong", not self._alerts()),
            ],
        )

    def suffer_a_wave(self) -> Step:
        """New accounts drag posts to the spam, until learning freezes by itself."""
        world = self.world
        world.pass_time(timedelta(hours=2))
        self.began = world.now
        self.spam = world.begin_spam()
        hours = 0
        while not self._is_frozen() and hours < HOURS:
            world.send_spam(hours, self.spam)
            hours += 1
            if not self._is_frozen():
                world.pass_time(timedelta(minutes=52))
                world.tick()
        self.in_wave = self._own_subject()
        pages = world.pages(ASLEEP, world.now)
        taught = self._lessons()
        world.read_and_like(ACTIVE, 2)
        world.tick()
        alerts = self._alerts()
        return Step(
            "A wave of spam, at night",
            f"New accounts like ten posts of spam, and a third of the posts of others, which follow"
            f" them there. It is the {_ordinal(hours)} hour. Readers read on.",
            seen=alerts,
            promises=[
                ("Drift is an alert", "embedding_drift" in {row.subject for row in alerts}),
                ("Learning has frozen by itself", self._is_frozen()),
                ("Readers who come now get full pages, and teach later",
                 all(len(page) == PAGE for page in pages)
                 and self._waiting(is_spam=False) == 2 * len(ACTIVE)
                 and self._lessons() == taught),
            ],
        )  # fmt: skip

    def investigate(self) -> Step:
        """Who moved what, and since when."""
        accounts = self._typed(
            "select user_id, lessons, posts, movement::numeric(5,1) as moved, known_since::time(0)"
            " as known_at from two_tower.most_moving_users limit 3"
        )
        posts = self._typed(
            "select p.content, m.distance::numeric(3,2), m.users from two_tower.most_moved_posts m"
            " join public.posts p on p.id = m.post_id limit 3"
        )
        first = self._typed(
            "select min(known_since) as began from (select known_since from"
            " two_tower.most_moving_users limit 30) m"
        )
        since = first.answer[0].began
        self.since = since.replace(second=0, microsecond=0)
        freeze = self._run("freeze", "spam wave", "--since", f"{_local(self.since)}")
        return Step(
            "Who was it, and since when?",
            "The accounts that moved most are all of this night. The freeze is told since when.",
            typed=[accounts, posts, first, freeze],
            promises=[
                ("The first accounts of the list are of the wave",
                 len(accounts.answer) == 3 and since >= self.began),
                ("Its beginning is found", self.since <= self.began < since + timedelta(hours=4)),
            ],
        )  # fmt: skip

    def roll_back(self) -> Step:
        """The plan, then the way back."""
        plan = self._run("rollback", "--dry-run")
        done = self._run("rollback", "--yes")
        farthest = value(
            self.world.connection,
            "select max(1 + (v.embedding operator(extensions.<#>) c.embedding))"
            " from two_tower.checkpoint_posts c join two_tower.live_embeddings v using (post_id)"
            " where c.checkpoint_id = %s and v.slot = (select active_slot from two_tower.state)",
            self.checkpoint.id,
        )
        named = f"Checkpoint {self.checkpoint.id} "
        return Step(
            "The way back",
            "The dry run says to which checkpoint it leads, and what is lost.",
            typed=[plan, Typed(done.what, str(done.answer).splitlines()[-1])],
            promises=[
                ("It leads to the checkpoint from before the wave",
                 str(plan.answer).startswith(named) and named + "serves again" in str(done.answer)),
                ("Each post stands where it stood then",
                 farthest is not None and farthest < 1e-5),
                ("Learning stays frozen", self._is_frozen()),
            ],
        )  # fmt: skip

    def drop_what_waits(self) -> Step:
        """The spam goes, and what its accounts sent since the freeze is never learned."""
        since = self.since.isoformat(sep=" ", timespec="minutes")
        skipped = self._typed(
            "select two_tower.undo('spam wave', array(select id from two_tower.users"
            f" where created_at >= '{since}')) as undo"
        )
        removed = self._typed(
            "select count(*) as removed from public.posts p cross join"
            " public.remove_post(p_post_id => p.id, p_reason => 'spam') where p.author_id ="
            f" any (array(select id from two_tower.users where created_at >= '{since}'))"
        )
        self.world.tick()
        return Step(
            "What still waits of the wave",
            "Events of the freeze wait. Those of the new accounts are taken out, with their posts.",
            typed=[skipped, removed],
            promises=[
                ("None of theirs waits any more", self._waiting(is_spam=True) == 0),
                ("What readers did still waits", self._waiting(is_spam=False) == 2 * len(ACTIVE)),
            ],
        )

    def resume_slower(self) -> Step:
        """Learning goes on at half its rate, and pages are as before the wave."""
        world = self.world
        taught = self._lessons()
        resumed = self._run("resume", "--factor", "0.5")
        world.pass_time(timedelta(minutes=2))
        world.tick()
        learned = self._lessons()
        status = self._run("status")
        now = self._own_subject()
        spam = sum(post in self.spam for page in world.pages(ASLEEP, world.now) for post in page)
        return Step(
            "On, at half the rate",
            f"Of the {PAGE} posts on a page, {self.before:.1f} were of the reader's subject before,"
            f" and {self.in_wave:.1f} in the wave. Now {now:.1f} are.",
            seen=self._alerts(),
            typed=[resumed, Typed(status.what, str(status.answer).split("\n\n")[0])],
            promises=[
                ("What readers did in the freeze is learned",
                 learned == taught + 2 * len(ACTIVE) and self._waiting(is_spam=False) == 0),
                ("Learning goes at half its rate", value(world.connection,
                 "select learning_rate_factor = 0.5 and frozen_at is null from two_tower.state")),
                ("The alert of drift has closed by itself",
                 "embedding_drift" not in {row.subject for row in self._alerts()}),
                ("Pages are as before the wave, without spam",
                 self.in_wave < self.before and abs(now - self.before) < 0.5 and not spam),
            ],
        )  # fmt: skip

    def _run(self, *arguments: str) -> Typed:
        """A command of two-tower, at the time of the drill."""
        environment = {
            **os.environ, URL_VARIABLE: self.url, "COLUMNS": str(WIDTH), "NO_COLOR": "1",
            "PGOPTIONS": f"-c two_tower.now={self.world.now.isoformat()}",
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "python_jobs", *arguments],
            env=environment, capture_output=True, text=True,
        )  # fmt: skip
        return Typed(f"two-tower {shlex.join(arguments)}", (done.stdout + done.stderr).strip())

    def _typed(self, query: str) -> Typed:
        return Typed(query, rows(self.world.connection, query))

    def _alerts(self) -> list[Any]:
        """Open alerts, without those of this installation; of each kind the first, and how many."""
        return rows(
            self.world.connection,
            "select distinct on (kind) *, count(*) over (partition by kind) as alerts"
            " from two_tower.open_alerts where subject <> 'pgvector' order by kind, opened_at",
        )

    def _is_frozen(self) -> bool:
        return bool(
            value(self.world.connection, "select frozen_at is not null from two_tower.state")
        )

    def _own_subject(self) -> float:
        """Posts of the reader's subject on the pages of who slept, as of the evening before."""
        found = zip(ASLEEP, self.world.pages(ASLEEP, self.quiet_at), strict=True)
        own = [sum(post in self.world.subject_of(reader) for post in page)
               for reader, page in found]  # fmt: skip
        return sum(own) / len(own)

    def _waiting(self, is_spam: bool) -> int:
        query = (
            "select count(*) from two_tower.deferred_events d join two_tower.users u"
            " on u.id = d.user_id where (u.created_at >= %s) = %s"
        )
        return int(value(self.world.connection, query, self.began, is_spam))

    def _lessons(self) -> int:
        return int(value(self.world.connection, "select count(*) from two_tower.training_examples"))


def _local(at: datetime) -> str:
    return f"{at.astimezone():%Y-%m-%d %H:%M}"


def _ordinal(number: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(number, f"{number}th")
