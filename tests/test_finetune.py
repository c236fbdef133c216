"""Candidates are fine-tuned where they may be read, and chosen without the reported labels.

Models are random and tiny, files generated in the official layout: whether a text says `cold` is learned in a second.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.finetune.classifier import Classifier, classified_positions
from benchmarks.finetune.config import PRESETS, FinetuneConfig, LoraConfig
from benchmarks.finetune.loop import Fit, LabelledRows, fit, micro_batches, predict
from benchmarks.finetune.metrics import Sureness, median_interval
from benchmarks.finetune.results import Summary, TaskResult
from benchmarks.finetune.run import PREDICTIONS, finetune, kept_out
from benchmarks.finetune.subject import Subject, read_subject
from corpora.batch import PADDING_SEGMENT, Objective
from corpora.config import TokenizerConfig
from corpora.errors import InputRefused, RecipeError
from corpora.storage import new_folder, read_json
from corpora.token_ids import TokenIds
from corpora.tokenizer import train_bpe, write_tokenizer
from students.pretrained import Pretrained
from students.registry import build_model
from students.run_folder import save_model

WORDS = ["<pad>", "<s>", "</s>", "<mask>", "cold", "warm", *"the a small old one cat dog bird is it".split()]
KINDS: list[tuple[str, Objective]] = [("llama", "causal"), ("elc_bert", "masked")]
# as the preset, but as fast as a toy is
QUICK: dict[str, Any] = {"lr": 5e-3, "batch_size": 16, "epochs": 4, "max_length": 24, "by_task": {}}
OURS = replace(PRESETS["cuvee"], **QUICK)
YEAR = replace(PRESETS["babylm2025"], **QUICK)


def tokenizer_json() -> str:
    tokenizer = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    return tokenizer.to_str()


def subject(architecture: str, objective: Objective, **changes: Any) -> Subject:
    config = tiny.model_config(architecture, **changes)
    model = build_model(config, vocab_size=len(WORDS), token_ids=TokenIds(), seed=0).eval()
    return Subject(name=architecture, model=model, objective=objective, tokenizer_json=tokenizer_json(), begin_id=1)


def rows(number: int, seed: int, *, keys: tuple[str, str] = ("question", "passage")) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    found = []
    for _ in range(number):
        label = draw.randrange(2)
        words = draw.choices(WORDS[6:], k=draw.randint(2, 7))
        words.insert(draw.randrange(len(words) + 1), "cold" if label else "warm")
        found.append({keys[0]: f"is {draw.choice(WORDS[6:])}", keys[1]: " ".join(words), "label": label})
    return found


def write(root: Path, name: str, lines: list[dict[str, Any]]) -> None:
    path = root / "glue_filtered" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")


def toy_folder(tmp_path: Path) -> Path:
    """A year's folder with one task."""
    write(tmp_path / "data", "boolq.train.jsonl", rows(160, 1))
    write(tmp_path / "data", "boolq.valid.jsonl", rows(60, 2))
    return tmp_path / "data"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return toy_folder(tmp_path)


def tuned(who: Subject, root: Path, folder: Path, config: FinetuneConfig = OURS, **changes: Any) -> TaskResult:
    arguments: dict[str, Any] = {"tasks": ["boolq"], "say": lambda line: None} | changes
    return finetune(who, root, config=config, folder=folder, **arguments)[0]


def predictions(result: TaskResult) -> list[int]:
    return result.runs[0].split("boolq").predictions_N.tolist()


# which output is classified


def test_the_last_real_token_is_the_last_that_is_real() -> None:
    """Lengths 4, 2 and 3: a peer's code answers 2, -1, -1."""
    segments_BT = torch.tensor([[0, 0, 0, 0], [0, 0, PADDING_SEGMENT, PADDING_SEGMENT], [0, 0, 0, PADDING_SEGMENT]])
    assert classified_positions(segments_BT, last=True).tolist() == [3, 1, 2]
    assert classified_positions(segments_BT, last=False).tolist() == [0, 0, 0]
    assert classified_positions(segments_BT.flip(1), last=True).tolist() == [3, 3, 3]  # padding on the left
    assert classified_positions(segments_BT.flip(1), last=False).tolist() == [0, 2, 1]


