"""The evaluation: metrics by hand, peers that learn, our system through its own functions."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from python_jobs.cli import main
from python_jobs.errors import CommandError
from python_jobs.laboratory.evaluate import tuning
from python_jobs.laboratory.evaluate.command import describe
from python_jobs.laboratory.evaluate.interactions import Engagement, Stream, from_csv, numbered
from python_jobs.laboratory.evaluate.measure import (
    Answers,
    Questions,
    choose_questions,
    compare,
    over_time,
    run,
    summarise,
)
from python_jobs.laboratory.evaluate.plot import plot
from python_jobs.laboratory.evaluate.systems import Peer, Popularity, StaticContent, System

USERS, ITEMS = 30, 60


def stream_of(pairs: list[tuple[int, int]], event_types: list[str] | None = None) -> Stream:
    """An engagement every ten minutes, likes if nothing else is said."""
    return Stream(
        np.array([u for u, _ in pairs]),
        np.array([i for _, i in pairs]),
        np.arange(len(pairs)) * 600.0,
        event_types or ["like"] * len(pairs),
        [f"item {i}" for i in range(ITEMS)],
        [None] * len(pairs),
    )


def two_camps(events: int = 900) -> Stream:
    """Even users like even items, odd users odd ones; each pair once."""
    rng = np.random.default_rng(71)
    pairs = [(u, i) for u in range(USERS) for i in range(u % 2, ITEMS, 2)]
    return stream_of([pairs[k] for k in rng.permutation(len(pairs))[:events]])


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


class Parrot(System):
    """Names the item that it was told last: right every time if it were told before it is asked."""

    name = "parrot"

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.last: list[int] = []

    def top(self, user: int, now: float) -> np.ndarray:
        return np.array(self.last, dtype=int)

    def learn(self, number: int) -> None:
        self.last = [int(self.stream.items[number])]


def everything(asked: Questions) -> np.ndarray:
    """All questions, as a part."""
    return np.ones(len(asked.numbers), dtype=bool)


def test_metrics_are_those_of_the_textbook() -> None:
    stream = two_camps(20)
    asked = choose_questions(stream, None)
    answers = Answers("x", ranks=[1, 2, 0, 11, 51] * 4, tops=[np.arange(10)] * 20)
    found = summarise(answers, asked, ITEMS)
    assert found["all"]["hit_rate_10"] == pytest.approx(0.4)
    assert found["all"]["hit_rate_50"] == pytest.approx(0.6)
    assert found["all"]["ndcg_10"] == pytest.approx((1 + 1 / np.log2(3)) / 5)
    assert found["all"]["mrr"] == pytest.approx((1 + 1 / 2 + 1 / 11 + 1 / 51) / 5)
    assert found["tail"]["questions"] == 4
    assert found["tail"]["mrr"] == pytest.approx((1 / 2 + 1 / 11 + 1 / 51) / 4)
    assert found["all"]["coverage_10"] == pytest.approx(10 / ITEMS)


def test_cold_and_warm_are_told_apart_by_what_was_known_before() -> None:
    stream = stream_of([(0, item) for item in range(12)])
    asked = choose_questions(stream, None)
    answers = Answers("x", ranks=[0] * 10 + [1, 2], tops=[np.arange(10)] * 12)
    found = summarise(answers, asked, ITEMS)["all"]
    assert found["cold_users"] == {
        "questions": 10, "hit_rate_10": 0, "hit_rate_50": 0, "ndcg_10": 0, "mrr": 0,
    }  # fmt: skip
    assert found["warm_users"]["questions"] == 2
    assert found["warm_users"]["mrr"] == 0.75
    assert found["cold_items"]["questions"] == 12
    assert found["warm_items"] == {"questions": 0}


def test_each_positive_is_asked_for_before_it_is_learned() -> None:
    pairs = [(user, user % ITEMS) for user in range(USERS)]
    stream = stream_of(pairs)
    asked = choose_questions(stream, None)
    assert asked.numbers.tolist() == list(range(USERS))
    assert set(run(Parrot(stream), stream, asked).ranks) == {0}


def test_a_post_is_asked_for_before_the_view_that_its_like_followed() -> None:
    stream = stream_of(
        [(0, 1), (0, 2), (0, 1), (0, 2), (0, 1)], ["view", "view", "like", "skip", "reply"]
    )
    asked = choose_questions(stream, None)
    assert asked.numbers.tolist() == [0]
    later = stream_of([(0, 3), (0, 1), (1, 1), (0, 1)], ["like", "view", "like", "like"])
    asked = choose_questions(later, None)
    assert asked.numbers.tolist() == [0, 1, 2]
    assert asked.users.tolist() == [0, 0, 1]
    assert asked.user_history.tolist() == [0, 1, 0]
    assert asked.item_history.tolist() == [0, 0, 0]


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
        run(system, stream, asked) for system in (Oracle(stream), Popularity(stream, None))
    )
    better = compare(oracle, popular, asked, asked.is_tail)
    assert 1 < better["low"] < better["ratio"] < better["high"]
    same = compare(popular, popular, asked, asked.is_tail)
    assert (same["low"], same["ratio"], same["high"]) == (1, 1, 1)


def test_the_interval_is_that_of_users_drawn_again() -> None:
    """Two users, one of whom answers all: of the draws, a quarter each has only one of them."""
    stream = stream_of([(user, item) for item in range(20) for user in (0, 1)])
    asked = choose_questions(stream, None)
    ours = Answers("ours", [1, 0] * 20, [np.arange(10)] * 40)
    other = Answers("other", [2, 1] * 20, [np.arange(10)] * 40)
    found = compare(ours, other, asked, everything(asked))
    assert found["ratio"] == pytest.approx(1 / (1 + 1 / np.log2(3)))
    assert found["low"] == 0
    assert found["high"] == pytest.approx(np.log2(3))


def test_over_time_is_the_mean_of_equal_parts() -> None:
    stream = two_camps(40)
    asked = choose_questions(stream, None)
    answers = Answers("x", ranks=[0] * 20 + [1] * 20, tops=[np.arange(10)] * 40)
    assert over_time(answers, asked, parts=4) == [0, 0, 1, 1]


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
    stream = replace(stream_of([(0, 0), (1, 0), (2, 1)]), seconds=np.array([0, 0, 90.0]) * 86400)
    for half_life, first in ((None, 0), (30.0, 1)):
        system = Popularity(stream, half_life)
        for number in range(3):
            system.learn(number)
        assert int(np.argmax(system.scores(0, 0.0))) == first


def test_the_order_of_items_tells_nothing_of_when_they_come() -> None:
    """A system that knows nothing names items in order of number."""
    rows = [Engagement("u", f"i{k}", float(k), "like") for k in range(200)]
    items = numbered(rows, {row.item: row.item for row in rows}).items
    assert sorted(items.tolist()) == list(range(200))
    assert abs(np.corrcoef(items, np.arange(200))[0, 1]) < 0.25


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("ALS", {"factors": 8, "alpha": 8}),
        ("CosineRecommender", {"K": 50}),
        ("BM25Recommender", {"K": 50}),
    ],
)
def test_peers_tell_two_camps_apart(kind: str, config: dict[str, float]) -> None:
    stream = two_camps()
    asked = choose_questions(stream, 300)
    peer = run(Peer(stream, kind, config, 50), stream, asked)
    popular = run(Popularity(stream, None), stream, asked)
    assert compare(peer, popular, asked, asked.is_tail)["low"] > 1.1


def test_peers_are_tuned_on_the_head_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the tail all users change camp: what is chosen stays the same."""
    grid = [("CosineRecommender", {"K": 1}), ("CosineRecommender", {"K": 50})]
    monkeypatch.setitem(tuning.GRIDS, "item-kNN", grid)
    stream = two_camps()
    items = stream.items.copy()
    items[720:] ^= 1
    tries: list[int] = []
    for one in (stream, replace(stream, items=items)):
        peer = tuning.tuned_peer(one, "item-kNN", tries.append)
        assert peer.config == {"K": 50}
        assert peer.model is None
        assert peer.items == ITEMS
    assert tries == [1, 2, 1, 2]


