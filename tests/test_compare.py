"""Comparisons say what they should of systems whose difference is known, and nothing of what cannot be known."""

from __future__ import annotations

import io
import json
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from test_end_to_end import cuvee

from benchmarks.compare import Comparison, Row, Verdicts, compare
from benchmarks.compare_report import (
    as_json,
    block,
    notes,
    print_comparison,
    remarks,
    summary,
    to_markdown,
    write_comparison,
)
from benchmarks.paired import holm, mcnemar_p_value, odds_ratio_interval, paired_estimate, sign_flip_p_value
from corpora.errors import InputRefused, RecipeError
from distill.candidates import _named_folders

HOW = {"resamples": 1000, "confidence": 0.95, "seed": 1}
ONE_LINE_OF_REFUSAL = re.compile(r"[^\n]+: [^\n]+; expected [^\n]+; [^\n]+")
SIZES = {"agreement_1": 60, "agreement_2": 20, "island": 50}
GROUPS = {"agreement_1": "agreement", "agreement_2": "agreement", "island": "islands"}
UNDECIDED = "cannot be told apart"


def _wins(won: int, number: int) -> np.ndarray:
    return np.arange(number) < won


def _system(name: str, *seeds: tuple[int, int, int], ties: int | None = None) -> Verdicts:
    """Who wins so many items of each paradigm, the first ones, so that one of two systems has all discordant items."""
    return Verdicts(
        name,
        tuple({uid: _wins(won, size) for (uid, size), won in zip(SIZES.items(), wins, strict=True)} for wins in seeds),
        GROUPS,
        "abc",
        () if ties is None else tuple(dict.fromkeys(SIZES, ties) for _ in seeds),
    )


def _drawn(name: str, draw: np.random.Generator, *, seeds: int, deviation: float, paradigms: int = 4) -> Verdicts:
    """Seeds of one accuracy on average, which differ by `deviation`; 100 items a paradigm."""
    return Verdicts(
        name,
        tuple(
            {f"p{uid}": draw.random(100) < accuracy for uid in range(paradigms)}
            for accuracy in draw.normal(0.6, deviation, seeds)
        ),
        {},
        "abc",
    )


def _row(comparison: Comparison, name: str, pair: int = 0) -> Row:
    return next(row for row in comparison.pairs[pair].rows if row.name == name)


def test_one_seed_each_by_hand() -> None:
    """A wins 45, 10 and 25 of 60, 20 and 50 items, B 30, 12 and 25 of the same ones."""
    comparison = compare([_system("b", (30, 12, 25)), _system("a", (45, 10, 25))], baseline=None, **HOW)
    (pair,) = comparison.pairs
    assert (pair.a, pair.b, pair.seeds_a, pair.seeds_b) == ("a", "b", 1, 1)
    assert [(row.name, row.level, row.paradigms, row.items) for row in pair.rows] == [
        ("macro average", "overall", 3, 130),
        ("agreement", "phenomenon", 2, 80),
        ("islands", "phenomenon", 1, 50),
        ("agreement_1", "paradigm", 1, 60),
        ("agreement_2", "paradigm", 1, 20),
        ("island", "paradigm", 1, 50),
    ]
    first, second, third = pair.rows[3:]
    assert (first.accuracy_a, first.accuracy_b, first.difference) == pytest.approx((0.75, 0.5, 0.25))
    assert (first.a_only, first.b_only, first.odds_ratio, first.cohens_g) == (15, 0, math.inf, 0.5)
    assert first.p_value == 2 / 2**15 and first.adjusted_p_value == pytest.approx(3 * 2 / 2**15)
    assert first.verdict == "A better" and first.detectable is None and first.test == "mcnemar"
    assert (second.a_only, second.b_only, second.odds_ratio, second.cohens_g) == (0, 2, 0.0, -0.5)
    assert second.p_value == 0.5 and second.adjusted_p_value == 1.0 and second.verdict == UNDECIDED
    assert (third.odds_ratio, third.cohens_g, third.p_value, third.difference) == (None, None, 1.0, 0.0)
    assert third.interval is not None and third.interval.low < 0 < third.interval.high
    assert first.odds_ratio_interval == odds_ratio_interval(15, 0, confidence=0.95)
    assert first.seed_share is None and first.ties_a is None