@pytest.mark.parametrize(("architecture", "objective"), KINDS)
def test_padding_changes_no_logit_and_the_right_end_is_read(architecture: str, objective: Objective) -> None:
    who = subject(architecture, objective)
    classifier = Classifier(who.model, objective, OURS, num_labels=2, seed=1).eval()
    tokens = [(1, 6, 7, 8), (1, 9), (1, 10, 11)]
    together = predict(classifier, tokens, config=OURS, place="toy")
    alone = torch.cat([predict(classifier, [row], config=OURS, place="toy") for row in tokens])
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    last_changed = predict(classifier, [(1, 6, 7, 9), (1, 8), (1, 10, 9)], config=OURS, place="toy")
    assert ((last_changed - together).abs().amax(1) > 1e-4).all()


def test_a_decoder_classified_at_its_first_token_says_one_thing(root: Path, tmp_path: Path) -> None:
    """The way of 2025 gives every decoder whose texts begin alike one answer; its last token knows them all."""
    who = subject("llama", "causal")
    first = tuned(who, root, tmp_path / "first", replace(OURS, position="first", epochs=1))
    assert len(set(predictions(first))) == 1
    split = first.runs[0].split("boolq")
    assert split.scores["mcc"] == 0 and max(split.chance, 1 - split.chance) >= split.scores["accuracy"]
    assert "  the first token is classified" in "\n".join(first.lines())


# learning


@pytest.mark.parametrize(("architecture", "objective"), KINDS)
def test_decoder_and_encoder_learn_the_toy(root: Path, tmp_path: Path, architecture: str, objective: Objective) -> None:
    said: list[str] = []
    result = tuned(subject(architecture, objective), root, tmp_path / "out", seeds=[1, 2, 3], say=said.append)
    summary = result.summary("boolq", "accuracy")
    assert summary.median >= 0.9 and summary.minimum <= summary.median <= summary.maximum
    assert len(summary.values) == 3
    assert said[0].startswith(f"boolq: accuracy {summary} as the scorer computes it, accuracy {summary} as the README")
    assert "  checkpoint chosen on 16 rows of glue_filtered/boolq.train.jsonl, kept out of training" in said
    assert any("texts stand as <s> A <s> B, cut at 24 tokens" in line for line in said)
    assert any("boolq.valid.jsonl has 60 rows, the challenge's 1635" in line for line in said) and not result.official


def test_all_metrics_and_predictions_are_written(root: Path, tmp_path: Path) -> None:
    result = tuned(subject("elc_bert", "masked"), root, tmp_path / "out", replace(OURS, epochs=2), seeds=[5])
    folder = tmp_path / "out" / "boolq" / "seed_5"
    stored = read_json(folder / PREDICTIONS)
    expected = [{"id": f"boolq_{number}", "pred": label} for number, label in enumerate(predictions(result))]
    assert stored == {"boolq": {"predictions": expected}} and len(expected) == 60
    told = read_json(folder / "result.json")
    assert set(told["scores"]["boolq"]) == {"accuracy", "f1", "f1_macro", "mcc"}
    labels = [row["label"] for row in rows(60, 2)]
    right = np.mean([label == each["pred"] for label, each in zip(labels, expected, strict=True)])
    assert told["scores"]["boolq"]["accuracy"] == pytest.approx(right)
    assert told["confidence"] == 0.95 and set(told["intervals"]["boolq"]) == set(told["scores"]["boolq"])
    # of a seed it is the interval that is printed where it is the only one
    assert told["intervals"]["boolq"]["accuracy"] == list(result.interval("boolq", "accuracy"))
    for metric, (low, high) in told["intervals"]["boolq"].items():
        assert low <= told["scores"]["boolq"][metric] <= high
    assert told["selected_on"] == "carved" and told["selecting_rows"] == 16 and told["steps"] == 2 * 9


def test_medians_of_seeds() -> None:
    summary = Summary((0.5, 0.9, 0.6, 0.8))
    assert (summary.median, summary.minimum, summary.maximum) == (pytest.approx(0.7), 0.5, 0.9)
    assert str(summary) == "0.7000 [0.5000, 0.9000]" and str(Summary((0.5,))) == "0.5000"


