"""A stranger's folder is taken whole or refused in one line, and none of its code runs."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import hostile
import pytest
import test_pretrained
import tiny
import torch
from test_end_to_end import cuvee
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM

from benchmarks.scoring_tokenizer import own_tokenizer
from benchmarks.strangers.families import FAMILIES
from benchmarks.strangers.files import folder_digest
from benchmarks.strangers.load import load_stranger
from benchmarks.strangers.sandboxed import _numbers
from benchmarks.strangers.tokenizer_check import built_tokenizer, rebuilt
from corpora.config import TokenizerConfig
from corpora.errors import Damaged, InputRefused
from corpora.storage import FolderWriter, new_folder
from corpora.token_ids import TokenIds
from corpora.tokenizer import TextTokenizer, train_bpe, write_tokenizer
from distill import candidates
from students.pretrained import Pretrained
from students.registry import ARCHITECTURES, build_model
from students.run_folder import save_model

SMALL, ROWS = test_pretrained.SMALL, test_pretrained.ROWS
ONE_LINE = re.compile(r"[^\n\x1b]+: [^\n\x1b]+; expected [^\n\x1b]+; [^\n\x1b]+")
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", test_pretrained.GPT2),
    "gptj": ("GPTJ", {"n_layer": 2, "n_embd": 16, "n_head": 2, "n_positions": 64, "rotary_dim": 4}),
    "gpt_neox": test_pretrained.CAUSAL["gpt_neox"],
    "llama": ("Llama", {**SMALL, **ROWS}),
    "llama-biased": test_pretrained.CAUSAL["llama"],
    "opt": ("OPT", {key: value for key, value in test_pretrained.CAUSAL["opt"][1].items() if key[:5] != "inter"}),
    "bert": test_pretrained.MASKED["bert"],
    "roberta": test_pretrained.MASKED["roberta"],
    "distilbert": test_pretrained.MASKED["distilbert"],
    "albert": test_pretrained.MASKED["albert"],
    "electra": ("Electra", {**SMALL, **ROWS, "embedding_size": 8}),
    "deberta-v2": (
        "DebertaV2",
        {
            **SMALL,
            **ROWS,
            "relative_attention": True,
            "position_buckets": 8,
            "norm_rel_ebd": "layer_norm",
            "share_att_key": True,
            "pos_att_type": ["p2c", "c2p"],
        },
    ),
}
CAUSAL = {kind for kind in KINDS if FAMILIES[kind.partition("-biased")[0]].objective == "causal"}


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return train_bpe(["the cat sees the dog and 12 geese."] * 5, TokenizerConfig(vocab_size=300))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, tokenizer: TextTokenizer) -> dict[str, Path]:
    """A folder of each family, as transformers saves it; nobody changes them."""
    made = {}
    with pytest.MonkeyPatch.context() as patch:
        for kind, (name, sizes) in KINDS.items():
            patch.setitem(test_pretrained.CAUSAL if kind in CAUSAL else test_pretrained.MASKED, kind, (name, sizes))
            made[kind] = tmp_path_factory.mktemp(kind)
            test_pretrained.network(kind, tokenizer.vocab_size).save_pretrained(made[kind])
            write_tokenizer(FolderWriter(made[kind]), tokenizer)
    return made


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: TextTokenizer) -> Path:
    """A run of ours, whose architecture comes with modelling files."""
    folder = tmp_path_factory.mktemp("run")
    config = tiny.model_config("elc_bert")
    with new_folder(folder, kind="run", fingerprint={}) as writer:
        save_model(writer, build_model(config, vocab_size=tokenizer.vocab_size, token_ids=TokenIds(), seed=1))
        write_tokenizer(writer, tokenizer)
    (folder / "checkpoints").mkdir()
    return folder


def copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def ids_of(rows: int = 2) -> torch.Tensor:
    return torch.randint(4, 280, (rows, 12), generator=torch.Generator().manual_seed(3))


@torch.no_grad()
def logits_of(folder: Path, *, causal: bool) -> torch.Tensor:
    loaded, _ = load_stranger(folder)
    return loaded.head().logits(loaded.features(ids_of(), torch.zeros_like(ids_of()), causal))


@pytest.mark.parametrize("kind", KINDS)
def test_a_good_folder_means_what_transformers_makes_of_it(
    folders: dict[str, Path], tokenizer: TextTokenizer, kind: str
) -> None:
    folder = folders[kind]
    loader = AutoModelForCausalLM if kind in CAUSAL else AutoModelForMaskedLM
    with torch.no_grad():
        own = loader.from_pretrained(folder).eval()(ids_of()).logits
    torch.testing.assert_close(logits_of(folder, causal=kind in CAUSAL), own, atol=1e-5, rtol=0)
    model, loaded = load_stranger(folder)
    assert isinstance(model, ARCHITECTURES[kind] if kind in ARCHITECTURES else Pretrained) and not model.training
    sentence = "the cat sees 3 dogs"
    assert loaded.encode([sentence])[0].ids == tokenizer.encode(sentence)
    assert loaded.mask_id == TokenIds().mask


def test_a_run_of_ours_is_taken_with_its_modelling_files(run_folder: Path) -> None:
    assert (run_folder / "modeling_elc_bert.py").exists()
    network = ARCHITECTURES["elc_bert"].network_class.from_pretrained(run_folder).eval()
    with torch.no_grad():
        own = network(ids_of()).logits
    torch.testing.assert_close(logits_of(run_folder, causal=False), own, atol=1e-5, rtol=0)


def test_a_run_of_ours_whose_weights_have_changed_is_damaged(run_folder: Path, tmp_path: Path) -> None:
    folder = copied(run_folder, tmp_path / "run")
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "model.safetensors").write_bytes(data)
    with pytest.raises(Damaged, match=r"model.safetensors: found .* the manifest expects .*; copy the run again"):
        load_stranger(folder)


def test_halves_are_widened(folders: dict[str, Path], tokenizer: TextTokenizer, tmp_path: Path) -> None:
    network = AutoModelForMaskedLM.from_pretrained(folders["bert"]).bfloat16().eval()
    network.save_pretrained(tmp_path)
    write_tokenizer(FolderWriter(tmp_path), tokenizer)
    with torch.no_grad():
        own = network.float()(ids_of()).logits
    torch.testing.assert_close(logits_of(tmp_path, causal=False), own, atol=1e-5, rtol=0)


def test_buffers_of_older_versions_and_a_second_name_are_known(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(folders["gpt2"], tmp_path / "old")

    def with_buffer(told: dict[str, Any]) -> None:
        begin = hostile.behind(told)[0]
        told["transformer.h.0.attn.bias"] = {"dtype": "U8", "shape": [1, 64], "data_offsets": [begin, begin + 64]}

    hostile.header(with_buffer, data=lambda data: data + bytes(64))(folder)
    assert torch.equal(logits_of(folder, causal=True), logits_of(folders["gpt2"], causal=True))
    told, data = hostile.split((folder / "model.safetensors").read_bytes())
    begin, end = hostile.first(told)["data_offsets"]
    told["lm_head.weight"] = hostile.first(told) | {"data_offsets": hostile.behind(told)}
    stored = hostile.joined(json.dumps(told).encode(), data + data[begin:end])
    (folder / "model.safetensors").write_bytes(stored)
    assert torch.equal(logits_of(folder, causal=True), logits_of(folders["gpt2"], causal=True))


def test_loading_draws_nothing_from_the_global_generator(folders: dict[str, Path]) -> None:
    state = torch.get_rng_state()
    for kind in ("gpt2", "llama"):
        load_stranger(folders[kind])
    assert torch.equal(torch.get_rng_state(), state)


# loads every folder that is named, and prints what came of it and what Python was asked to do meanwhile
CHILD = """
import json, os, sys
from pathlib import Path
from benchmarks.strangers.load import load_stranger
from corpora.errors import InputRefused