def test_means_over_paradigms_are_macro_averages() -> None:
    """Overall A gains 15/60 and -2/20 and 0/50, in the agreement 15/60 and -2/20: over items it would be 13/130."""
    systems = [_system("b", (30, 12, 25)), _system("a", (45, 10, 25))]
    comparison = compare(systems, baseline=None, **HOW)
    overall, agreement, islands = comparison.pairs[0].rows[:3]
    assert overall.difference == pytest.approx((0.25 - 0.1) / 3) and agreement.difference == pytest.approx(0.15 / 2)
    assert (agreement.a_only, agreement.b_only, agreement.odds_ratio) == (15, 2, 7.5)
    assert agreement.test == "permutation" and islands.test == "mcnemar"
    b, a = ([system.seeds[0][uid] for uid in ("agreement_1", "agreement_2")] for system in systems)
    assert agreement.p_value == sign_flip_p_value(a, b, resamples=1000, seed=1)
    assert [agreement.adjusted_p_value, islands.adjusted_p_value] == holm([agreement.p_value, 1.0])
    assert overall.adjusted_p_value == overall.p_value  # a family of one


def test_paradigms_without_a_phenomenon_stand_alone() -> None:
    systems = [replace(_system(name, (30, 12, 25)), groups={"island": "islands"}) for name in "ab"]
    assert [row.name for row in compare(systems, baseline=None, **HOW).pairs[0].rows][:3] == [
        *("macro average", "islands", "agreement_1"),
    ]
    bare = [replace(system, groups={}) for system in systems]
    assert {row.level for row in compare(bare, baseline=None, **HOW).pairs[0].rows} == {"overall", "paradigm"}


def test_who_is_compared_with_whom() -> None:
    systems = [_system(name, (30, 12, 25)) for name in ("first", "second", "third")]

    def pairs(**keywords: Any) -> list[tuple[str, str]]:
        return [(pair.a, pair.b) for pair in compare(systems, **HOW, **keywords).pairs]

    assert pairs(baseline=None) == [("second", "first"), ("third", "first")]
    assert pairs(baseline="second") == [("first", "second"), ("third", "second")]
    every = [("second", "first"), ("third", "first"), ("third", "second")]
    assert pairs(baseline=None, all_pairs=True) == every


def test_holm_counts_the_rows_of_all_pairs() -> None:
    systems = [_system("b", (30, 12, 25)), _system("x", (37, 12, 25)), _system("y", (30, 12, 40))]
    comparison = compare(systems, baseline="b", **HOW)
    paradigms = [row for pair in comparison.pairs for row in pair.rows if row.level == "paradigm"]
    assert [row.adjusted_p_value for row in paradigms] == holm([row.p_value for row in paradigms if row.p_value])
    # alone, 7 of 7 items would do: 3 x 2 / 2^7 = 0.047; six rows ask for more
    assert _row(comparison, "agreement_1").verdict == UNDECIDED
    assert _row(compare(systems[:2], baseline="b", **HOW), "agreement_1").verdict == "A better"


def test_detectable_differences_are_those_of_the_step_that_holm_stopped_at() -> None:
    systems = [_system("b", (30, 12, 25)), _system("a", (45, 10, 25))]
    comparison = compare(systems, baseline=None, **HOW)
    b, a = (system.wins("island") for system in systems)
    # one paradigm of three is told apart, so each of the others has to reach 0.05 / 2
    assert _row(comparison, "island").detectable == paired_estimate([a], [b]).detectable(0.025)


def test_exchanged_systems_mirror_every_row() -> None:
    draw = np.random.default_rng(0)
    for seeds in (1, 3):
        x, y = (_drawn(name, draw, seeds=seeds, deviation=0.1) for name in "xy")
        forth, back = (compare([x, y], baseline=name, **HOW).pairs[0].rows for name in "xy")
        for one, other in zip(forth, back, strict=True):
            assert (one.accuracy_a, one.a_only) == (other.accuracy_b, other.b_only)
            assert one.difference == -other.difference
            assert one.p_value == pytest.approx(other.p_value) and one.detectable == pytest.approx(other.detectable)
            assert one.interval is not None and other.interval is not None
            assert one.interval == pytest.approx((-other.interval.high, -other.interval.low))
            assert {one.verdict, other.verdict} in ({"A better", "B better"}, {UNDECIDED})