def test_the_interval_of_a_median_resamples_rows_in_all_seeds_alike() -> None:
    """Accuracy of one seed: the binomial interval. Three equal seeds say no more than one, and three that err on other
    rows, whose median is steadier, say more."""
    labels, sure = np.ones(400, np.int64), Sureness(resamples=2_000)
    wrong = np.arange(400) < 80
    one = median_interval(labels, np.stack([~wrong]).astype(np.int64), "accuracy", num_labels=2, sure=sure)
    half = 1.96 * (0.8 * 0.2 / 400) ** 0.5
    assert one == pytest.approx((0.8 - half, 0.8 + half), abs=0.006)
    alike = median_interval(labels, np.stack([~wrong] * 3).astype(np.int64), "accuracy", num_labels=2, sure=sure)
    assert alike == pytest.approx(one, abs=0.006)
    apart = np.stack([~np.roll(wrong, 100 * seed) for seed in range(3)]).astype(np.int64)
    low, high = median_interval(labels, apart, "accuracy", num_labels=2, sure=sure)
    assert high - low < 0.9 * (one.high - one.low)
    mixed = np.arange(400) % 2
    perfect = median_interval(mixed, mixed[None], "mcc", num_labels=2, sure=sure)
    assert perfect == (1.0, 1.0)


def test_msgs_is_scored_on_some_rows_and_predicted_on_all(tmp_path: Path) -> None:
    """The control rows, a third here, are in the submission and in no score; they say the contrary of what trains."""
    name, folder = "main_verb_control", tmp_path / "data" / "msgs_filtered"
    lines = [{"sentence": row["passage"], "label": row["label"]} for row in rows(45, 6)]
    for number, line in enumerate(lines):
        line |= {"condition": "test" if number % 3 else "control"}
    folder.mkdir(parents=True)
    for split, turned in (("train", "none"), ("validation", "control")):
        found = [line | {"label": line["label"] ^ (line["condition"] == turned)} for line in lines]
        (folder / f"{name}.{split}.json").write_text("".join(json.dumps(line) + "\n" for line in found))
    year = replace(PRESETS["babylm2023"], **QUICK | {"epochs": 12})
    result = tuned(subject("elc_bert", "masked"), tmp_path / "data", tmp_path / "out", year, tasks=[name])
    split = result.runs[0].split(name)
    assert len(split.submission()["predictions"]) == 45 and len(split.correct_N) == 30
    assert split.scores["accuracy"] == split.correct_N.mean() > 0.9  # with the control rows, below 0.7
    low, high = result.interval(name, "mcc")
    assert low <= split.scores["mcc"] <= high
    assert result.lines()[1].startswith(f"  95% interval over rows: mcc [{low:.4f}, {high:.4f}], accuracy [")
    assert result.lines()[0].startswith(f"{name}: mcc {split.scores['mcc']:.4f} as the scorer computes it, accuracy ")


def test_one_training_on_mnli_is_reported_on_both_splits(tmp_path: Path) -> None:
    keys = ("hypothesis", "premise")
    for name, number in (("mnli.train", 40), ("mnli.valid", 12), ("mnli-mm.valid", 9)):
        write(tmp_path / "data", f"{name}.jsonl", rows(number, number, keys=keys))
    year = replace(PRESETS["babylm2024"], **QUICK | {"epochs": 1, "by_task": PRESETS["babylm2024"].by_task})
    result = tuned(subject("llama", "causal"), tmp_path / "data", tmp_path / "out", year, tasks=["mnli"])
    sizes = {split.name: len(split.predictions_N) for split in result.runs[0].splits}
    assert sizes == {"mnli": 12, "mnli-mm": 9} and "f1" not in result.runs[0].split("mnli").scores
    stored = read_json(tmp_path / "out/mnli/seed_12" / PREDICTIONS)
    assert [stored[name]["predictions"][-1]["id"] for name in sizes] == ["mnli_11", "mnli-mm_8"]
    with pytest.raises(RecipeError, match="select_by: found f1 for mnli, whose labels are 3"):
        tuned(subject("llama", "causal"), tmp_path / "data", tmp_path / "x", replace(year, by_task={}), tasks=["mnli"])