root, good = Path(sys.argv[1]), Path(sys.argv[2])
load_stranger(good)  # whatever is imported late has been imported,
"".encode("raw_unicode_escape")  # and what lists the opcodes of pickles
events, watching = [], False
RUNS = ("exec", "compile", "import", "pickle.find_class", "marshal.loads", "ctypes.", "socket.", "subprocess.",
        "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn",
        "os.remove", "os.rename", "os.mkdir", "shutil.")

def hook(event, arguments):
    if watching and (event.startswith(RUNS) or event == "open" and writes(*arguments)):
        events.append(f"{event} {arguments!r}"[:200])

def writes(path, mode, flags):
    return bool(set(mode or "") & set("wax+")) or bool((flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))

sys.addaudithook(hook)
outcomes = {}
for folder in sorted(root.iterdir()):
    events, watching = [], True
    try:
        load_stranger(folder)
        outcome = ["loaded", ""]
    except InputRefused as refusal:
        outcome = ["refused", str(refusal)]
    except BaseException as error:
        outcome = [type(error).__name__, str(error)]
    watching = False
    outcomes[folder.name] = [*outcome, events]
events, watching = [], True
open(os.devnull, "w").close()  # the hook does see
assert events
print(json.dumps(outcomes))
"""


@pytest.fixture(scope="module")
def outcomes(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    root = tmp_path_factory.mktemp("hostile")
    for name, (make, _) in hostile.HOSTILE.items():
        make(copied(folders["gpt2"], root / name))
    command = [sys.executable, "-c", CHILD, str(root), str(folders["gpt2"])]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert not list(root.rglob(hostile.SENTINEL))
    return json.loads(finished.stdout)


@pytest.mark.parametrize("zipped", [False, True])
def test_the_payloads_would_have_run(tmp_path: Path, zipped: bool) -> None:
    (tmp_path / "folder").mkdir()
    hostile.torch_saved("weights.bin", zipped=zipped)(tmp_path / "folder")
    torch.load(tmp_path / "folder" / "weights.bin", weights_only=False)
    assert (tmp_path / hostile.SENTINEL).exists()


@pytest.mark.parametrize("name", hostile.HOSTILE)
def test_hostile_folders_are_refused_and_nothing_runs(outcomes: dict[str, Any], name: str) -> None:
    outcome, message, events = outcomes[name]
    assert outcome == "refused", message
    assert ONE_LINE.fullmatch(message) and message.isascii(), message
    assert hostile.HOSTILE[name][1] in message, message
    assert len(message) < 1200 and not events


def test_ids_that_no_network_reads_may_lie_beyond_the_vocabulary(folders: dict[str, Path], tmp_path: Path) -> None:
    """GPT-2's defaults, 50256, are saved with every smaller vocabulary."""
    folder = copied(folders["gpt2"], tmp_path / "gpt2")
    hostile.config(bos_token_id=50_256, eos_token_id=50_256)(folder)
    assert torch.equal(logits_of(folder, causal=True), logits_of(folders["gpt2"], causal=True))


