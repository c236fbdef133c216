"""A folder is scored on every benchmark of the official layout, once; strangers are read and never run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_choice_files import LINES, write
from test_end_to_end import SMOKE, cuvee
from tokenizers import Tokenizer
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from benchmarks.protocol import PROTOCOLS
from benchmarks.request import Request
from benchmarks.sandbox import why_no_sandbox
from benchmarks.score_store import ScoreStore
from benchmarks.strangers.sandboxed import SandboxedScorer
from corpora.errors import InputRefused
from distill import candidates

WORDS = ("cat", "dog", "road", "stone", "cup", "pen", "rain", "box")
READING = ["item", "word", "prev_item", "prev_word", "Subtlex_log10", "length", "context_length", "prev_length"]
TIMES = ["RTfirstfix", "RTfirstpass", "RTgopast", "RTrightbound", "self_paced_reading_time"]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained teacher of each view, with checkpoints by words."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    overrides = ["teachers.llama.train.word_snapshots=[500, 1000]", "students={}", "teachers.gptj=null"]
    assert cuvee("train", SMOKE, f"run_dir={folder}", *overrides[:1])[0] == 0
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small folder of data in the layout of the challenge."""
    root = tmp_path_factory.mktemp("data")
    full = root / "evaluation_data" / "full_eval"
    for name in ("blimp_filtered", "supplement_filtered", "ewok_filtered", "entity_tracking", "comps"):
        line = LINES[name]
        lines = [_changed(line, word) for word in WORDS]
        write(full / name / ("comps_base.jsonl" if name == "comps" else "regular.jsonl"), *lines)
    for task in ("wug_adj_nominalization", "wug_past_tense"):
        items = [{"sentences": f"It is {word}ity.\tIt is {word}ness.", "ratio": n / 8} for n, word in enumerate(WORDS)]
        write(full / task / f"{task}.jsonl", *items)
    rows = [",".join(READING + TIMES)]
    generator = torch.Generator().manual_seed(0)
    for number in range(60):
        numbers = [f"{value:.3f}" for value in torch.rand(4 + len(TIMES), generator=generator).tolist()]
        word, before = WORDS[number % 8], WORDS[(number + 3) % 8]
        rows.append(",".join([f"the {before}", word, "the", before, *numbers]))
    (full / "reading").mkdir(parents=True)
    (full / "reading" / "reading_data.csv").write_text("\n".join(rows) + "\n")
    return root


def _changed(value: Any, word: str) -> Any:
    """A line with a word put into each of its texts but names."""
    named = {"UID", "field", "linguistics_term", "Domain", "ContextType", "ContextDiff", "TargetDiff"}
    if isinstance(value, dict):
        return {key: each if key in named else _changed(each, word) for key, each in value.items()}
    if isinstance(value, list):
        return [_changed(each, f"{word}{number}") for number, each in enumerate(value)]
    return f"{value[:-1]} {word}{value[-1]}" if isinstance(value, str) and value.endswith(".") else value


def scores(out: Path, name: str) -> dict[tuple[str, str], dict[str, Any]]:
    """What a report says, by benchmark and measure."""
    (evaluation,) = json.loads((out / name / "scores.json").read_text())
    return {(score["title"], score["metric"]): score for score in evaluation["scores"]}


