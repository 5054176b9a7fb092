"""What holds in every database at every moment, whoever wrote to it."""

from __future__ import annotations

from python_jobs.db import Connection
from tests.support.reference import (
    LONG_DWELL_MS,
    NEGATIVE_PAIRS,
    POSITIVE_PAIRS,
    SHORT_DWELL_MS,
    STRENGTHS,
    WITHDRAWALS,
)

# Every stored event with its signal, and whether it was learned: neither recorded as not learned
# nor still waiting. Thresholds are the design's: this does not ask the code under test.
TAKEN_BACK = ", ".join(f"('{signal}', '{given}')" for signal, given in WITHDRAWALS.items())
LEDGER = f"""
  with meant as (
    select e.id, e.user_id, e.post_id, e.event_type, e.created_at, case
      when e.event_type <> 'dwell' or e.dwell_ms > {LONG_DWELL_MS} then e.event_type
      when e.dwell_ms < {SHORT_DWELL_MS} then 'skip' else 'view' end as signal
    from public.engagement_events e
  ), learned as (
    select m.* from meant m
    where m.signal <> 'view'
      and not exists (select from two_tower.unlearned_events x where x.event_id = m.id)
      and not exists (select from two_tower.deferred_events x where x.event_id = m.id)
  ), ledger as (
    select l.id, l.user_id, l.post_id, l.signal, l.created_at,
           coalesce(w.withdrawn, l.signal) as counted_as,
           case when w.signal is null then 1 else -1 end as amount
    from learned l left join (values {TAKEN_BACK}) as w (signal, withdrawn) using (signal)
  )
"""