def write_csv(path: Path, rows: list[str], head: str = "user,item,time,event_type,text") -> Path:
    path.write_text("\n".join([head, *rows]), encoding="utf-8")
    return path


def test_a_csv_is_read_in_order_of_time(tmp_path: Path) -> None:
    rows = ["bob,x,2023-11-15T00:00:00,like,Ünïcode", "al,y,1700000000,view,why"]
    stream = from_csv(write_csv(tmp_path / "a.csv", rows))
    assert stream.event_types == ["view", "like"]
    assert stream.texts[stream.items[1]] == "Ünïcode"
    assert stream.users.tolist() == [0, 1]
    assert stream.seconds[1] - stream.seconds[0] == 6400  # a time without a zone is UTC


def test_events_of_one_time_stay_in_the_order_of_the_file(tmp_path: Path) -> None:
    rows = [f"u{k},i{k},5,like,t" for k in (3, 1, 2)]
    stream = from_csv(write_csv(tmp_path / "a.csv", rows))
    assert [stream.event_types[0], *stream.users.tolist()] == ["like", 0, 1, 2]
    path = write_csv(tmp_path / "b.csv", [f"u,i{k},5,like,text {k}" for k in (3, 1, 2)])
    stream = from_csv(path)
    assert [stream.texts[item] for item in stream.items] == ["text 3", "text 1", "text 2"]