# what chooses the checkpoint


def flipped(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [line | {"label": 1 - line["label"]} for line in lines]


def test_the_reported_labels_choose_nothing(root: Path, tmp_path: Path) -> None:
    """With every reported label turned round, predictions stay, and accuracy becomes one minus what it was."""
    who = subject("elc_bert", "masked")
    slow = replace(OURS, lr=2e-3)  # so that accuracy rises from epoch to epoch
    before = tuned(who, root, tmp_path / "before", slow, seeds=[1])
    write(root, "boolq.valid.jsonl", flipped(rows(60, 2)))
    after = tuned(who, root, tmp_path / "after", slow, seeds=[1])
    assert predictions(before) == predictions(after)
    assert before.runs[0].chosen_step == after.runs[0].chosen_step and not after.selected_on_reported
    accuracies = [result.summary("boolq", "accuracy").median for result in (before, after)]
    assert sum(accuracies) == pytest.approx(1) and accuracies[0] > 0.9


def test_the_years_preset_chooses_by_the_reported_labels_and_says_so(root: Path, tmp_path: Path) -> None:
    who = subject("elc_bert", "masked")
    slow = replace(YEAR, lr=1e-3, epochs=3)  # so that accuracy rises from epoch to epoch
    before = tuned(who, root, tmp_path / "before", slow)
    write(root, "boolq.valid.jsonl", flipped(rows(60, 2)))
    after = tuned(who, root, tmp_path / "after", slow)
    assert before.runs[0].chosen_step > after.runs[0].chosen_step  # the worst epoch is now the best
    assert predictions(before) != predictions(after) and after.selected_on_reported
    assert any("boolq.valid.jsonl, which are reported (babylm2025's way)" in line for line in after.lines())
    assert read_json(tmp_path / "after/boolq/seed_42/result.json")["selected_on"] == "reported"


def test_rows_kept_out_are_the_same_for_every_seed() -> None:
    chosen = kept_out(160, "boolq", OURS)
    assert len(chosen) == 16 and chosen == sorted(set(chosen)) == kept_out(160, "boolq", replace(OURS, seeds=(9,)))
    assert chosen != kept_out(160, "rte", OURS) != kept_out(160, "boolq", replace(OURS, selection_seed=1))
    assert len(kept_out(2, "boolq", OURS)) == 1 and len(kept_out(2, "boolq", replace(OURS, selection_share=0.99))) == 1


def test_rows_kept_out_do_not_train(root: Path, tmp_path: Path) -> None:
    """Their labels may choose another epoch, but no step's loss depends on them."""
    who, config = subject("elc_bert", "masked"), replace(OURS, epochs=2)
    tuned(who, root, tmp_path / "before", config, seeds=[1])
    lines = rows(160, 1)
    for number in kept_out(160, "boolq", OURS):
        lines[number]["label"] = 1 - lines[number]["label"]
    write(root, "boolq.train.jsonl", lines)
    tuned(who, root, tmp_path / "after", config, seeds=[1])
    before, after = (read_json(tmp_path / name / "boolq/seed_1/result.json") for name in ("before", "after"))
    assert before["losses"] == after["losses"] and before["looks"] != after["looks"]


def toy(number: int = 48) -> LabelledRows:
    lines = rows(number, 3)
    tokens = [(1, *(WORDS.index(word) for word in line["passage"].split())) for line in lines]
    return LabelledRows(tokens, np.array([line["label"] for line in lines]))


def trained(
    config: FinetuneConfig, who: Subject | None = None, *, selection: LabelledRows | None = None
) -> tuple[Classifier, Fit]:
    who = who or subject("elc_bert", "masked")
    classifier = Classifier(deepcopy(who.model), who.objective, config, num_labels=2, seed=1)
    done = fit(classifier, toy(), selection=selection or toy(20), config=config, seed=1, place="toy")
    return classifier, done


def test_patience_ends_a_run_that_gains_nothing() -> None:
    _, done = trained(replace(OURS, lr=1e-12, epochs=9, patience=2))
    assert done.steps == 3 * 3 and done.chosen_step == 3  # the first look gains, two do not
    _, done = trained(replace(OURS, lr=1e-12, epochs=9, patience=None))
    assert done.steps == 9 * 3 and len(done.looks) == 9


def test_a_gain_too_small_for_patience_is_kept_all_the_same() -> None:
    config = replace(OURS, lr=3e-5, epochs=9, patience=2, min_gain=0.1, select_by="loss")
    _, done = trained(config)
    values = [value for _, value in done.looks]
    assert len(values) == 3 and values == sorted(values, reverse=True) and done.chosen_step == 9


def test_without_a_look_the_last_weights_stay() -> None:
    _, done = trained(replace(OURS, evaluate_every=200))
    assert done.looks == () and done.chosen_step == done.steps == 12


def test_the_chosen_weights_are_put_back() -> None:
    config = replace(OURS, select_by="loss", epochs=3)
    contrary = LabelledRows(toy(20).tokens, 1 - toy(20).labels_N)  # so that learning makes it worse
    classifier, done = trained(config, selection=contrary)
    assert done.chosen_step == 3 < done.steps == 9
    logits = predict(classifier, contrary.tokens, config=config, place="toy")
    again = torch.nn.functional.cross_entropy(logits, torch.from_numpy(contrary.labels_N)).item()
    assert again == pytest.approx(dict(done.looks)[3], abs=1e-6) and again < dict(done.looks)[9]


# adapters, precision, memory


def test_adapters_and_head_alone_are_trained() -> None:
    who = subject("llama", "causal")
    config = replace(OURS, lora=LoraConfig(dropout=0.0), epochs=2)
    classifier, _ = trained(config, who)
    assert all("lora_" in name or name.startswith("head.") for name in classifier.trained)
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name in classifier.trained if "lora_" in name}
    assert adapted == {"q_proj", "v_proj"}  # peft's own for a llama
    before = who.model.network.state_dict()
    after = classifier.model.network.state_dict()
    assert all(
        torch.equal(before[name.replace(".base_layer", "")], after[name]) for name in after if "lora_" not in name
    )
    assert any(after[name].abs().max() > 0 for name in after if "lora_B" in name)


