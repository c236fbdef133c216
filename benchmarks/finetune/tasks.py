"""The tasks: whose files they are read from, how their texts are put together, and what their scorers compute.

Templates and file names are those of the challenge's years. The years' scorers and their READMEs do not always name
the same metric, so a task names both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from string import Formatter

from benchmarks.finetune.config import Layout, Metric
from corpora.errors import RecipeError, suggestion


@dataclass(frozen=True, kw_only=True)
class Split:
    """A file of rows that are reported; `rows`: how many the challenge's own file has, None where we do not know."""

    name: str
    file: str
    rows: int | None = None


@dataclass(frozen=True, kw_only=True)
class Task:
    """A classification task. Templates name fields of a row in braces; labels are whole numbers from 0."""

    name: str
    first: str  # template of the first text
    second: str | None = None  # of the second one; None: there is none
    num_labels: int = 2
    train: Split
    reported: tuple[Split, ...]  # the first of them selects the checkpoint where the preset says so
    scored: Metric = "accuracy"  # what the year's scorer computes
    readme: Metric = "accuracy"  # what the year's README says
    condition: str | None = None  # where rows say a `condition`, only those with this one are scored; None: all

    @property
    def keys(self) -> tuple[str, ...]:
        """The fields that its texts are made of."""
        names = (name for template in (self.first, self.second or "") for _, name, _, _ in Formatter().parse(template))
        return tuple(dict.fromkeys(name for name in names if name))


# first text, second text
_TEXTS: dict[str, tuple[str, str | None]] = {
    "cola": ("{sentence}", None),
    "sst2": ("{sentence}", None),
    "mrpc": ("{sentence1}", "{sentence2}"),
    "qqp": ("{question1}", "{question2}"),
    "mnli": ("{premise}", "{hypothesis}"),
    "mnli-mm": ("{premise}", "{hypothesis}"),
    "qnli": ("{question}", "{sentence}"),
    "rte": ("{sentence1}", "{sentence2}"),
    "boolq": ("{question}", "{passage}"),
    "multirc": ("Question: {question} Answer: {answer}", "{paragraph}"),
    "wsc": ('Does "{span2_text}" refer to "{span1_text}" in this passage?', "{text}"),
}
# the adapters of 2024 had a script of their own
_TEXTS_2024_LORA: dict[str, tuple[str, str | None]] = _TEXTS | {
    "multirc": ("{paragraph}", "{question} {answer}"),
    "wsc": ("{text}", 'Does "{span2_text}" refer to "{span1_text}"?'),
}
_MSGS = (
    "main_verb_control",
    "control_raising_control",
    "syntactic_category_control",
    "lexical_content_the_control",
    "relative_position_control",
    "main_verb_lexical_content_the",
    "main_verb_relative_token_position",
    "syntactic_category_lexical_content_the",
    "syntactic_category_relative_position",
    "control_raising_lexical_content_the",
    "control_raising_relative_token_position",
)
_TRAIN_ROWS_2025 = {"mnli": 10_000, "qqp": 10_000}  # drawn from the whole files of 2024
_VALID_ROWS_2025 = {
    "boolq": 1635,
    "mnli": 4908,
    "mrpc": 204,
    "multirc": 2424,
    "qqp": 20_215,
    "rte": 139,
    "wsc": 52,
}


def tasks_of(layout: Layout) -> dict[str, Task]:
    """Every task of a year's folder, by name."""
    return {task.name: task for task in _LAYOUTS[layout]}


def chosen_tasks(layout: Layout, names: Sequence[str]) -> list[Task]:
    """The named tasks of a year, in the order given; none named: all. Raises RecipeError for one it does not have."""
    known = tasks_of(layout)
    for name in names:
        if name not in known:
            raise RecipeError(
                f"tasks: {name!r} is no task of {layout}, expected one of {', '.join(known)}{suggestion(name, known)}"
            )
    return [known[name] for name in names or known]


def _tasks_2023() -> tuple[Task, ...]:
    """`mnli-mm` is trained again, on the rows of `mnli`, and chosen on its own split; MSGS is scored by MCC."""
    valid = {"mnli": "validation_matched", "mnli-mm": "validation_mismatched"}
    glue = tuple(
        _glue(
            name,
            train=f"{'mnli' if name == 'mnli-mm' else name}.train.json",
            reported=(Split(name=name, file=f"{name.removesuffix('-mm')}.{valid.get(name, 'validation')}.json"),),
            scored="f1" if name in ("mrpc", "qqp") else "accuracy",
            readme="f1_macro" if name in ("mrpc", "qqp") else "accuracy",
        )
        for name in _TEXTS
    )
    return glue + tuple(_msgs(name) for name in _MSGS)


def _tasks_2024(texts: dict[str, tuple[str, str | None]]) -> tuple[Task, ...]:
    """The model trained on `mnli` is reported on both of its splits."""
    metrics: dict[str, Metric] = {"cola": "mcc", "mrpc": "f1", "qqp": "f1"}
    return tuple(
        _glue(
            name,
            texts=texts,
            train=f"{name}.train.jsonl",
            reported=tuple(
                Split(name=split, file=f"{split}.valid.jsonl")
                for split in ((name, "mnli-mm") if name == "mnli" else (name,))
            ),
            scored=metrics.get(name, "accuracy"),
            readme=metrics.get(name, "accuracy"),
        )
        for name in texts
        if name != "mnli-mm"
    )


def _tasks_2025() -> tuple[Task, ...]:
    """The README says F1 for MRPC and QQP; the scorer computes accuracy for all seven."""
    return tuple(
        _glue(
            name,
            train=f"{name}.train.jsonl",
            train_rows=_TRAIN_ROWS_2025.get(name),
            reported=(Split(name=name, file=f"{name}.valid.jsonl", rows=rows),),
            scored="accuracy",
            readme="f1" if name in ("mrpc", "qqp") else "accuracy",
        )
        for name, rows in _VALID_ROWS_2025.items()
    )


def _glue(
    name: str,
    *,
    train: str,
    reported: tuple[Split, ...],
    scored: Metric,
    readme: Metric,
    texts: dict[str, tuple[str, str | None]] = _TEXTS,
    train_rows: int | None = None,
) -> Task:
    first, second = texts[name]
    return Task(
        name=name,
        first=first,
        second=second,
        num_labels=3 if name.startswith("mnli") else 2,
        train=Split(name="train", file=f"glue_filtered/{train}", rows=train_rows),
        reported=tuple(replace(split, file=f"glue_filtered/{split.file}") for split in reported),
        scored=scored,
        readme=readme,
    )


def _msgs(name: str) -> Task:
    """Ambiguous tasks are learned from rows that do not say which feature counts, and scored on those that do."""
    return Task(
        name=name,
        first="{sentence}",
        train=Split(name="train", file=f"msgs_filtered/{name}.train.json"),
        reported=(Split(name=name, file=f"msgs_filtered/{name}.validation.json"),),
        scored="mcc",
        readme="accuracy",
        condition="test",
    )


_LAYOUTS: dict[Layout, tuple[Task, ...]] = {
    "2023": _tasks_2023(),
    "2024": _tasks_2024(_TEXTS),
    "2024_lora": _tasks_2024(_TEXTS_2024_LORA),
    "2025": _tasks_2025(),
}
