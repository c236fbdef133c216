"""Task files of the challenge's years are read strictly, texts are put together as in each year, metrics are right."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from benchmarks.finetune.config import PRESETS, FinetuneConfig, Layout, check_finetune
from benchmarks.finetune.data import Example, read_task
from benchmarks.finetune.encoding import PairEncoder
from benchmarks.finetune.metrics import all_scores
from benchmarks.finetune.schedule import learning_rate, steps_of_epoch, warmup_steps
from benchmarks.finetune.tasks import chosen_tasks, tasks_of
from benchmarks.json_lines import MAX_LINE_BYTES
from corpora.errors import InputRefused, RecipeError

ONE_LINE_OF_REFUSAL = re.compile(r"[^\n]+(:\d+)?: [^\n]+; expected [^\n]+; [^\n]+")
BOOLQ = {"question": "is it cold", "passage": "it is", "label": 1, "idx": 0}


def write(root: Path, name: str, *rows: Mapping[str, Any]) -> Path:
    path = root / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


# files


@pytest.mark.parametrize(
    ("layout", "tasks", "task", "train", "reported"),
    [
        ("2023", 22, "mnli-mm", "glue_filtered/mnli.train.json", ["glue_filtered/mnli.validation_mismatched.json"]),
        ("2023", 22, "mnli", "glue_filtered/mnli.train.json", ["glue_filtered/mnli.validation_matched.json"]),
        (
            *("2023", 22, "main_verb_control", "msgs_filtered/main_verb_control.train.json"),
            ["msgs_filtered/main_verb_control.validation.json"],
        ),
        (
            *("2024", 10, "mnli", "glue_filtered/mnli.train.jsonl"),
            ["glue_filtered/mnli.valid.jsonl", "glue_filtered/mnli-mm.valid.jsonl"],
        ),
        ("2025", 7, "qqp", "glue_filtered/qqp.train.jsonl", ["glue_filtered/qqp.valid.jsonl"]),
    ],
)
def test_each_year_has_its_files(layout: Layout, tasks: int, task: str, train: str, reported: list[str]) -> None:
    found = tasks_of(layout)
    assert len(found) == tasks
    assert found[task].train.file == train and [split.file for split in found[task].reported] == reported


def test_metrics_of_scorers_and_readmes_are_named_apart() -> None:
    year = {layout: tasks_of(layout) for layout in ("2023", "2024", "2025")}
    named = {(layout, task): (year[layout][task].scored, year[layout][task].readme) for layout in year for task in
             ("mrpc", "rte")}  # fmt: skip
    assert named["2023", "mrpc"] == ("f1", "f1_macro") and named["2024", "mrpc"] == ("f1", "f1")
    assert named["2025", "mrpc"] == ("accuracy", "f1") and named["2025", "rte"] == ("accuracy", "accuracy")
    assert year["2024"]["cola"].scored == "mcc"
    assert sum(task.scored == "mcc" for task in year["2023"].values()) == 11


def test_valid_files_of_2025_have_known_sizes() -> None:
    sizes = {name: task.reported[0].rows for name, task in tasks_of("2025").items()}
    expected = {"boolq": 1635, "mnli": 4908, "mrpc": 204, "multirc": 2424, "qqp": 20_215, "rte": 139, "wsc": 52}
    assert sizes == expected


def test_texts_are_put_together_as_in_each_year(tmp_path: Path) -> None:
    multirc = {"question": "Who?", "answer": "{Ann}", "paragraph": "Ann ran.", "label": 1}
    wsc = {"text": "Ann ran.", "span1_text": "Ann", "span2_text": "she", "label": 0}
    for name, row in (("multirc", multirc), ("wsc", wsc)):
        for split in ("train", "valid"):
            write(tmp_path, f"glue_filtered/{name}.{split}.jsonl", row)

    def texts(layout: Layout, task: str) -> tuple[str, str | None]:
        example = read_task(tmp_path, tasks_of(layout)[task]).train.examples[0]
        return example.first, example.second

    assert texts("2025", "multirc") == ("Question: Who? Answer: {Ann}", "Ann ran.")
    assert texts("2024_lora", "multirc") == ("Ann ran.", "Who? {Ann}")
    assert texts("2024", "wsc") == ('Does "she" refer to "Ann" in this passage?', "Ann ran.")
    assert texts("2024_lora", "wsc") == ("Ann ran.", 'Does "she" refer to "Ann"?')


def test_rows_keep_the_order_and_the_lines_of_their_file(tmp_path: Path) -> None:
    for split in ("train", "valid"):
        write(tmp_path, f"glue_filtered/boolq.{split}.jsonl", BOOLQ, BOOLQ | {"question": "is it ☃", "label": 0})
    rows = read_task(tmp_path, tasks_of("2025")["boolq"])
    assert [(each.first, each.label) for each in rows.train.examples] == [("is it cold", 1), ("is it ☃", 0)]
    assert rows.train.examples[1].place == f"{tmp_path}/glue_filtered/boolq.train.jsonl:2"
    assert rows.remarks == ("glue_filtered/boolq.valid.jsonl has 2 rows, the challenge's 1635",)
    with pytest.raises(InputRefused, match="boolq.valid.jsonl has 2 rows, the challenge's 1635; expected the same; "):
        read_task(tmp_path, tasks_of("2025")["boolq"], official=True)


def test_msgs_scores_the_rows_of_its_test_condition(tmp_path: Path) -> None:
    name = "main_verb_lexical_content_the"
    row = {"sentence": "the cat ran", "linguistic_feature_type": "syntactic", "label": 1}
    write(tmp_path, f"msgs_filtered/{name}.train.json", row)
    valid = [row | {"condition": condition} for condition in ("control", "test", "control", "test")]
    write(tmp_path, f"msgs_filtered/{name}.validation.json", *valid)
    rows = read_task(tmp_path, tasks_of("2023")[name])
    assert [each.scored for each in rows.reported[0].examples] == [False, True, False, True]
    assert rows.train.examples[0].second is None and rows.train.examples[0].scored
    write(tmp_path, f"msgs_filtered/{name}.validation.json", row | {"condition": "control"})
    with pytest.raises(InputRefused, match="no row has the condition 'test'; expected some"):
        read_task(tmp_path, tasks_of("2023")[name])


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"", "not JSON"),
        (b"[1]", "found a list"),
        (b'{"question": "a", "label": 1}', "key passage is missing"),
        (b'{"question": "a", "passage": 3, "label": 1}', "passage is a number"),
        (b'{"question": " ", "passage": "", "label": 1}', "question and passage are blank"),
        (b'{"question": "a", "passage": "b"}', "key label is missing"),
        (b'{"question": "a", "passage": "b", "label": 2}', "label is 2"),
        (b'{"question": "a", "passage": "b", "label": -1}', "label is -1"),
        (b'{"question": "a", "passage": "b", "label": true}', "label is True"),
        (b'{"question": "a", "passage": "b", "label": "1"}', "label is '1'"),
        (b'{"question": "a", "passage": "b", "label": NaN}', "NaN is not a JSON value"),
        (b'{"question": "a", "question": "c", "passage": "b", "label": 1}', "'question' occurs twice"),
        (b'{"question": "a\\u0000", "passage": "b", "label": 1}', "question holds a NUL"),
        (b'{"question": "a\\ud800", "passage": "b", "label": 1}', "lone surrogate"),
        (b'{"question": "a\xff"}', "byte 16 is not UTF-8"),
        (b"[" * 60_000, "nested too deeply"),
        (b'{"question": "' + b"b" * MAX_LINE_BYTES + b'"}', "more than 65,536 bytes"),
    ],
)
def test_what_is_not_a_row_is_refused_by_line(tmp_path: Path, line: bytes, reason: str) -> None:
    for split in ("train", "valid"):
        path = write(tmp_path, f"glue_filtered/boolq.{split}.jsonl", BOOLQ)
    path.write_bytes(json.dumps(BOOLQ).encode() + b"\n" + line + b"\n")
    with pytest.raises(InputRefused) as refusal:
        read_task(tmp_path, tasks_of("2025")["boolq"])
    message = str(refusal.value)
    assert message.startswith(f"{path}:2: ") and reason in message and ONE_LINE_OF_REFUSAL.fullmatch(message)


def test_one_text_of_two_may_be_blank(tmp_path: Path) -> None:
    """The challenge filters by words, of which it has none; and every line of a file is predicted."""
    for split in ("train", "valid"):
        write(tmp_path, f"glue_filtered/boolq.{split}.jsonl", BOOLQ | {"question": ""})
    example = read_task(tmp_path, tasks_of("2025")["boolq"]).train.examples[0]
    assert (example.first, example.second) == ("", "it is")


def test_missing_and_empty_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputRefused, match=r"rte.train.jsonl: No such file or directory; expected .*; check"):
        read_task(tmp_path, tasks_of("2025")["rte"])
    write(tmp_path, "glue_filtered/rte.train.jsonl")
    with pytest.raises(InputRefused, match="rte.train.jsonl: empty; expected one item"):
        read_task(tmp_path, tasks_of("2025")["rte"])


def test_unknown_tasks_are_refused() -> None:
    assert [task.name for task in chosen_tasks("2025", ["wsc", "rte"])] == ["wsc", "rte"]
    assert len(chosen_tasks("2025", [])) == 7
    with pytest.raises(RecipeError, match="'boolqq' is no task of 2025, expected one of boolq, .*did you mean 'boolq'"):
        chosen_tasks("2025", ["boolqq"])


# texts to tokens


def word_tokenizer(template: TemplateProcessing | None = None) -> str:
    words = ["<s>", "</s>", "<unk>", *"abcdefgh"]
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    tokenizer.add_special_tokens(["<s>", "</s>"])
    if template is not None:
        tokenizer.post_processor = template  # type: ignore[assignment]
    return tokenizer.to_str()


ROBERTA = TemplateProcessing(
    single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
)
BEGIN_ALONE = TemplateProcessing(single="<s> $A", pair="<s> $A $B:1", special_tokens=[("<s>", 0)])


@pytest.mark.parametrize(
    ("template", "frame", "pair", "single"),
    [
        (None, "begin", "<s> A <s> B", "<s> A"),
        (None, "tokenizer", "A B", "A"),  # the years' way where a tokenizer has no template
        (ROBERTA, "begin", "<s> A </s> </s> B </s>", "<s> A </s>"),
        (ROBERTA, "tokenizer", "<s> A </s> </s> B </s>", "<s> A </s>"),
        (BEGIN_ALONE, "begin", "<s> A <s> B", "<s> A"),
        (BEGIN_ALONE, "tokenizer", "<s> A B", "<s> A"),
    ],
)
def test_the_tokenizers_own_template_comes_first(
    template: TemplateProcessing | None, frame: Any, pair: str, single: str
) -> None:
    config = FinetuneConfig(frame=frame)
    for pairs, expected in ((True, pair), (False, single)):
        encoder = PairEncoder(word_tokenizer(template), config, begin_id=0, pairs=pairs, max_positions=99)
        assert encoder.frame == expected
        example = Example(first="a b", second="c" if pairs else None, label=0)
        token_of = {"A": [3, 4], "B": [5], "<s>": [0], "</s>": [1]}
        assert encoder.rows([example]) == [tuple(token for part in expected.split() for token in token_of[part])]


def test_the_longer_text_is_cut_to_what_the_model_reads() -> None:
    encoder = PairEncoder(word_tokenizer(), FinetuneConfig(max_length=64), begin_id=0, pairs=True, max_positions=9)
    assert encoder.max_length == 9
    (row,) = encoder.rows([Example(first="a " * 40, second="b c", label=0)])
    assert row == (0, 3, 3, 3, 3, 3, 0, 4, 5)  # 7 tokens of text and two begin tokens
    (row,) = encoder.rows([Example(first="b c", second="a " * 40, label=0)])
    assert row == (0, 4, 5, 0, 3, 3, 3, 3, 3)


def test_special_tokens_written_in_a_text_are_text() -> None:
    encoder = PairEncoder(word_tokenizer(), FinetuneConfig(), begin_id=0, pairs=False, max_positions=99)
    (row,) = encoder.rows([Example(first="a </s> b", second=None, label=0)])
    assert 1 not in row and row.count(0) == 1


def test_a_frame_without_a_begin_token_is_refused() -> None:
    with pytest.raises(InputRefused, match="no begin token, .*; expected one .*; name it there"):
        PairEncoder(word_tokenizer(), FinetuneConfig(), begin_id=None, pairs=False, max_positions=99)


def test_a_text_without_a_token_is_refused() -> None:
    letters = Tokenizer(models.BPE({"a": 0, "b": 1}, [])).to_str()  # drops what it does not know
    encoder = PairEncoder(letters, FinetuneConfig(frame="tokenizer"), begin_id=None, pairs=False, max_positions=99)
    assert encoder.rows([Example(first="ab☃a", second=None, label=0)]) == [(0, 1, 0)]
    with pytest.raises(InputRefused, match="valid.jsonl:7: no token; expected at least one; "):
        encoder.rows([Example(first="☃", second=None, label=0, place="valid.jsonl:7")])


# metrics


def test_metrics_of_a_table_worked_out_by_hand() -> None:
    # of label 1: 3 hits, 1 false alarm, 2 misses, 4 right refusals
    labels = np.array([1] * 5 + [0] * 5)
    said = np.array([1, 1, 1, 0, 0, 1, 0, 0, 0, 0])
    scores = all_scores(labels, said, 2)
    assert scores["accuracy"] == 0.7
    assert scores["f1"] == pytest.approx(2 * 3 / (2 * 3 + 1 + 2))
    assert scores["f1_macro"] == pytest.approx((2 / 3 + 8 / 11) / 2)
    assert scores["mcc"] == pytest.approx((3 * 4 - 1 * 2) / np.sqrt(4 * 5 * 6 * 5))


def test_three_labels_have_no_binary_f1() -> None:
    labels, said = np.array([0, 0, 1, 1, 2, 2]), np.array([0, 1, 1, 1, 2, 0])
    scores = all_scores(labels, said, 3)
    assert "f1" not in scores and scores["accuracy"] == pytest.approx(4 / 6)
    assert scores["f1_macro"] == pytest.approx((2 / 4 + 4 / 5 + 2 / 3) / 3)
    # c s - t p = 4 * 6 - 2 * (2 + 3 + 1); s s - p p = 36 - 14, s s - t t = 36 - 12
    assert scores["mcc"] == pytest.approx(12 / np.sqrt(22 * 24))


def test_one_label_alone_is_worth_nothing() -> None:
    labels = np.array([1, 1, 1, 0])
    for said, f1 in ((1, 6 / 7), (0, 0.0)):
        scores = all_scores(labels, np.full(4, said), 2)
        assert scores["mcc"] == 0.0 and scores["f1"] == pytest.approx(f1)
    with pytest.raises(ValueError, match="0 labels and 0 predictions"):
        all_scores(labels[:0], labels[:0], 2)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=40))
def test_metrics_are_their_definitions(rows: list[tuple[int, int]]) -> None:
    labels, said = np.array([row[0] for row in rows]), np.array([row[1] for row in rows])
    scores = all_scores(labels, said, 3)
    assert scores["accuracy"] == pytest.approx(np.mean(labels == said))
    each = []
    for label in sorted(set(labels) | set(said)):
        hits = sum(pair == (label, label) for pair in rows)
        precision = hits / max(sum(said == label), 1)
        recall = hits / max(sum(labels == label), 1)
        each.append(2 * precision * recall / (precision + recall) if hits else 0.0)
    assert scores["f1_macro"] == pytest.approx(np.mean(each))
    # R_K is the correlation of the two tables of indicators
    x, y = np.eye(3)[labels], np.eye(3)[said]
    x, y = x - x.mean(0), y - y.mean(0)
    spread = np.sqrt((x * x).sum() * (y * y).sum())
    assert scores["mcc"] == pytest.approx((x * y).sum() / spread if spread > 1e-9 else 0.0, abs=1e-9)


# configurations


def test_presets_are_those_of_the_years() -> None:
    for config in PRESETS.values():
        check_finetune(config)
    year = PRESETS["babylm2025"]
    assert (year.lr, year.max_length, year.seeds, year.position) == (3e-5, 512, (42,), "first")
    sizes = {task: (year.for_task(task).batch_size, year.for_task(task).epochs) for task in tasks_of("2025")}
    assert sizes["boolq"] == sizes["multirc"] == (16, 10) and sizes["wsc"] == (32, 30) and sizes["rte"] == (32, 10)
    assert [task for task in sizes if year.for_task(task).select_by == "f1"] == ["mrpc", "qqp"]
    assert [name for name, config in PRESETS.items() if config.selection == "carved"] == ["cuvee"]
    lora = PRESETS["babylm2024_lora"].lora
    assert lora is not None and (lora.rank, lora.alpha, lora.dropout) == (8, 16, 0.1)
    assert PRESETS["babylm2023"].for_task("mnli").select_by == "accuracy"


def test_rates_of_2025_are_a_cosine_over_a_floor() -> None:
    config = PRESETS["babylm2025"]
    steps = 10 * steps_of_epoch(335, config)  # ten whole batches of 32; 15 rows are left out of each epoch
    warmup = warmup_steps(335, steps, config)
    assert (steps, warmup) == (100, 6)
    rates = [learning_rate(step, steps, warmup, config) / config.lr for step in (0, 3, 6, 53, 99)]
    assert rates[:4] == pytest.approx([0, 0.5, 1, 0.55])
    assert 0.1 < rates[4] < 0.101


def test_rates_of_2023_are_a_line_and_all_rows_are_read() -> None:
    config = PRESETS["babylm2023"]
    steps = 10 * steps_of_epoch(65, config)
    assert steps == 20 and warmup_steps(65, steps, config) == 0
    assert [learning_rate(step, steps, 0, config) / config.lr for step in (0, 10, 19)] == pytest.approx([1, 0.5, 0.05])


def test_the_adapters_of_2024_never_come_to_their_peak() -> None:
    config = PRESETS["babylm2024_lora"]
    steps = 32 * steps_of_epoch(6400, config)
    warmup = warmup_steps(6400, steps, config)
    assert (steps, warmup) == (3200, 12_288)
    assert learning_rate(steps - 1, steps, warmup, config) == pytest.approx(config.lr * 3199 / 12_288)
    meant = replace(config, warmup_counts="steps")
    assert learning_rate(192, steps, warmup_steps(6400, steps, meant), meant) == config.lr


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"lr": 0.0}, "lr: found 0.0, needs more than 0"),
        ({"seeds": (1, 1)}, "seeds: found (1, 1), needs different ones"),
        ({"selection_share": 1.0}, "selection_share: found 1.0, needs a share between"),
        ({"by_task": {"rte": {"epochs": 0}}}, "by_task.rte.epochs: found 0, needs at least 1"),
        ({"by_task": {"rte": {"epoch": 3}}}, "by_task.rte.epoch: no such field, expected one of batch_size"),
        ({"lora": replace(PRESETS["babylm2024_lora"].lora, rank=0)}, "lora: found LoraConfig(rank=0"),  # type: ignore[type-var]
    ],
)
def test_configurations_out_of_bounds_are_refused(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(RecipeError, match=re.escape(told)):
        check_finetune(replace(PRESETS["cuvee"], **changes))