def test_adapters_of_architectures_that_peft_does_not_know() -> None:
    who = subject("elc_bert", "masked")
    classifier = Classifier(who.model, "masked", replace(OURS, lora=LoraConfig()), num_labels=2, seed=1)
    adapted = {name.split(".lora_")[0].rpartition(".")[2] for name in classifier.trained if "lora_" in name}
    assert adapted == {"in_proj_qk", "in_proj_v", "out_proj", "in_proj", "dense"}  # all linear ones but the decoder
    with pytest.raises(InputRefused, match=r"lora.targets: found \['nothing'\], expected layers of a elc_bert"):
        Classifier(
            subject("elc_bert", "masked").model,
            "masked",
            replace(OURS, lora=LoraConfig(targets=["nothing"])),
            num_labels=2,
            seed=1,
        )


def test_a_model_of_transformers_is_tuned_and_adapted_too() -> None:
    config = GPT2Config(vocab_size=len(WORDS), n_embd=16, n_layer=1, n_head=2, n_positions=32, bos_token_id=1)
    torch.manual_seed(0)
    model = Pretrained(GPT2LMHeadModel(config).eval(), "causal", "gpt2").eval()
    who = Subject(name="gpt2", model=model, objective="causal", tokenizer_json=tokenizer_json(), begin_id=1)
    lora = replace(OURS, lora=LoraConfig(), head="huggingface", epochs=1)
    classifier, _ = trained(lora, who)
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in classifier.trained if "lora_" in name} == {"c_attn"}
    _, done = trained(replace(OURS, epochs=8), who)
    assert done.losses[-1] < 0.5 * done.losses[0]