def test_each_system_is_compared_with_popularity_and_als() -> None:
    stream = two_camps(40)
    asked = choose_questions(stream, None)
    found = [
        Answers(name, [rank] * 40, [np.arange(10)] * 40)
        for name, rank in (("popularity", 3), ("two-tower", 1), ("ALS", 2))
    ]
    rows = describe(found, [Parrot(stream)] * 3, asked, stream)["systems"]
    ratios = {"to_popularity": [1, 2, 2 / np.log2(3)], "to_als": [np.log2(3) / 2, np.log2(3), 1]}
    for name, expected in ratios.items():
        assert [row["tail"][name]["ratio"] for row in rows] == pytest.approx(expected)
        assert [row["all"][name]["low"] for row in rows] == pytest.approx(expected)


def test_a_csv_needs_no_text_and_a_dwell_has_its_duration(tmp_path: Path) -> None:
    path = write_csv(
        tmp_path / "a.csv",
        ["u,i,1,dwell,9000", "u,j,2,like,"],
        "user,item,time,event_type,dwell_ms",
    )
    stream = from_csv(path)
    assert stream.dwell_ms == [9000, None]
    assert sorted(stream.texts) == ["i", "j"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a,b,yesterday,like,t"], "line 2: no time: yesterday"),
        (["a,b,nan,like,t"], "line 2: no time"),
        (["a,b,5,like,t", "a,b,6,love,t"], "line 3: no event type: love"),
        (["a,b,5,like,t", ",b,6,like,t"], "line 3: no user or no item"),
        (["a,b,5,like,t", "a,c"], "line 3: no event type"),
        (["a,b,5,dwell,t"], "line 2: no duration of a dwell"),
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


def report_of(path: Path, *options: str) -> dict[str, dict[str, object]]:
    """Runs the command on a CSV; its systems by name."""
    answer = CliRunner().invoke(main, ["evaluate", "--data", str(path), "--json", *options])
    assert answer.exit_code == 0, answer.output
    report = json.loads(answer.output[answer.output.index("{\n") :])
    return {"report": report, **{row["name"]: row for row in report["systems"]}}


@pytest.mark.parametrize("scanned", [5000, 5])
def test_our_system_learns_two_camps_better_than_popularity(tmp_path: Path, scanned: int) -> None:
    """The whole command on a CSV: our pages come from a database, and beat popularity. With more
    items than are scanned they come from a serving index, which is kept fresh."""
    stream = two_camps(800)
    rows = [
        f"u{u},i{i},{1.7e9 + s},like,item number {i}"
        for u, i, s in zip(stream.users, stream.items, stream.seconds, strict=True)
    ]
    path, image = write_csv(tmp_path / "camps.csv", rows), tmp_path / "over-time.svg"
    options = ["--plot", str(image), "--set", f"exact_scan_limit={scanned}"]
    found = report_of(path, "--questions", "300", "--only-ours", *options)
    assert ("serving index built" in found["two-tower"]["versions"]) == (scanned == 5)
    assert {"two-tower", "popularity, 30 days", "static content"} <= found.keys()
    assert found["two-tower"]["tail"]["to_popularity"]["low"] > 1.1
    assert found["two-tower"]["mean_cosine"] is not None
    assert found["report"]["questions"] == 300
    assert "<svg" in image.read_text()


def test_the_ablation_compares_with_jobs_off(tmp_path: Path) -> None:
    stream = two_camps(120)
    rows = [
        f"u{u},i{i},{1.7e9 + s},like,item number {i}"
        for u, i, s in zip(stream.users, stream.items, stream.seconds, strict=True)
    ]
    found = report_of(write_csv(tmp_path / "camps.csv", rows), "--ablation", "--questions", "60")
    arms = ["jobs off", "study only", "candidate tower only", "user tower only", "all jobs"]
    assert [row["name"] for row in found["report"]["systems"]] == ["popularity, 30 days", *arms]
    for arm in arms:  # too few events for any training: all do, and draw, the same
        assert found[arm]["all"]["to_jobs_off"] == {"ratio": 1, "low": 1, "high": 1}


def test_a_plot_is_an_image_of_what_its_name_says(tmp_path: Path) -> None:
    report = {
        "events": 10, "questions": 4, "tail_starts_at": 80,
        "systems": [{"name": "x", "over_time": [0.1, 0.2]}, {"name": "y", "over_time": [0.2, 0.1]}],
    }  # fmt: skip
    plot(report, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(CommandError, match="can not be written"):
        plot(report, tmp_path / "a.docx")


def test_a_setting_that_is_no_setting_is_refused() -> None:
    answer = CliRunner().invoke(main, ["evaluate", "--set", "nonsense"])
    assert answer.exit_code != 0
    assert "NAME=VALUE" in answer.output
