"""The plans of one page: every statement that recommend() ran, with a line on each node."""

from __future__ import annotations

import re

import psycopg

from python_jobs.db import connect
from python_jobs.errors import CommandError
from python_jobs.laboratory.bench.feed import user_id
from python_jobs.laboratory.bench.world import World

# What a node is there for, by what it reads; the first that matches.
_REASONS = (
    (r"serving_embeddings_\d_hnsw", "the nearest served copies, in order, until enough are unseen"),
    (r"on user_posts_", "has the reader seen this post? One partition: the others are pruned"),
    (r"on live_embeddings", "the live vector, and what ranking needs, in one row"),
    (r"on blocks b_1", "did its author block the reader?"),
    (r"on blocks", "did the reader block its author?"),
    (r"on users", "has Auth banned its author?"),
    (r"on (sources|one_source)", "the name of its table"),
    (r"on muted_terms", "what the reader has muted"),
    (r"on pg_class", "how many posts there are"),
    (r"on withheld_authors", "blocks in either direction"),
    (r"on posts p", "the registry: may it be shown, and what is its key?"),
    (r"on base_embeddings", "the vector of its text, to find copies"),
    (r"posts_content_hash_idx", "other posts of the same text"),
    (r"on posts", "the newest posts, for a cold reader"),
    (r"on follows", "does the reader follow its author?"),
    (r"on popular_candidates", "the list of popular posts"),
    (r"on exploration_pool", "new posts that few have seen"),
    (r"on user_embeddings", "the reader's row: prior and the last engagements"),
    (r"on (settings|state)\b", "one row of constants or pointers"),
    (r"on experiment", "which experiment runs, if any"),
    (r"Function Scan on score_posts", "the parts of the score of each candidate"),
    (r"CTE ", "rows that the statement reads twice: texts to compare, posts of interests"),
    (r"Function Scan on (rank_posts|make_page|recommend_for)", "the page so far"),
    (r"Function Scan on (unnest )?[gru]\b", "the list of posts to read"),
    (r"Function Scan on list_interests", "the reader's interests, by the vectors of today"),
    (r"Function Scan on find_near", "the nearest posts of each interest that is owed places"),
    (r"Function Scan on unnest s\b", "what each interest is owed"),
    (r"Function Scan on (unnest )?\w(_\d+)?\b", "a list that the reader's row or the page holds"),
    (r"Function Scan on choose_settings", "the settings that serve the reader"),
    (r"WindowAgg", "which post of its author is it? For diversity"),
    (r"Incremental Sort|Sort ", "in order"),
    (r"Bitmap Index Scan", "where in the table above they are"),
    (r"Limit", "no more than are needed"),
    (r"Aggregate", "gathered into arrays, or summed to the reader's vector"),
    (r"Append", "one after the other"),
    (r"Nested Loop|Join", "each row with its match"),
    (r"Hash", "hashed for the join above"),
    (r"Materialize|Memoize", "kept for each row of the join above"),
    (r"Unique", "each of them once"),
    (r"Subquery Scan", "in the order of the inner query"),
    (r"Result", "one value, or a condition that is asked first"),
)
_NODE = re.compile(r"^\s*(->\s+)?[A-Z][\w ]+.*\(cost=")


def explain_page(world: World, interests: int) -> str:
    """Runs recommend() of a reader with so many interests on warm caches; returns the plans.

    Raises CommandError where auto_explain is not installed.
    """
    reader = user_id(1 if interests == 1 else 2)
    query = "select * from two_tower.recommend_for(%s, 50)"
    seen: list[str] = []
    with connect(world.superuser_url, autocommit=True) as connection:
        try:
            connection.execute("load 'auto_explain'")
        except psycopg.Error as error:
            raise CommandError("This Postgres has no auto_explain (contrib).") from error
        for _ in range(20):
            connection.execute(query, [reader])
        connection.add_notice_handler(lambda notice: seen.append(notice.message_primary or ""))
        for name, setting in (
            ("auto_explain.log_min_duration", "0"),
            ("auto_explain.log_nested_statements", "on"),
            ("auto_explain.log_analyze", "on"),
            ("auto_explain.log_buffers", "on"),
            ("client_min_messages", "log"),
        ):
            connection.execute("select set_config(%s, %s, false)", [name, setting])
        seen.clear()
        connection.execute(query, [reader])
    plans = [text for text in seen if "plan:" in text and "set_config(" not in text[:80]]
    return "\n\n".join(_annotate(text) for text in plans)


def _annotate(text: str) -> str:
    lines = []
    for line in text.splitlines():
        if line.startswith("duration:"):
            line = "-- " + line.replace("  plan:", "")
        if _NODE.match(line):
            reason = next((why for what, why in _REASONS if re.search(what, line)), "")
            line = f"{line}\n{' ' * (len(line) - len(line.lstrip()))}  # {reason}"
        lines.append(line)
    return "\n".join(lines)
