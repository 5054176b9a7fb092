"""The evaluation: metrics by hand, peers that learn, our system through its own functions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from python_jobs.cli import main
from python_jobs.errors import CommandError
from python_jobs.evaluate.interactions import Stream, from_csv
from python_jobs.evaluate.measure import Answers, choose_questions, compare, run, summarise
from python_jobs.evaluate.systems import Popularity, StaticContent, System

USERS, ITEMS = 30, 60


def two_camps(events: int = 900) -> Stream:
    """Even users like even items, odd users odd ones; each pair once."""
    rng = np.random.default_rng(71)
    pairs = [(u, i) for u in range(USERS) for i in range(u % 2, ITEMS, 2)]
    picked = [pairs[k] for k in rng.permutation(len(pairs))[:events]]
    return Stream(
        np.array([u for u, _ in picked]),
        np.array([i for _, i in picked]),
        np.arange(len(picked)) * 600.0,
        ["like"] * len(picked),
        [f"item {i}" for i in range(ITEMS)],
    )


class Oracle(System):
    """Knows the camps, and names what the user has not liked yet in order of number."""

    name = "oracle"

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.seen: set[tuple[int, int]] = set()

    def top(self, user: int, now: float) -> np.ndarray:
        left = [i for i in range(user % 2, ITEMS, 2) if (user, i) not in self.seen]
        return np.array(left[:50])

    def learn(self, number: int) -> None:
        self.seen.add((int(self.stream.users[number]), int(self.stream.items[number])))


def test_metrics_are_those_of_the_textbook() -> None:
    stream = two_camps(20)
    asked = choose_questions(stream, None)
    answers = Answers("x", ranks=[1, 2, 0, 11, 50] * 4, tops=[np.arange(10)] * 20)
    found = summarise(answers, asked, ITEMS)
    assert found["all"]["hit_rate_10"] == pytest.approx(0.4)
    assert found["all"]["hit_rate_50"] == pytest.approx(0.8)
    assert found["all"]["ndcg_10"] == pytest.approx((1 + 1 / np.log2(3)) / 5)
    assert found["all"]["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 11 + 1 / 50) / 5)
    assert found["tail"]["questions"] == 4
    assert found["coverage_10"] == pytest.approx(10 / ITEMS)


def test_histories_are_those_before_the_question() -> None:
    stream = two_camps()
    asked = choose_questions(stream, 100)
    assert len(asked.numbers) == 100
    for number, user, item in zip(
        asked.numbers, asked.user_history, asked.item_history, strict=True
    ):
        assert user == np.sum(stream.users[:number] == stream.users[number])
        assert item == np.sum(stream.items[:number] == stream.items[number])


def test_a_better_system_has_a_ratio_above_one_and_itself_one() -> None:
    stream = two_camps()
    asked = choose_questions(stream, 300)
    oracle, popular = (
        run(system, stream, asked, lambda _: None)
        for system in (Oracle(stream), Popularity(stream, None))
    )
    better = compare(oracle, popular, asked)
    assert 1 < better["low"] < better["ratio"] < better["high"]
    same = compare(popular, popular, asked)
    assert (same["low"], same["ratio"], same["high"]) == (1, 1, 1)


def test_no_system_names_what_the_user_has_seen() -> None:
    stream = two_camps()
    base = np.random.default_rng(72).normal(size=(ITEMS, 8))
    for system in (Popularity(stream, 30), StaticContent(stream, base)):
        for number in range(300):
            system.learn(number)
        for user in range(USERS):
            seen = set(stream.items[:300][stream.users[:300] == user].tolist())
            assert not seen & set(system.top(user, 0.0).tolist())


def test_old_likes_fade_from_decayed_popularity() -> None:
    stream = Stream(
        np.array([0, 1, 2]),
        np.array([0, 0, 1]),
        np.array([0, 0, 90.0]) * 86400,
        ["like"] * 3,
        ["a", "b"],
    )
    for half_life, first in ((None, 0), (30.0, 1)):
        system = Popularity(stream, half_life)
        for number in range(3):
            system.learn(number)
        assert int(np.argmax(system.scores(0, 0.0))) == first


def write_csv(path: Path, rows: list[str], head: str = "user,item,time,event_type,text") -> Path:
    path.write_text("\n".join([head, *rows]), encoding="utf-8")
    return path


def test_a_csv_is_read_in_order_of_time(tmp_path: Path) -> None:
    rows = ["bob,x,2026-01-02T00:00:00+00:00,like,Ünïcode", "al,y,1700000000,view,why"]
    stream = from_csv(write_csv(tmp_path / "a.csv", rows))
    assert stream.event_types == ["view", "like"]
    assert stream.texts[stream.items[1]] == "Ünïcode"
    assert stream.users.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a,b,yesterday,like,t"], "line 2: no time"),
        (["a,b,5,like,t", "a,b,6,love,t"], "line 3: no event type"),
        (["a,b,5,view,t"], "nothing to foresee"),
    ],
)
def test_a_line_that_can_not_be_read_is_named(
    tmp_path: Path, rows: list[str], message: str
) -> None:
    with pytest.raises(CommandError, match=message):
        from_csv(write_csv(tmp_path / "a.csv", rows))


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    with pytest.raises(CommandError, match="lacks the column time"):
        from_csv(write_csv(tmp_path / "a.csv", [], head="user,item,event_type"))


def test_our_system_learns_two_camps_better_than_popularity(tmp_path: Path) -> None:
    """The whole command on a CSV: our pages come from a database, and beat popularity."""
    stream = two_camps(800)
    rows = [
        f"u{u},i{i},{1.7e9 + s},like,item number {i}"
        for u, i, s in zip(stream.users, stream.items, stream.seconds, strict=True)
    ]
    path = write_csv(tmp_path / "camps.csv", rows)
    answer = CliRunner().invoke(
        main,
        ["evaluate", "--data", str(path), "--questions", "300", "--only-ours", "--json"],
    )
    assert answer.exit_code == 0, answer.output
    report = json.loads(answer.output[answer.output.index("{\n") :])
    systems = {row["name"]: row for row in report["systems"]}
    assert {"two-tower", "popularity, 30 days", "static content"} <= set(systems)
    assert systems["two-tower"]["to_popularity"]["low"] > 1.1
    assert systems["two-tower"]["mean_cosine"] is not None
    assert report["questions"] == 300


def test_a_setting_that_is_no_setting_is_refused() -> None:
    answer = CliRunner().invoke(main, ["evaluate", "--set", "nonsense"])
    assert answer.exit_code != 0
    assert "NAME=VALUE" in answer.output