def test_heads_are_those_of_the_pipelines() -> None:
    sizes: Mapping[tuple[str, str], list[tuple[int, ...]]] = {
        ("gelu", "causal"): [(16, 16), (16,), (3, 16), (3,)],
        ("gelu", "masked"): [(16, 16), (16,), (3, 16), (3,)],
        ("huggingface", "causal"): [(3, 16)],
        ("huggingface", "masked"): [(16, 16), (16,), (3, 16), (3,)],
    }
    for (head, objective), expected in sizes.items():
        who = subject(*next(kind for kind in KINDS if kind[1] == objective))
        classifier = Classifier(who.model, who.objective, replace(OURS, head=head), num_labels=3, seed=1)  # type: ignore[arg-type]
        assert [tuple(weight.shape) for weight in classifier.head.parameters()] == expected
        activations = {type(layer).__name__ for layer in classifier.head.modules()} & {"GELU", "Tanh"}
        assert activations == ({"GELU"} if head == "gelu" else {"Tanh"} if objective == "masked" else set())


def test_micro_batches_are_bounded_and_complete() -> None:
    lengths = [3, 9, 1, 9, 4, 30]
    parts = list(micro_batches(lengths, 20))
    assert parts == [[5], [1, 3], [4, 0, 2]]  # one row is read however long it is
    assert sorted(row for part in parts for row in part) == list(range(6))


def test_micro_batches_change_nothing_but_rounding() -> None:
    losses = []
    for tokens in (16_384, 20):
        _, done = trained(replace(OURS, micro_batch_tokens=tokens, head_dropout=0.0, epochs=1))
        losses.append(done.losses)
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_bf16_is_near_fp32() -> None:
    config = replace(OURS, epochs=1, head_dropout=0.0)
    losses = [trained(replace(config, precision=precision))[1].losses for precision in ("fp32", "bf16")]
    assert losses[0] != losses[1] and losses[0] == pytest.approx(losses[1], abs=0.05)


# the same again


def test_one_seed_gives_one_result(root: Path, tmp_path: Path) -> None:
    who = subject("llama", "causal", attention_dropout=0.1)
    state = torch.get_rng_state()
    for name in ("one", "two"):
        tuned(who, root, tmp_path / name, replace(OURS, epochs=1), seeds=[1, 2])
        torch.rand(3)  # what others draw is nothing to it
    torch.set_rng_state(state)
    for file in (PREDICTIONS, "result.json"):
        one, two, other = (
            (tmp_path / place / file).read_bytes()
            for place in ("one/boolq/seed_1", "two/boolq/seed_1", "one/boolq/seed_2")
        )
        assert one == two != other


def test_torchs_generator_is_left_as_it_was() -> None:
    state = torch.get_rng_state()
    trained(replace(OURS, epochs=1, lora=LoraConfig()))
    assert torch.equal(state, torch.get_rng_state())


def test_the_subject_is_left_as_it_was(root: Path, tmp_path: Path) -> None:
    who = subject("llama", "causal")
    before = deepcopy(who.model.network.state_dict())
    tuned(who, root, tmp_path / "out", replace(OURS, epochs=1), seeds=[1])
    assert all(torch.equal(before[name], weight) for name, weight in who.model.network.state_dict().items())


# run folders


@pytest.mark.parametrize(("architecture", "objective"), KINDS)
def test_a_run_folder_is_a_subject(root: Path, tmp_path: Path, architecture: str, objective: Objective) -> None:
    tokenizer = train_bpe([line["passage"] for line in rows(40, 4)], TokenizerConfig(vocab_size=300))
    model = build_model(
        tiny.model_config(architecture), vocab_size=tokenizer.vocab_size, token_ids=TokenIds(), seed=0
    ).eval()
    with new_folder(tmp_path / "run", kind="run", fingerprint={}) as writer:
        save_model(writer, model)
        write_tokenizer(writer, tokenizer)
    who = read_subject(tmp_path / "run")
    assert (who.name, who.objective, who.begin_id) == ("run", objective, TokenIds().begin)
    assert who.fingerprint == read_subject(tmp_path / "run").fingerprint
    assert read_subject(tmp_path / "run", "causal").objective == "causal"  # an encoder that was trained from the left
    result = tuned(who, root, tmp_path / "out", replace(OURS, epochs=1), seeds=[1])
    assert result.frame == "<s> A <s> B" and len(predictions(result)) == 60