def test_a_system_cannot_be_told_from_itself() -> None:
    for seeds in ([(30, 12, 25)], [(30, 12, 25), (33, 9, 24)]):
        rows = compare([_system("a", *seeds), _system("b", *seeds)], baseline=None, **HOW).pairs[0].rows
        assert all((row.p_value, row.difference, row.verdict) == (1.0, 0.0, UNDECIDED) for row in rows)


def test_several_seeds_are_means_and_a_source_of_variation() -> None:
    systems = [_system("b", (30, 12, 25), (32, 14, 25)), _system("a", (45, 10, 25), (41, 12, 25), (43, 8, 25))]
    comparison = compare(systems, baseline=None, **HOW)
    row = _row(comparison, "agreement_1")
    assert row.accuracy_a == pytest.approx(43 / 60) and row.accuracy_b == pytest.approx(31 / 60)
    assert row.a_only == pytest.approx(12.0) and row.b_only == pytest.approx(0.0)  # mean of 15 13 11 9 13 11
    assert row.odds_ratio_interval is None and row.test == "min_f"
    b, a = (system.wins("agreement_1") for system in systems)
    estimate = paired_estimate([a], [b])
    assert row.p_value == estimate.p_value() and row.interval == estimate.interval(0.95)
    assert row.seed_share == pytest.approx(estimate.seed_variance / estimate.variance)
    assert _row(comparison, "island").seed_share == 0.0  # all seeds alike


def test_one_seed_against_several_is_not_tested() -> None:
    systems = [_system("b", (30, 12, 25)), _system("a", (60, 20, 50), (59, 20, 50)), _system("c", (45, 12, 25))]
    comparison = compare(systems, baseline="b", **HOW)
    for row in comparison.pairs[0].rows:
        assert (row.test, row.p_value, row.adjusted_p_value, row.interval) == (None, None, None, None)
        assert row.verdict == UNDECIDED and row.detectable is None and row.difference > 0
    # what is not tested is no member of a family
    assert _row(comparison, "agreement_1", pair=1).adjusted_p_value == pytest.approx(3 * mcnemar_p_value(15, 0))
    assert remarks(comparison.pairs[0], 0.05)[0].startswith("Too few seeds to tell: A has 2 and B 1, so nothing is")


def test_equal_systems_rarely_get_any_verdict() -> None:
    """The chance of any wrong verdict among twelve paradigms, one seed or four, is at most alpha."""
    draw = np.random.default_rng(7)
    for seeds, deviation in ((1, 0.0), (4, 0.05)):
        wrong = 0
        for _ in range(60):
            systems = [_drawn(name, draw, seeds=seeds, deviation=deviation, paradigms=12) for name in "ab"]
            rows = compare(systems, baseline=None, resamples=50, confidence=0.95, seed=1).pairs[0].rows
            wrong += any(row.verdict != UNDECIDED for row in rows if row.level == "paradigm")
        assert wrong <= 0.05 * 60 + 3 * math.sqrt(0.05 * 0.95 * 60)


def test_seeds_that_vary_hide_what_one_seed_shows() -> None:
    """Runs differ by 15 points either way: two runs can be told apart, their recipes cannot."""
    seeds = [(45, 15, 38), (30, 10, 25), (46, 15, 37), (31, 11, 26)]
    one = compare([_system("b", seeds[1]), _system("a", seeds[0])], baseline=None, **HOW)
    several = compare([_system("b", *seeds[1:]), _system("a", *seeds[:3])], baseline=None, **HOW)
    assert _row(one, "macro average").verdict == "A better"
    assert _row(several, "macro average").verdict == UNDECIDED
    share = _row(several, "macro average").seed_share
    assert share is not None and share > 0.8


def _changed(system: Verdicts, **wins: np.ndarray | None) -> Verdicts:
    """Another second seed; a paradigm that is None is missing."""
    seed = {uid: found for uid, found in (system.seeds[1] | wins).items() if found is not None}
    return replace(system, seeds=(system.seeds[0], seed))


