"""What every architecture promises, as checks that its own tests call with its own sizes.

Axes: B rows, T positions, D features.
"""

from __future__ import annotations

import os
import subprocess
import sys
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from corpora.batch import PADDING_SEGMENT
from corpora.storage import new_folder
from distill.sharding import transformer_blocks
from students.buildable import Buildable
from students.run_folder import load_model, save_model

# Auto classes load in a process that cannot import the project; `given` is what the test knows, by name
AWAY = """
import sys
sys.modules |= dict.fromkeys(["corpora", "students", "teachers", "distill"])  # None: importing one fails
import torch, transformers
given = torch.load(sys.argv[1])
ids, mask = given["input_ids"], given["attention_mask"]
def loaded(auto_class, folder, **settings):
    model, loading = getattr(transformers, auto_class).from_pretrained(
        folder, trust_remote_code=True, output_loading_info=True, **settings
    )
    heads = ("AutoModelForMaskedLM", "AutoModelForCausalLM")
    assert auto_class not in heads or not loading["unexpected_keys"], loading["unexpected_keys"]
    return model, {name.partition(".")[0] for name in loading["missing_keys"]}
def classified(folder):
    classifier, missing = loaded("AutoModelForSequenceClassification", folder, num_labels=3)
    assert missing == {"classifier"}, missing
    output = classifier(ids, mask, labels=torch.zeros(len(ids), dtype=torch.int64))
    assert output.logits.shape == (len(ids), 3) and output.loss.isfinite()
    return classifier, output
"""


def moved(network: torch.nn.Module) -> Any:
    """The same network in evaluation mode, every parameter moved so that zeros and ones hide nothing."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return network.eval()


def some_tokens(*shape: int, vocab_size: int) -> Tensor:
    """Ordinary tokens, the same ones whenever they are asked for."""
    return torch.randint(4, vocab_size, shape, generator=torch.Generator().manual_seed(3))


def packed_row(lengths: list[int], before: int, after: int) -> Tensor:
    """Segments [1, T] of documents of these lengths, with so much padding before and after them."""
    documents = [segment for segment, length in enumerate(lengths) for _ in range(length)]
    return torch.tensor([[PADDING_SEGMENT] * before + documents + [PADDING_SEGMENT] * after])


def assert_documents_apart(model: Buildable, segments_BT: Tensor, causal: bool, *, atol: float = 1e-5) -> None:
    """Every document reads as it does alone, wherever it stands in a row, and padding is finite."""
    input_ids_BT = some_tokens(*segments_BT.shape, vocab_size=model.vocab_size)
    packed_BTD = model.features(input_ids_BT, segments_BT, causal)
    assert packed_BTD.isfinite().all()
    for row, segments_T in enumerate(segments_BT):
        for segment in set(segments_T.tolist()) - {PADDING_SEGMENT}:
            chosen_T = segments_T == segment
            alone_1T = input_ids_BT[row : row + 1, chosen_T]
            alone_1TD = model.features(alone_1T, torch.zeros_like(alone_1T), causal)
            torch.testing.assert_close(packed_BTD[row, chosen_T], alone_1TD[0], atol=atol, rtol=0)


def reached(model: Buildable, *, at: int, length: int, causal: bool) -> Tensor:
    """How much each token of a row moves the features at one position: the largest gradient of its embedding, [T]."""
    seen: list[Any] = []
    model.network.get_input_embeddings().register_forward_hook(lambda _module, _ids, output: seen.append(output))
    input_ids_1T = some_tokens(1, length, vocab_size=model.vocab_size)
    features_1TD = model.features(input_ids_1T, torch.zeros_like(input_ids_1T), causal)
    (gradient_1TD,) = torch.autograd.grad(features_1TD[0, at].square().sum(), seen[0])
    return gradient_1TD[0].abs().amax(-1)


def assert_sees(model: Buildable, causal: bool) -> None:
    """A position sees itself and everything before it; what comes later exactly where nothing is causal."""
    at = 4
    reached_T = reached(model, at=at, length=9, causal=causal)
    assert (reached_T[: at + 1] > 1e-7).all()
    assert (reached_T[at + 1 :] == 0).all() if causal else (reached_T[at + 1 :] > 1e-7).all()


def assert_equal_gradients_again(model: Buildable, blocks: int) -> None:
    """Of activations that are worked out again, also where dropout is drawn."""
    again = deepcopy(model)
    for block in transformer_blocks(again):
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)  # type: ignore[method-assign]
    input_ids_BT = some_tokens(2, 12, vocab_size=model.vocab_size)
    for trained in (model, again):
        torch.manual_seed(5)
        trained.features(input_ids_BT, torch.zeros_like(input_ids_BT), True).square().sum().backward()
    assert len(transformer_blocks(again)) == blocks
    expected = {name: parameter.grad for name, parameter in model.network.named_parameters()}
    for name, parameter in again.network.named_parameters():
        found, before = parameter.grad, expected[name]
        assert (before is None) == (found is None), name
        assert found is None or before is None or torch.equal(found, before), name


def assert_one_graph(model: Buildable, causal: bool) -> None:
    """Of the body, which answers as before it was compiled."""
    input_ids_BT = some_tokens(2, 12, vocab_size=model.vocab_size)
    segments_BT = torch.zeros_like(input_ids_BT)
    eager_BTD = model.features(input_ids_BT, segments_BT, causal)
    model.network.base_model.compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(model.features(input_ids_BT, segments_BT, causal), eager_BTD)


def assert_near_in_bf16(model: Buildable, segments_BT: Tensor, causal: bool) -> None:
    """Features under autocast are within 5 % of those in fp32, and have gradients."""
    input_ids_BT = some_tokens(*segments_BT.shape, vocab_size=model.vocab_size)
    exact_BTD = model.features(input_ids_BT, segments_BT, causal)
    with torch.autocast("cpu", torch.bfloat16):
        rounded_BTD = model.features(input_ids_BT, segments_BT, causal)
        model.head().logits(rounded_BTD).mean().backward()
    assert (rounded_BTD.float() - exact_BTD).norm() / exact_BTD.norm() < 0.05


def saved_both_ways(model: Buildable, folder: Path) -> tuple[Path, Path]:
    """Folders below `folder`, `ours` as a run is saved and `theirs` as transformers saves."""
    with new_folder(folder / "ours", kind="model", fingerprint={}) as writer:
        save_model(writer, model)
    model.network.save_pretrained(folder / "theirs")
    return folder / "ours", folder / "theirs"


def loaded_both_ways(model: Buildable, folder: Path, input_ids_BT: Tensor, segments_BT: Tensor) -> list[Buildable]:
    """The model from both folders, whose features are its own to the last bit in both directions."""
    found = []
    for place in saved_both_ways(model, folder):
        again = load_model(place)
        assert isinstance(again, Buildable) and type(again) is type(model)
        for causal in (True, False):
            expected_BTD = model.features(input_ids_BT, segments_BT, causal)
            assert torch.equal(again.features(input_ids_BT, segments_BT, causal), expected_BTD)
        found.append(again)
    return found


def run_away(script: str, given: dict[str, Any], folder: Path) -> str:
    """What a process prints that has AWAY and the script, `given`, and nothing of the project."""
    torch.save(given, folder / "given.pt")
    (folder / "away").mkdir()
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    environment |= {"HF_MODULES_CACHE": str(folder / "modules"), "PYTHONSAFEPATH": "1"}
    finished = subprocess.run(
        [sys.executable, "-c", AWAY + script, str(folder / "given.pt")],
        cwd=folder / "away",
        env=environment,
        capture_output=True,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout.strip()