def test_a_folder_whose_name_would_reach_the_terminal_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(folders["gpt2"], tmp_path / "a\n\x1b[2Jb")
    with pytest.raises(InputRefused) as refusal:
        load_stranger(folder)
    assert ONE_LINE.fullmatch(str(refusal.value)) and "control characters in its name" in str(refusal.value)


def pipe(name: str) -> hostile.Make:
    return lambda folder: ((folder / name).unlink(missing_ok=True), os.mkfifo(folder / name))


@pytest.mark.parametrize(
    ("make", "reads", "reason"),
    [
        (pipe("model.safetensors"), "file_digest", "model.safetensors: no regular file"),
        (pipe("manifest.json"), "read_manifest", "manifest.json: no regular file"),
        (lambda folder: (folder / "manifest.json").symlink_to("/dev/zero"), "read_manifest", "no regular file"),
        (lambda folder: (folder / "manifest.json").mkdir(), "read_manifest", "manifest.json: a directory"),
        (hostile.weights(lambda data: data + bytes(9)), "file_digest", "expected no other bytes"),
    ],
)
def test_nothing_is_opened_before_it_is_known_what_it_is(
    folders: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    make: hostile.Make,
    reads: str,
    reason: str,
) -> None:
    """A pipe never ends, and neither does /dev/zero."""

    def refuse(path: Path) -> None:
        raise AssertionError(f"{path} is read")

    folder = copied(folders["gpt2"], tmp_path / "gpt2")
    make(folder)
    monkeypatch.setattr(candidates, reads, refuse)
    code, lines = cuvee("score", str(folder), "--backend", "causal", "--ngrams", "none")
    assert code == 3 and len(lines) == 1 and reason in lines[0]


def test_a_manifest_of_another_format_is_shown_in_plain_letters(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(folders["gpt2"], tmp_path / "gpt2")
    (folder / "manifest.json").write_text(json.dumps({"format": "\x1b[2J\n" + "x" * 999}))
    code, lines = cuvee("score", str(folder))
    assert code == 3 and len(lines) == 1 and lines[0].isprintable() and len(lines[0]) < 1000


def test_a_folder_of_ours_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with new_folder(tmp_path / "scores", kind="verdicts", fingerprint={}) as writer:
        writer.write("x", b"")
    code, lines = cuvee("score", str(tmp_path / "scores"))
    assert code == 3 and len(lines) == 1 and "a verdicts without cuvee.json, model.safetensors" in lines[0]


def test_a_folder_with_code_has_a_digest_of_what_lies_in_it(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = copied(folders["gpt2"], tmp_path / "gpt2")
    before = folder_digest(folder)
    os.mkfifo(folder / "pipe.safetensors")
    (folder / "link.safetensors").symlink_to("/dev/zero")
    assert folder_digest(folder) == before
    (folder / "modeling.py").write_text("x = 1")
    assert folder_digest(folder) != before


@pytest.mark.parametrize("answer", [[True], ["-1"], [1.0], [-(10**400)], [-1e300], [], [-1.0, -1.0], None, {"a": 1}])
def test_what_code_answers_is_as_many_log_likelihoods_or_refused(answer: object) -> None:
    assert _numbers([-1, -0.5, None], 3, "p")[:2].tolist() == [-1.0, -0.5]
    with pytest.raises(InputRefused, match="p: its code answered .*; expected .*; ask who made it"):
        _numbers(answer, 1, "p")


def test_a_tokenizer_keeps_its_meaning(tokenizer: TextTokenizer) -> None:
    told = rebuilt(json.loads(tokenizer.to_json()), "p", vocab_size=tokenizer.vocab_size)
    built = built_tokenizer(told, {}, "p", vocab_size=tokenizer.vocab_size)
    sentences = ["The cat sees 12 geese.", " twice  spaced ", "<mask> is text", "\u00fc\U0001f600"]
    own = own_tokenizer(tokenizer.to_json())
    assert [e.ids for e in built.encode(sentences)] == [e.ids for e in own.encode(sentences)]