@pytest.mark.parametrize(
    ("other", "reason"),
    [
        (lambda a: _changed(a, agreement_2=_wins(5, 19)), "a, seed 2 of 2: agreement_2 has 19 items; expected 20"),
        (lambda a: _changed(a, agreement_2=None, island=None), "a, seed 2 of 2: agreement_2 has 0 items; expected 20"),
        (lambda a: _changed(a, new=_wins(5, 9)), "a, seed 2 of 2: new has 9 items; expected no such paradigm"),
        (lambda a: replace(a, items="xyz"), "a: items of digest xyz; expected abc, as b has"),
        (lambda a: replace(a, groups=GROUPS | {"island": "npi"}), "a: island belongs to npi; expected islands"),
        (lambda a: replace(a, groups={}), "a: agreement_1 belongs to no phenomenon; expected agreement"),
    ],
)
def test_other_items_are_refused_by_the_first_paradigm_that_differs(
    other: Callable[[Verdicts], Verdicts], reason: str
) -> None:
    a, b = (_system(name, (30, 12, 25), (31, 12, 25)) for name in "ab")
    with pytest.raises(InputRefused) as refusal:
        compare([b, other(a)], baseline=None, **HOW)
    assert str(refusal.value).startswith(reason) and ONE_LINE_OF_REFUSAL.fullmatch(str(refusal.value))


def test_systems_without_items_are_refused() -> None:
    empty = [Verdicts(name, ({},), {}, "abc") for name in "ab"]
    with pytest.raises(InputRefused, match="a: no paradigm; expected at least one"):
        compare(empty, baseline=None, **HOW)
    bare = [Verdicts(name, ({"island": _wins(0, 0)},), {}, "abc") for name in "ab"]
    with pytest.raises(InputRefused, match="a, seed 1 of 1: island has no item; expected at least one"):
        compare(bare, baseline=None, **HOW)


def test_scores_under_different_protocols_are_not_compared() -> None:
    a, b = (replace(_system(name, (30, 12, 25)), protocol=name) for name in ("minicons", "cuvee"))
    with pytest.raises(InputRefused) as refusal:
        compare([b, a], baseline=None, **HOW)
    assert str(refusal.value).startswith("minicons: scored under minicons; expected cuvee, as cuvee was")
    assert ONE_LINE_OF_REFUSAL.fullmatch(str(refusal.value))
    assert compare([b, replace(a, protocol="cuvee")], baseline=None, **HOW).pairs
    assert compare([b, replace(a, protocol="")], baseline=None, **HOW).pairs, "what is not known is not judged"


@pytest.mark.parametrize("wins", [np.array([0.0, np.nan] * 25), np.ones(50, np.int8), np.ones((50, 1), bool)])
def test_what_is_no_verdict_is_refused(wins: np.ndarray) -> None:
    a, b = (_system(name, (30, 12, 25), (31, 12, 25)) for name in "ab")
    with pytest.raises(InputRefused, match="a, seed 2 of 2: island holds .*; expected true or false"):
        compare([b, _changed(a, island=wins)], baseline=None, **HOW)


def test_permutations_are_enough_for_the_family_that_holm_corrects() -> None:
    """The smallest p of 1,000 permutations, times the 66 rows of twelve systems, would always exceed alpha."""
    systems = [_system(f"s{number}", (number * 5, number, 25)) for number in range(12)]
    comparison = compare(systems, baseline=None, all_pairs=True, **HOW)
    apart = next(pair for pair in comparison.pairs if (pair.a, pair.b) == ("s11", "s0"))
    (row,) = (row for row in apart.rows if row.name == "agreement")
    assert row.test == "permutation" and row.verdict == "A better"
    assert comparison.resamples == 2 * 66 * 2 / 0.05 > HOW["resamples"]
    assert compare(systems[:2], baseline=None, **HOW).resamples == HOW["resamples"]