def assert_consistent(connection: Connection, *, counts: bool = True) -> None:
    """What holds in every database at every moment, told from the stored events alone.

    counts: of engagements too; they hold where nothing was undone or rolled back.
    """

    def none(what: str, query: str) -> None:
        rows = connection.execute(query).fetchmany(3)
        assert not rows, f"{what}: {rows}"

    none(
        "a live vector does not have norm 1",
        "select slot, post_id, extensions.vector_norm(embedding) from two_tower.live_embeddings"
        " where not abs(extensions.vector_norm(embedding) - 1) < 1e-5",
    )
    none(
        "a user's vector has neither norm 1 nor 0",
        "select user_id, extensions.vector_norm(embedding) from two_tower.user_embeddings"
        " where not (abs(extensions.vector_norm(embedding) - 1) < 1e-5"
        "            or extensions.vector_norm(embedding) = 0)",
    )
    none(
        "the interests of a user are not those of the positives",
        "select user_id, positive_ids, positive_interests from two_tower.user_embeddings u"
        " cross join lateral (select array_agg(distinct n order by n) as used"
        "   from unnest(u.positive_interests) n) x"
        " where cardinality(positive_ids) <> cardinality(positive_interests)"
        " or cardinality(positive_ids) <> (select count(distinct p) from unnest(positive_ids) p)"
        " or x.used is distinct from (select array_agg(n::smallint order by n)"
        "   from generate_subscripts(u.interest_sums, 1) n where u.interest_sums[n] is not null)"
        " or not x.used <@ '{1, 2, 3, 4}'::smallint[]",
    )
    none(
        "a post has another number in the other slot",
        "select post_id from two_tower.live_embeddings group by 1"
        " having count(number) not in (0, count(*)) or count(distinct number) > 1",
    )
    none(
        "an event is both refused and waiting",
        "select event_id from two_tower.unlearned_events"
        " join two_tower.deferred_events using (event_id)",
    )
    none(
        "an event has two reasons",
        "select event_id from two_tower.unlearned_events group by 1 having count(*) > 1",
    )
    none(
        "a signal in force is not the number of times it was learned less those withdrawn",
        LEDGER + ", learned_times as (select user_id, post_id, counted_as, sum(amount) as times"
        "  from ledger group by 1, 2, 3)"
        " select u.user_id, u.post_id, g.event_type, t.times, u.signals & g.bit"
        " from two_tower.user_posts u"
        " cross join two_tower.signals g"
        " left join learned_times t on t.user_id = u.user_id and t.post_id = u.post_id"
        "  and t.counted_as = g.event_type"
        " where g.withdraws is null and g.event_type <> 'view'"
        "  and coalesce(t.times, 0) <> (u.signals & g.bit <> 0)::integer",
    )
    none(
        "an event left nothing in user_posts",
        "select e.id from public.engagement_events e where not exists (select from"
        " two_tower.user_posts u where u.user_id = e.user_id and u.post_id = e.post_id)",
    )
    none(
        "a view is not marked as seen",
        LEDGER + " select m.id from meant m join two_tower.user_posts u using (user_id, post_id)"
        " where m.signal = 'view' and u.signals & 1 = 0",
    )
    if counts:
        none(
            "a user's count is wrong",
            LEDGER + ", c as (select user_id, sum(amount) as wanted from ledger group by 1)"
            " select u.user_id, u.engagement_count, c.wanted"
            " from two_tower.user_embeddings u left join c using (user_id)"
            " where u.engagement_count <> coalesce(c.wanted, 0) and u.reset_count = 0",
        )
        none(
            "a post's count is wrong",
            # Grouped once: a long run has millions of events, and tens of thousands of posts.
            LEDGER + ", c as (select post_id, sum(amount) as wanted, count(*) as steps"
            "  from ledger group by 1), q as (select post_id, sum(engagements) as waiting,"
            "  count(*) as steps from two_tower.deferred_steps group by 1)"
            " select p.post_id, p.engagement_count, q.waiting, c.wanted, p.is_pretrained"
            " from two_tower.post_embeddings p left join c using (post_id)"
            " left join q using (post_id)"
            " where p.embedding is not null"
            "  and (p.engagement_count + coalesce(q.waiting, 0) <> coalesce(c.wanted, 0)"
            "   or p.is_pretrained and p.engagement_count <> 0"
            "   or not p.is_pretrained and coalesce(c.steps, 0) <= coalesce(q.steps, 0))",
        )
    none(
        "the count of a user who began anew is wrong",
        "select u.user_id, u.engagement_count, c.wanted"
        " from two_tower.user_embeddings u cross join lateral ("
        "  select count(*) as wanted from two_tower.training_examples x where not x.is_withdrawn"
        "  and x.user_id = u.user_id and x.reset_count = u.reset_count) c"
        " where u.engagement_count <> c.wanted and u.reset_count > 0",
    )
    labelled = ", ".join(f"'{name}'" for name in (*POSITIVE_PAIRS, *NEGATIVE_PAIRS))
    none(
        "learned events and the ledger differ",
        LEDGER + ", found as (select event_id as id from two_tower.training_examples)"
        " (select id from ledger where amount > 0 except all table found) union all"
        " (table found except all select id from ledger where amount > 0)",
    )
    none(
        "labelled events and training examples differ",
        # A window, and no join of the ledger with itself: a pair of a long run has many events.
        LEDGER + ", judged as (select l.*, coalesce(l.id < max(l.id) filter (where l.amount < 0)"
        "  over (partition by l.user_id, l.post_id, l.counted_as), false) as is_withdrawn"
        "  from ledger l), wanted as (select id, is_withdrawn from judged"
        f"  where amount > 0 and signal in ({labelled})),"
        " found as (select event_id as id from two_tower.training_examples where label is not null)"
        " (select id from wanted where not is_withdrawn except all table found)"
        " union all (table found except all select id from wanted)",
    )


def assert_lessons_in_force(connection: Connection) -> None:
    """Users and posts count what they were taught, less what was taken back. Nothing is taught
    twice. Holds where nothing waits, whatever was undone or rolled back."""
    in_force = (
        "select {0}, count(*) as wanted from two_tower.training_examples x"
        " where not x.is_withdrawn and not two_tower.is_rolled_back(x.event_id) group by {0}"
    )
    for what, query in (
        ("taught twice", "select event_id from two_tower.training_examples group by 1"
         " having count(*) > 1"),
        ("a user's count", "select u.user_id, u.engagement_count, n.wanted"
         f" from two_tower.user_embeddings u left join ({in_force.format('user_id')}) n"
         " using (user_id) where u.engagement_count <> coalesce(n.wanted, 0)"),
        ("a post's count", "select p.post_id, p.engagement_count, n.wanted"
         f" from two_tower.post_embeddings p left join ({in_force.format('post_id')}) n"
         " using (post_id) where p.embedding is not null"
         " and p.engagement_count <> coalesce(n.wanted, 0)"),
    ):  # fmt: skip
        found = connection.execute(query.encode()).fetchmany(3)
        assert not found, f"{what}: {found}"


def count_learned_positives(connection: Connection) -> int:
    """So many rows of pushes must have been queued, each once."""
    names = ", ".join(f"'{name}'" for name, strength in STRENGTHS.items() if strength > 0)
    row = connection.execute(
        LEDGER + f" select count(*) from ledger where amount > 0 and signal in ({names})"
    ).fetchone()
    assert row is not None
    return int(row[0])
