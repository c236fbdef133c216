"""FSDP2: two processes with half a model each learn what one learns with all of it, and go on from their own shards."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from conftest import torchrun
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from corpora.batch import Batch, causal_view
from corpora.errors import InputRefused
from corpora.prepare import Corpus, open_corpus
from corpora.rows import make_batch
from corpora.storage import read_manifest
from distill.averaging import MovingAverage
from distill.checkpoint import Checkpoints, Progress
from distill.config import TermConfig
from distill.distributed import Processes
from distill.fused import RowTerm
from distill.objective import Objective, Part
from distill.sharding import clip_grad_norm, full_state, own_part, shard, transformer_blocks

# one row more for the first process than for the second, which fills up with a row without a target
SPANS = [(0, 24), (24, 48), (30, 54), (60, 84), (80, 104), (90, 114), (100, 124)]
STEPS = 3
CROSS_ENTROPY = TermConfig(loss="cross_entropy")
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"tie_word_embeddings": True}),
    "gptj": ("gptj", {}),
    "elc_bert zero": ("elc_bert", {}),
    "elc_bert weighted_output": ("elc_bert", {"variant": "weighted_output", "num_layers": 3}),
    "gpt2": ("gpt2", {}),
    "ltg_bert": ("ltg_bert", {}),
    "gpt_bert": ("gpt_bert", {}),
    "lv_bert": ("lv_bert", {}),
    "share_bert": ("share_bert", {}),
}


@dataclass
class Trained:
    """An objective in training, whole or sharded, with a moving average of its model."""

    objective: Objective
    module: nn.Module
    average: MovingAverage
    optimizer: torch.optim.Optimizer

    @property
    def everything(self) -> nn.ModuleDict:
        """What a checkpoint holds."""
        return nn.ModuleDict({"objective": self.objective, "average": self.average.model})


def begun(name: str, corpus: Corpus, wrap: Callable[[nn.Module], nn.Module] = lambda module: module) -> Trained:
    architecture, changes = MODELS[name]
    model = tiny.model(architecture, corpus, seed=3, **changes)
    objective = Objective(model, nn.ModuleDict({"term0_member0": nn.Linear(16, 8, bias=False)}))
    torch.manual_seed(5)
    nn.init.normal_(objective.projections["term0_member0"].weight)
    average = MovingAverage(model, 0.5)
    module = wrap(objective)
    # Some gradients are 0 but for rounding: GPT-BERT's last average begins as (0, ..., 0, 1), and the norm behind it
    # takes no notice of a factor. Of rounding Adam makes steps as long as any, unless eps is above it: with 1e-8 that
    # weight ends 1e-4 away and the next gradient's norm 1e-5 of it (with everything in fp64 1e-13 and 1e-14).
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-2, eps=1e-6, fused=True)
    return Trained(objective, module, average, optimizer)


def batch_of(corpus: Corpus, spans: list[tuple[int, int]]) -> Batch:
    return make_batch(
        corpus.streams["train"], spans, causal_view(), token_ids=corpus.token_ids, vocab_size=corpus.vocab_size
    )


def one_step(trained: Trained, step: int, own: list[Batch], targets: int, processes: Processes) -> list[float]:
    """A step over this process's micro-batches; returns the losses of all processes and the norm of the gradient."""
    total = 0.0
    for number, batch in enumerate(own):
        part = Part(batch, (RowTerm("causal/cross_entropy", 0, CROSS_ENTROPY, None, 1 / targets),))
        later = number < len(own) - 1
        with processes.gradients_later(trained.module, later):
            loss, sums = trained.module([part])
            processes.backward(loss)
        if later:
            exchanged = [parameter.grad is not None for parameter in trained.module.parameters()]
            assert not any(exchanged), "an accumulation is exchanged once"
        total += float(sums["causal/cross_entropy"])
    norm = processes.clip_grad_norm(trained.module, 0.3)
    trained.optimizer.step()
    trained.optimizer.zero_grad()
    trained.average.update(trained.objective.model, step + 1)
    return [float(processes.sum(torch.tensor(total))), norm]


def whole_state(trained: Trained) -> dict[str, Tensor]:
    """Contiguous and apart from each other, as safetensors wants them."""
    named = {"objective": trained.objective, "average": trained.average.model}
    return {f"{name}.{key}": value.clone() for name, part in named.items() for key, value in full_state(part).items()}


SHARDED = """
import sys
from pathlib import Path
from test_sharding import sharded_side
sharded_side(*map(Path, sys.argv[1:]))
"""