def test_unequal_numbers_of_seeds_are_remarked_upon() -> None:
    two, eight = (_system(name, *[(30 + k, 12, 25) for k in range(seeds)]) for name, seeds in (("a", 2), ("b", 8)))
    said = remarks(compare([two, eight], baseline=None, **HOW).pairs[0], 0.05)
    assert sum("Unequal numbers of seeds" in line for line in said) == 1
    four = replace(eight, seeds=eight.seeds[:4])
    assert "Unequal" not in "".join(remarks(compare([two, four], baseline=None, **HOW).pairs[0], 0.05))


@pytest.mark.parametrize(
    ("given", "name", "folders"),
    [
        ("OUT/a", "a", ["OUT/a"]),
        ("base=OUT/a,OUT/b", "base", ["OUT/a", "OUT/b"]),
        ("lr=3e-4", "lr=3e-4", ["lr=3e-4"]),
        ("lr=3e-4,OUT/b", "lr=3e-4", ["lr=3e-4", "OUT/b"]),
        ("base=lr=3e-4", "base", ["lr=3e-4"]),
    ],
)
def test_systems_are_named_or_called_as_their_first_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, name: str, folders: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lr=3e-4").mkdir()  # a sweep's folders say what they vary
    assert _named_folders(given) == (name, [Path(folder) for folder in folders])


@pytest.mark.parametrize("given", ["", "a=", "a=,", "a=OUT/a,OUT/b,OUT/../OUT/a"])
def test_a_system_is_some_folders_each_once(given: str) -> None:
    code, lines = cuvee("compare", given, "b=OUT/b")
    assert code == 2 and len(lines) == 1 and ONE_LINE_OF_REFUSAL.fullmatch(lines[0])


@pytest.mark.parametrize(
    ("names", "keywords", "reason"),
    [
        (["a"], {}, "1 system"),
        (["a", "b", "a"], {}, "two systems are called 'a'"),
        (["alpha", "beta"], {"baseline": "alhpa"}, "did you mean 'alpha'?"),
        (["a", "b"], {"baseline": "a", "all_pairs": True}, "all pairs"),
        (["a", "b"], {"alpha": 5.0}, "alpha is 5.0"),
        (["a", "b"], {"confidence": math.nan}, "confidence is nan"),
    ],
)
def test_questions_without_sense_are_refused(names: list[str], keywords: dict[str, Any], reason: str) -> None:
    with pytest.raises(RecipeError) as refusal:
        compare([_system(name, (30, 12, 25)) for name in names], **HOW | {"baseline": None} | keywords)
    assert reason in str(refusal.value) and ONE_LINE_OF_REFUSAL.fullmatch(str(refusal.value))


def _shown() -> Comparison:
    """Single seeds with an infinite odds ratio and ties, and names that break tables."""
    systems = [_system("b|*", (30, 12, 25), ties=2), _system("[red]a", (57, 11, 25), ties=0)]
    return compare(systems, baseline=None, **HOW)


def test_the_summary_is_one_sentence() -> None:
    (pair,) = _shown().pairs
    said = summary(pair, 0.95)
    # 27 of 60, -1 of 20 and 0 of 50
    assert said.startswith("A ([red]a) is better than B (b|*) overall: A-B is +13.3 points, 95% interval [+")
    assert said.endswith(
        "; of 2 phenomena A is better on 1, B on 0, and 1 cannot be told apart"
        "; of 3 paradigms A is better on 1, B on 0, and 2 cannot be told apart."
    )
    worse = compare([_system("b", (60, 20, 50)), _system("a", (30, 10, 25))], baseline=None, **HOW).pairs[0]
    assert summary(worse, 0.95).startswith("B (b) is better than A (a) overall: A-B is -50.0 points")
    same = compare([_system("b", (60, 20, 50)), _system("a", (60, 20, 50))], baseline=None, **HOW).pairs[0]
    assert summary(same, 0.95).startswith("A (a) and B (b) cannot be told apart overall: A-B is +0.0 points")


