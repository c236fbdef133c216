"""Proof that a folder of a model works where this toolkit is not: a process loads it by every Auto class and answers.

The process cannot import the project, and may be that of another environment, with another version of transformers.

Axes: B rows, T positions.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from corpora.errors import Damaged, ProcessLost
from distill.reload_child import NEW_CLASSES

CHILD = Path(__file__).with_name("reload_child.py")
TOLERANCE = 1e-5  # of the largest value, or of 1: fp32, another order of the same sums
PROBE_LENGTH = 8  # tokens
PROBE_PADDING = 3  # of them, in the second row
# what tokenizers of different versions have treated differently: white space at borders, capitals, digits, bytes
TEXTS = (
    "the cat sees a small dog",
    " A space before,  two inside; and one behind ",
    "It's 1984: don't count 12,345.67!",
    "naïve café — “quoted” 猫\n\tnew line",
)
CLASSIFIER = "AutoModelForSequenceClassification"
POOLERS = {"pooler"}  # made anew where a masked language model was saved, which has none
NEW_HEADS = {"classifier", "score"}  # what architectures call the head of an untrained classifier


@dataclass(frozen=True)
class Expectation:
    """What a folder must answer wherever it is loaded."""

    folder: Path
    values: Mapping[str, Tensor | None]  # of the probe, by Auto class; None: a classifier whose head is new
    token_ids: Mapping[str, list[int]]  # by text; none where there is no tokenizer
    config: PretrainedConfig
    input_ids_BT: Tensor
    attention_mask_BT: Tensor  # 1 where real


@dataclass(frozen=True)
class Reloaded:
    """What was found in another process."""

    version: str  # of transformers
    classes: tuple[str, ...]  # that load the folder
    difference: float  # largest between values there and here


def expectation(folder: Path, network: PreTrainedModel, tokenizer_json: str | None) -> Expectation:
    """What a folder of `network`, in evaluation mode on the CPU, must answer."""
    config: Any = network.config
    length = min(PROBE_LENGTH, getattr(config, "max_position_embeddings", PROBE_LENGTH))
    generator = torch.Generator().manual_seed(0)
    input_ids_BT = torch.randint(config.vocab_size, (2, length), generator=generator)
    attention_mask_BT = torch.ones_like(input_ids_BT)
    attention_mask_BT[1, length - min(PROBE_PADDING, length - 1) :] = 0
    values = {
        name: None if other is None else _values(other, input_ids_BT, attention_mask_BT)
        for name, other in _auto_networks(network).items()
    }
    token_ids = {} if tokenizer_json is None else _token_ids(tokenizer_json)
    return Expectation(folder, values, token_ids, config, input_ids_BT, attention_mask_BT)


def reload(expected: Sequence[Expectation], python: str | Path = sys.executable) -> list[Reloaded]:
    """Load folders in one process of `python`, and compare; tells of each what was found.

    Raises Damaged for a folder that cannot be loaded there or answers something else, ProcessLost when the process ends
    before it has answered.
    """
    return [compared(each, answer) for each, answer in zip(expected, answers(expected, python), strict=True)]


def answers(expected: Sequence[Expectation], python: str | Path) -> list[dict[str, Any]]:
    """What a process of `python` says about folders, as `reload_child.py` words it. Raises ProcessLost."""
    questions = [
        {
            "folder": str(each.folder.resolve()),
            "classes": {name: values is not None for name, values in each.values.items()},
            "input_ids": each.input_ids_BT.tolist(),
            "attention_mask": each.attention_mask_BT.tolist(),
            "texts": list(each.token_ids),
        }
        for each in expected
    ]
    with tempfile.TemporaryDirectory() as home:
        child = subprocess.run(
            [str(python), "-I", str(CHILD)],  # -I: neither the folder it is called in nor that of the file is searched
            input="".join(json.dumps(question) + "\n" for question in questions),
            env=_environment(home),
            capture_output=True,
            text=True,
            check=False,
        )
    found = [json.loads(line) for line in child.stdout.splitlines()]
    if len(found) < len(expected):
        told = (child.stderr.strip().splitlines() or ["nothing"])[-1]
        raise ProcessLost(
            f"{expected[len(found)].folder}: the process that loads it ended with {child.returncode}, told {told!r}; "
            "expected its answers; mend that, and run the same command again"
        )
    return found


def compared(expected: Expectation, answer: dict[str, Any]) -> Reloaded:
    """Raise Damaged, in one line, unless the answer is what is expected."""
    place = f"{expected.folder}: in transformers {answer['version']}"
    remedy = "the folder is not finished; report this with the line"
    if "error" in answer:
        raise Damaged(f"{place}: {answer['error']}; expected it to load; {remedy}")
    largest = 0.0
    for name, values in expected.values.items():
        found = torch.tensor(answer["classes"][name]["values"])
        missing = {weight.partition(".")[0] for weight in answer["classes"][name]["missing"]}
        if values is None and not (missing <= NEW_HEADS and found.shape == (2, NEW_CLASSES) and found.isfinite().all()):
            raise Damaged(
                f"{place}: {name}: classes of shape {tuple(found.shape)}, without weights for {sorted(missing)}; "
                f"expected {(2, NEW_CLASSES)} and a new head alone; {remedy}"
            )
        if values is None:
            continue
        difference = _difference(found, values, expected.attention_mask_BT)
        if missing - POOLERS or not difference <= TOLERANCE * max(1.0, values.abs().max().item()):
            raise Damaged(
                f"{place}: {name}: values differ by {difference:.3g}, without weights for {sorted(missing)}; "
                f"expected the same within {TOLERANCE:g} and all weights; {remedy}"
            )
        largest = max(largest, difference)
    _require_tokens(expected, answer, place, remedy)
    return Reloaded(answer["version"], tuple(expected.values), largest)


def _auto_networks(network: PreTrainedModel) -> dict[str, PreTrainedModel | None]:
    """What each Auto class makes of the folder of a network, on the same weights; None: its head is new."""
    named: Mapping[str, str] | None = getattr(network.config, "auto_classes", None)
    if named is None:  # an architecture that transformers has itself
        masked = type(network).__name__ in _names_of(MODEL_FOR_MASKED_LM_MAPPING_NAMES)
        if masked:  # whose classifiers are as different as their poolers
            return {"AutoModel": network.base_model, "AutoModelForMaskedLM": network}  # type: ignore[dict-item]
        return {"AutoModel": network.base_model, "AutoModelForCausalLM": network, CLASSIFIER: None}  # type: ignore[dict-item]
    module = sys.modules[type(network).__module__]
    found: dict[str, PreTrainedModel | None] = {"AutoModel": network.base_model, CLASSIFIER: None}  # type: ignore[dict-item]
    for auto_class, path in named.items():
        if auto_class in ("AutoConfig", "AutoModel"):
            continue
        other = _with_weights_of(network, getattr(module, path.rpartition(".")[2]))
        if other is not None:
            found[auto_class] = other
    return found


def _names_of(classes: Mapping[Any, Any]) -> set[str]:
    """Of all classes that an Auto class knows; it may know several of a kind."""
    return {name for known in classes.values() for name in ((known,) if isinstance(known, str) else known)}


def _with_weights_of(network: PreTrainedModel, network_class: type[PreTrainedModel]) -> PreTrainedModel | None:
    """A network of another class on the very same weights; None where it needs more than there are."""
    if type(network) is network_class:
        return network
    with torch.device("meta"):
        other = network_class(network.config)
    if other.load_state_dict(network.state_dict(), strict=False, assign=True).missing_keys:
        return None
    return other.eval()


def _values(network: PreTrainedModel, input_ids_BT: Tensor, attention_mask_BT: Tensor) -> Tensor:
    with torch.no_grad():
        output = network(input_ids=input_ids_BT, attention_mask=attention_mask_BT)
    return (output.logits if "logits" in output else output.last_hidden_state).float()


def _token_ids(tokenizer_json: str) -> dict[str, list[int]]:
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.no_padding()  # which AutoTokenizer does when it is asked for
    tokenizer.no_truncation()
    return {text: tokenizer.encode(text).ids for text in TEXTS}


def _environment(home: str) -> dict[str, str]:
    """Of a process that fetches nothing, computes on the CPU, and keeps what it unpacks in `home`."""
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    offline = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "HF_HOME": home, "HF_MODULES_CACHE": f"{home}/code"}
    return kept | offline | {"TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}


def _difference(found: Tensor, expected: Tensor, attention_mask_BT: Tensor) -> float:
    """Largest between values at real positions, or of whole rows; not a number where shapes differ."""
    if found.shape != expected.shape:
        return float("nan")
    if found.ndim > 1 and found.shape[:2] == attention_mask_BT.shape:
        found, expected = found[attention_mask_BT == 1], expected[attention_mask_BT == 1]
    return (found - expected).abs().max().item()


def _require_tokens(expected: Expectation, answer: dict[str, Any], place: str, remedy: str) -> None:
    if not expected.token_ids:
        return
    for (text, ids), found in zip(expected.token_ids.items(), answer["token_ids"], strict=True):
        if found != ids:
            raise Damaged(f"{place}: AutoTokenizer: {text!r} is {found}, expected {ids}; {remedy}")
    for name, found in answer["special"].items():
        if found != getattr(expected.config, name):
            wanted = getattr(expected.config, name)
            raise Damaged(
                f"{place}: AutoTokenizer: {name} is {found}, expected {wanted} as config.json has it; {remedy}"
            )