def sharded_side(prepared: Path, out: Path) -> None:
    """What both processes do."""
    processes, corpus = Processes(expected=2, timeout=60.0), open_corpus(prepared)
    facts: dict[str, Any] = {}

    def begin(name: str) -> Trained:
        trained = begun(name, corpus, lambda module: processes.wrap(module, "fsdp"))
        shard(trained.average.model, processes.device)
        return trained

    own = [batch_of(corpus, [span]) for span in processes.own_share(SPANS)]
    own += [own[0].silent()] * (4 - len(own))
    targets = int(batch_of(corpus, SPANS).has_target_BT.sum())
    for name in MODELS:
        trained = begin(name)
        parameters = list(trained.objective.parameters())
        share = sum(own_part(each).numel() for each in parameters) / sum(each.numel() for each in parameters)
        curve = [one_step(trained, step, own, targets, processes) for step in range(STEPS)]
        with torch.no_grad():  # a look at the tune stream, after which a checkpoint may be written
            trained.module([Part(own[0], (RowTerm("look", 0, CROSS_ENTROPY, None, 1.0),))])
        divided = all(isinstance(each, DTensor) for each in trained.objective.parameters())
        facts[name] = {"share": share, "curve": curve, "divided": divided}
        state = whole_state(trained)
        assert bool(state) == processes.is_first
        if processes.is_first:
            save_file(state, out / f"{name}.safetensors")
    facts["resumed"] = _resumed(begin, own, targets, processes, out)
    (out / f"facts-{processes.rank}.json").write_text(json.dumps(facts))


def _resumed(
    begin: Callable[[str], Trained], own: list[Batch], targets: int, processes: Processes, out: Path
) -> dict[str, Any]:
    """Checkpoints after each of three steps; the last damaged in one process's part, and gone on from."""
    name, fingerprint, said = "elc_bert zero", {"processes": 2, "parallel": "fsdp"}, []

    def checkpoints(trained: Trained) -> Checkpoints:
        return Checkpoints(out / "checkpoints", trained.everything, trained.optimizer, fingerprint, processes)

    first = begin(name)
    for step in range(3):
        one_step(first, step, own, targets, processes)
        checkpoints(first).save(Progress(step + 1, 10, 20, {"scale": 2.0}))
    processes.barrier()
    if processes.is_first:
        path = out / "checkpoints" / "step-00000003" / "optimizer-00002-of-00002.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    processes.barrier()
    second = begin(name)
    progress = checkpoints(second).restore(announce=said.append)
    processes.barrier()
    found = sorted(path.name for path in (out / "checkpoints").iterdir())
    files = read_manifest(out / "checkpoints" / "step-00000002").files  # type: ignore[union-attr]
    one_step(second, 2, own, targets, processes)
    one, two = whole_state(first), whole_state(second)
    fingerprint["processes"] = 4
    with pytest.raises(InputRefused, match="processes is 2 there and 4 here"):
        checkpoints(second).restore()
    return {
        "progress": [progress.step, progress.log_length, progress.words, progress.extra],
        "said": said,
        "folders": found,
        "files": sorted(files),
        "equal": one.keys() == two.keys() and all(torch.equal(one[key], two[key]) for key in one),
    }