def test_remarks_say_what_could_have_been_shown_and_what_seeds_allow() -> None:
    (pair,) = _shown().pairs
    detectable, seeds, ties = remarks(pair, 0.05)
    numbers = {row.name: f"{100 * row.detectable:.1f}" for row in pair.rows if row.detectable is not None}
    assert f": {numbers['islands']} points (islands); {numbers['island']} points (island) to " in detectable
    assert f"to {numbers['agreement_2']} (agreement_2)" in detectable and "power of 80%" in detectable
    assert set(numbers) == {"islands", "island", "agreement_2"}
    assert seeds.startswith("One seed each: this compares two runs")
    assert ties == "Ties, which count as lost (over all seeds): A 0, B 6."
    three = [_system(name, (30, 12, 25), (33, 12, 25), (31, 10, 25)) for name in "ab"]
    said = remarks(compare(three, baseline=None, **HOW).pairs[0], 0.05)
    assert "A has 3 seeds and B 3; " in said[1] and "in 20 ways" in said[2] and len(said) == 3
    four = [replace(system, seeds=system.seeds + system.seeds[:1]) for system in three]
    assert not any("Few seeds" in line for line in remarks(compare(four, baseline=None, **HOW).pairs[0], 0.05))


def test_what_no_item_could_show_is_said() -> None:
    tiny = [Verdicts(name, ({"x": _wins(2, 4), "y": _wins(3, 4)},), {}, "abc") for name in "ab"]
    (pair,) = compare(tiny, baseline=None, **HOW).pairs
    assert remarks(pair, 0.05)[0].endswith("; none whatever its size (2 paradigms).")
    headers, rows = block(pair, "paradigm", 0.95)
    assert [row[headers.index("least shown")] for row in rows] == ["none", "none"]


def test_cells_hold_the_row() -> None:
    (pair,) = _shown().pairs
    headers, rows = block(pair, "paradigm", 0.95)
    cells = dict(zip(headers, rows[0], strict=True))
    assert [cells[name] for name in ("paradigm", "items", "A %", "B %", "A-B")] == [
        *("agreement_1", "60", "95.0", "50.0", "+45.0"),
    ]
    assert (cells["A only"], cells["B only"], cells["g"], cells["p"]) == ("27", "0", "+0.50", "<0.001")
    share = 0.025 ** (1 / 27)  # at which 27 of 27 have a chance of 0.025
    assert cells["odds ratio"] == f"inf [{share / (1 - share):.2f}, inf]" and cells["verdict"] == "A better"
    assert cells["least shown"] == "-" and rows[2][headers.index("odds ratio")] == "-"


def test_terminal_and_markdown_show_the_same_cells() -> None:
    comparison = _shown()
    out = io.StringIO()
    print_comparison(comparison, Console(file=out, width=120, color_system=None))
    printed, markdown = out.getvalue(), to_markdown(comparison)
    assert "A = [red]a, B = b|*" in printed and "## A = [red]a, B = b\\|*" in markdown
    for level in ("overall", "phenomenon", "paradigm"):
        headers, rows = block(comparison.pairs[0], level, 0.95)
        for cells in rows:
            assert f"| {' | '.join(cells)} |" in markdown
            narrow = [cell for header, cell in zip(headers, cells, strict=True) if header not in ("odds ratio", "g")]
            assert " ".join(narrow) in " ".join(printed.split())
    assert all(len(line.rstrip()) <= 120 for line in printed.splitlines())
    assert "exact McNemar" in markdown and "permutation" in markdown and "min F'" not in "".join(notes(comparison)[2:4])


def test_json_has_every_number_and_no_infinity() -> None:
    comparison = _shown()
    value = json.loads(json.dumps(as_json(comparison), allow_nan=False))
    row = value["pairs"][0]["rows"][3]
    assert (row["name"], row["odds_ratio"], row["a_only"], row["verdict"]) == ("agreement_1", None, 27, "A better")
    assert row["odds_ratio_interval"][1] is None and row["interval"] == list(_row(comparison, "agreement_1").interval)
    assert value["pairs"][0]["summary"] == summary(comparison.pairs[0], 0.95) and value["alpha"] == 0.05
    assert value["items"] == "abc" and value["power"] == 0.8


def test_a_comparison_is_written_as_json_and_markdown(tmp_path: Path) -> None:
    comparison = _shown()
    write_comparison(tmp_path, comparison)
    assert (tmp_path / "compare.md").read_text() == to_markdown(comparison)
    assert json.loads((tmp_path / "compare.json").read_text()) == as_json(comparison)