def test_every_benchmark_of_the_layout_is_scored_once(
    run_dir: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, out = run_dir / "teachers" / "llama", tmp_path / "out"
    command = ["score", str(folder), "--data", str(data), "--out", str(out), "--canaries"]
    assert cuvee(*command)[0] == 0
    found = scores(out, "llama-causal-cuvee")
    assert {title for title, _ in found} == {
        "BLiMP (filtered)",
        "BLiMP supplement",
        "EWoK",
        "Entity tracking",
        "COMPS",
        "WUG, adjectives",
        "WUG, past tense",
        "Eye tracking",
        "Self-paced reading",
    }
    entity = found["Entity tracking", "accuracy"]
    assert entity["chance"] == pytest.approx(1 / 3) and entity["items"] == len(WORDS)
    low, high = entity["interval"]
    assert low <= entity["value"] <= high
    (evaluation,) = json.loads((out / "llama-causal-cuvee" / "scores.json").read_text())
    assert len(evaluation["canaries"]) == 25 and all(canary["lives"] for canary in evaluation["canaries"])
    assert any("begin token" in line for line in evaluation["protocol"])
    report = (out / "llama-causal-cuvee" / "scores.md").read_text()
    assert "| Entity tracking | accuracy % |" in report and "## Canaries" in report

    added: list[int] = []
    monkeypatch.setattr(ScoreStore, "add", lambda self, scores: added.append(len(scores)))
    before = {path: path.read_bytes() for path in (out / "llama-causal-cuvee").rglob("*.json")}
    assert cuvee(*command)[0] == 0
    assert not added and all(path.read_bytes() == content for path, content in before.items())


def test_modes_protocols_and_parts_of_the_layout(run_dir: Path, data: Path, tmp_path: Path) -> None:
    folder, out = run_dir / "teachers" / "elc", tmp_path / "out"
    base = ["score", str(folder), "--data", str(data), "--out", str(out), "--tasks", "comps,wug_past"]
    for options in ([], ["--backend", "mntp"], ["--backend", "hybrid", "--items", "5"], ["--pll", "within_word_l2r"]):
        assert cuvee(*base, *options)[0] == 0
    assert cuvee(*base, "--protocol", "babylm2024")[0] == 0
    assert {path.name for path in out.glob("elc-*")} == {
        "elc-masked-cuvee",
        "elc-mntp-cuvee",
        "elc-hybrid-cuvee",
        "elc-masked-babylm2024",
    }
    assert {title for title, _ in scores(out, "elc-mntp-cuvee")} == {"COMPS", "WUG, past tense"}
    assert scores(out, "elc-hybrid-cuvee")["COMPS", "accuracy"]["items"] == 5
    assert cuvee(*base, "--protocol", "babylm2052")[0] == 2
    code, lines = cuvee("score", str(folder), "--data", str(tmp_path))
    assert code == 3 and "holds no benchmark" in lines[0]
    code, lines = cuvee("score", str(folder), "--data", str(data), "--tasks", "compz")
    assert code == 2 and "did you mean 'comps'?" in lines[0]


def test_checkpoints_by_words_are_scored_in_their_order(
    run_dir: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded, load = [], candidates.load_model
    monkeypatch.setattr(candidates, "load_model", lambda folder: loaded.append(folder.name) or load(folder))
    out = tmp_path / "out"
    command = ["score", str(run_dir / "teachers" / "llama"), "--data", str(data), "--out", str(out), "--checkpoints"]
    assert cuvee(*command, "--tasks", "comps,ewok_filtered,reading")[0] == 0
    assert loaded == ["chck_500", "chck_1000", "llama"], "one load each"
    names = [evaluation["candidate"] for evaluation in json.loads((out / "scores.json").read_text())]
    assert names == ["llama:chck_500", "llama:chck_1000", "llama"]
    code, lines = cuvee("score", str(run_dir / "teachers" / "elc"), "--checkpoints")
    assert code == 3 and "keeps no checkpoints by words; expected snapshots/chck_1M" in lines[0]


def test_systems_are_compared_by_their_verdicts(run_dir: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name in ("llama", "gptj"):
        options = ["--data", str(data), "--tasks", "blimp_filtered,comps", "--out", str(out)]
        assert cuvee("score", str(run_dir / "teachers" / name), *options)[0] == 0
    folders = [str(out / f"{name}-causal-cuvee") for name in ("llama", "gptj")]
    assert cuvee("compare", f"one={folders[0]}", folders[1], "--out", str(tmp_path / "compared"))[0] == 0
    compared = json.loads((tmp_path / "compared" / "compare.json").read_text())
    (pair,) = compared["pairs"]
    assert {pair["a"], pair["b"]} == {"one", "gptj-causal-cuvee"}
    other = ["--data", str(data), "--tasks", "comps", "--out", str(tmp_path / "other")]
    assert cuvee("score", str(run_dir / "teachers" / "gptj"), *other)[0] == 0
    code, lines = cuvee("compare", folders[0], str(tmp_path / "other" / "gptj-causal-cuvee"))
    assert code == 3 and "items" in lines[0]
    under = ["--data", str(data), "--tasks", "blimp_filtered,comps", "--protocol", "lm-eval", "--out", str(out)]
    assert cuvee("score", str(run_dir / "teachers" / "gptj"), *under)[0] == 0
    elsewhere = str(out / "gptj-causal-lm-eval")
    code, lines = cuvee("compare", folders[0], elsewhere)
    assert code == 3 and "scored under lm-eval; expected cuvee" in lines[0]
    code, lines = cuvee("compare", folders[0], f"{folders[1]},{elsewhere}")
    assert code == 3 and "expected one protocol for all seeds of a system" in lines[0]
    code, lines = cuvee("compare", folders[0], str(tmp_path))
    assert code == 3 and "holds no verdicts; expected one that `cuvee score CANDIDATE --out OUT` made" in lines[0]


def stranger(
    folder: Path, run_dir: Path, spoil: Callable[[dict[str, torch.Tensor]], None] = lambda state: None
) -> Path:
    """An OPT of somebody else, as transformers saves it."""
    tokenizer = Tokenizer.from_file(str(run_dir / "tokenizer" / "tokenizer.json"))
    size = tokenizer.get_vocab_size()
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "word_embed_proj_dim": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    ids = {"vocab_size": size, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    model = OPTForCausalLM(OPTConfig(ffn_dim=32, max_position_embeddings=64, **ids, **sizes))
    model.save_pretrained(folder)
    special = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "mask_token": "<mask>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    state = load_file(folder / "model.safetensors")
    spoil(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def test_a_strangers_folder_is_scored_and_nothing_of_it_is_run(run_dir: Path, data: Path, tmp_path: Path) -> None:
    folder = stranger(tmp_path / "guest", run_dir)
    options = ["--data", str(data), "--tasks", "ewok_filtered", "--out", str(tmp_path / "out")]
    assert cuvee("score", str(folder), *options)[0] == 0
    assert scores(tmp_path / "out", "guest-causal-cuvee")["EWoK", "accuracy"]["items"] == len(WORDS)
    code, lines = cuvee("score", str(folder), *options, "--backend", "masked")
    assert code == 2 and "is a causal model" in lines[0]
    (folder / "modeling_guest.py").write_text("raise SystemExit(77)\n")
    code, lines = cuvee("score", str(folder), *options)
    assert code == 3 and "modeling_guest.py" in lines[0]


def test_bf16_says_how_far_its_verdicts_agree(
    run_dir: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr("builtins.print", lambda *given, **named: said.append(" ".join(map(str, given))))
    options = ["--data", str(data), "--tasks", "comps", "--out", str(tmp_path / "out"), "--precision", "bf16"]
    assert cuvee("score", str(run_dir / "teachers" / "llama"), *options)[0] == 0
    (line,) = (line for line in said if line.startswith("bf16 against fp32: "))
    assert f"of {len(WORDS)} verdicts agree" in line


CODE = """
import os, socket
from transformers import OPTConfig, OPTForCausalLM
class GuestConfig(OPTConfig):
    model_type = "guest"
class Guest(OPTForCausalLM):
    config_class = GuestConfig
    def __init__(self, config):
        super().__init__(config)
        print("what it prints is no answer")
        try:
            socket.create_connection(("127.0.0.1", 9), timeout=1)
        except OSError:
            pass
        try:
            open(os.path.join({folder!r}, "written"), "w").write("x")
        except OSError:
            pass
"""


@pytest.mark.skipif(why_no_sandbox() is not None, reason=f"no sandbox here: {why_no_sandbox()}")
def test_a_strangers_own_code_answers_from_the_sandbox_alone(run_dir: Path, data: Path, tmp_path: Path) -> None:
    folder = stranger(tmp_path / "guest", run_dir)
    options = ["--data", str(data), "--tasks", "comps", "--backend", "causal"]
    assert cuvee("score", str(folder), *options, "--out", str(tmp_path / "plain"))[0] == 0
    (folder / "guest.py").write_text(CODE.replace("{folder!r}", repr(str(folder))))
    described = json.loads((folder / "config.json").read_text()) | {"model_type": "guest", "architectures": ["Guest"]}
    described["auto_map"] = {"AutoConfig": "guest.GuestConfig", "AutoModelForCausalLM": "guest.Guest"}
    (folder / "config.json").write_text(json.dumps(described))
    assert cuvee("score", str(folder), *options)[0] == 3
    code, lines = cuvee("score", str(folder), *options, "--allow-code", "--out", str(tmp_path / "code"))
    assert code == 0, lines
    assert not (folder / "written").exists()
    plain, sandboxed = (scores(tmp_path / out, "guest-causal-cuvee") for out in ("plain", "code"))
    assert plain["COMPS", "accuracy"]["value"] == sandboxed["COMPS", "accuracy"]["value"]
    code, lines = cuvee("score", str(folder), *options[:-2], "--allow-code")
    assert code == 2 and "say --backend" in lines[0]
    code, lines = cuvee("score", str(folder), *options, "--allow-code", "--minutes", "0.01")
    assert code == 3 and "sandbox" in lines[0]


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ({"scores": [-1.0]}, "1 scores"),
        ({}, "NoneType"),
        ({"scores": [-1, True]}, "true"),
        ({"scores": [-1, 2.0]}, "2.0"),
    ],
)
def test_what_the_code_answers_is_checked(
    answer: dict[str, Any], found: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.strangers.sandboxed.run_sandboxed_json", lambda *given, **named: answer)
    scorer = SandboxedScorer("guest", tmp_path, "causal", PROTOCOLS["cuvee"], 99, 1.0, 1)
    with pytest.raises(InputRefused, match="its code answered") as refused:
        scorer.scores([Request("", "a"), Request("", "b")])
    assert found.lower() in str(refused.value).lower()
    monkeypatch.setattr(
        "benchmarks.strangers.sandboxed.run_sandboxed_json", lambda *given, **named: {"scores": [-2, None]}
    )
    assert str(scorer.scores([Request("", "a"), Request("", "b")]).tolist()) == "[-2.0, nan]"


def test_a_model_that_answers_nan_is_invalid(run_dir: Path, data: Path, tmp_path: Path) -> None:
    def spoil(state: dict[str, torch.Tensor]) -> None:
        state["model.decoder.final_layer_norm.weight"].fill_(3e38)
        state["model.decoder.final_layer_norm.bias"].fill_(3e38)

    folder = stranger(tmp_path / "guest", run_dir, spoil)
    code, lines = cuvee("score", str(folder), "--data", str(data), "--tasks", "blimp_filtered")
    assert code == 6 and "it is invalid" in lines[0]


def test_own_pairs_with_names_of_columns(run_dir: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_text("yes,no,kind\n" + "".join(f"the {word} sees,the {word} see,a\n" for word in WORDS))
    base = ["score", str(run_dir / "teachers" / "llama"), "--pairs", str(path)]
    assert cuvee(*base, "--good", "yes", "--bad", "no", "--group", "kind", "--out", str(tmp_path / "out"))[0] == 0
    assert scores(tmp_path / "out", "llama-causal-cuvee")["mine", "accuracy"]["items"] == len(WORDS)
    code, lines = cuvee(*base, "--good", "yes", "--bad", "nope")
    assert code == 3 and "no column 'nope'; expected one of yes, no, kind" in lines[0]


def test_a_candidate_is_fine_tuned_and_found_again(run_dir: Path, tmp_path: Path) -> None:
    glue = tmp_path / "evaluation_data" / "full_eval" / "glue_filtered"
    for split, number in (("train", 40), ("valid", 16)):
        rows = [{"sentence1": f"the {w}", "sentence2": "it is", "label": n % 2} for n, w in enumerate(WORDS * 5)]
        write(glue / f"rte.{split}.jsonl", *rows[:number])
    options = ["--data", str(tmp_path), "--out", str(tmp_path / "out"), "--tasks", "rte", "--seeds", "1,2"]
    for model in ("llama", "elc"):
        assert cuvee("finetune", str(run_dir / "teachers" / model), *options)[0] == 0
        found = list((tmp_path / "out" / f"{model}-cuvee" / "rte").glob("seed_*/predictions.json"))
        assert len(found) == 2
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.json")}
    assert cuvee("finetune", str(run_dir / "teachers" / "elc"), *options)[0] == 0
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.json")}
    code, lines = cuvee("finetune", str(run_dir / "teachers" / "elc"), *options, "--preset", "babylm2052")
    assert code == 2 and "expected one of cuvee, babylm2023" in lines[0]
    assert cuvee("finetune", str(run_dir / "teachers" / "elc"), *options, "--seeds", "one")[0] == 2