@pytest.fixture(scope="module")
def sharded(corpus: Corpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of what two processes found."""
    out = tmp_path_factory.mktemp("sharded")
    script = out / "sharded.py"
    script.write_text(SHARDED)
    finished = torchrun(2, script, corpus.manifest.folder.parent, out)
    assert finished.returncode == 0, finished.stderr[-3000:]
    return out


def facts(folder: Path) -> list[dict[str, Any]]:
    return [json.loads((folder / f"facts-{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.parametrize("name", MODELS)
def test_two_halves_learn_what_a_whole_learns(corpus: Corpus, sharded: Path, name: str) -> None:
    """Losses, norms, weights and their average after three clipped steps, one with four micro-batches as with one."""
    batch, trained = batch_of(corpus, SPANS), begun(name, corpus)
    targets = int(batch.has_target_BT.sum())
    curve = [one_step(trained, step, [batch], targets, Processes()) for step in range(STEPS)]
    assert curve[0][1] > 0.3, "clipping is tried too"
    for found in facts(sharded):
        assert found[name]["curve"] == [pytest.approx(record, rel=1e-5) for record in curve]
    expected, state = whole_state(trained), load_file(sharded / f"{name}.safetensors")
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        # Adam's first steps have the sign of a gradient, and some are near 0
        assert (state[key] - value).abs().max() < 5e-5, key


@pytest.mark.parametrize("name", MODELS)
def test_every_process_holds_a_half_before_and_after_a_look(sharded: Path, name: str) -> None:
    shares = [found[name]["share"] for found in facts(sharded)]
    assert sum(shares) == pytest.approx(1.0) and max(shares) < 0.51
    assert all(found[name]["divided"] for found in facts(sharded))


def test_a_sharded_run_goes_on_from_the_shards_of_its_processes(sharded: Path) -> None:
    for found in (found["resumed"] for found in facts(sharded)):
        assert found["progress"] == [2, 10, 20, {"scale": 2.0}]
        assert found["equal"], "the third step again gives the same weights"
        kinds = ("model", "optimizer")
        assert found["files"] == [f"{kind}-0000{rank}-of-00002.safetensors" for kind in kinds for rank in (1, 2)]


def test_a_shard_damaged_in_one_process_sets_all_back(sharded: Path) -> None:
    for found in (found["resumed"] for found in facts(sharded)):
        (said,) = found["said"]
        assert "optimizer-00002-of-00002.safetensors: found" in said
        assert said.endswith("set aside as step-00000003.damaged, going back to the checkpoint before it")
        assert found["folders"] == ["step-00000002", "step-00000003.damaged"]


# one process


def a_checkpoint(folder: Path, value: float) -> Checkpoints:
    layer = nn.Linear(3, 2)
    nn.init.constant_(layer.weight, value)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.0)
    layer(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    return Checkpoints(folder, layer, optimizer, {"recipe": 1})


def test_what_others_remember_is_in_the_checkpoint(tmp_path: Path) -> None:
    extra = {"micro_batch": 4, "best": {"step": 3, "cross_entropy": 2.5}, "scaler": {"scale": 1024.0}}
    a_checkpoint(tmp_path, 1.0).save(Progress(5, 6, 7, extra))
    restored = a_checkpoint(tmp_path, 2.0)
    assert restored.restore() == Progress(step=5, log_length=6, words=7, extra=extra)
    assert isinstance(restored.model, nn.Linear) and restored.model.weight.unique().tolist() == [1.0]


def test_a_damaged_checkpoint_is_set_aside_once(tmp_path: Path) -> None:
    for step in (1, 2):
        a_checkpoint(tmp_path, float(step)).save(Progress(step))
    (tmp_path / "step-00000002" / "model.safetensors").write_bytes(b"")
    said: list[str] = []
    for _ in range(2):
        assert a_checkpoint(tmp_path, 9.0).restore(announce=said.append).step == 1
    assert len(said) == 1 and "step-00000002/model.safetensors: found 0 bytes" in said[0]
    a_checkpoint(tmp_path, 2.0).save(Progress(2))
    assert a_checkpoint(tmp_path, 9.0).restore().step == 2
    # it is damaged again: what was set aside before gives way
    (tmp_path / "step-00000002" / "manifest.json").write_text("{}x")
    assert a_checkpoint(tmp_path, 9.0).restore().step == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002.damaged"]


def test_the_norm_is_torchs(corpus: Corpus) -> None:
    layers = [nn.Linear(5, 4), nn.Linear(5, 4)]
    layers[1].load_state_dict(layers[0].state_dict())
    for layer in layers:
        (layer(torch.ones(2, 5)) ** 2).sum().backward()
    expected = torch.nn.utils.clip_grad_norm_(layers[0].parameters(), 0.5)
    assert clip_grad_norm(layers[1].parameters(), 0.5) == float(expected) > 0.5
    for one, two in zip(layers[0].parameters(), layers[1].parameters(), strict=True):
        assert one.grad is not None and two.grad is not None and torch.equal(one.grad, two.grad)


@pytest.mark.parametrize("name", MODELS)
def test_the_blocks_are_the_layers(corpus: Corpus, name: str) -> None:
    model = begun(name, corpus).objective.model
    blocks = transformer_blocks(model)
    assert len(blocks) == (3 if name == "lv_bert" else model.config.num_layers)  # type: ignore[attr-defined]
    inside = sum(parameter.numel() for block in blocks for parameter in block.parameters())
    tables = {id(model.head().weight_VD), *(id(parameter) for block in blocks for parameter in block.parameters())}
    outside = [parameter for parameter in model.parameters() if id(parameter) not in tables]
    # ShareBERT's have vectors alone: their matrices are carved from the table of words
    assert inside and (name == "share_bert" or sum(parameter.numel() for parameter in outside) < inside)
    assert not transformer_blocks(nn.Linear(2, 2))
