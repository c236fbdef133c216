"""What transformers' Auto classes make of a folder, told by the Python of any environment that has torch and them.

Each line of stdin is a question in JSON and each line of stdout its answer; what libraries print goes to stderr. This
file imports nothing of ours, and sees to it that a folder's code cannot either.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

ROOMS = ("benchmarks", "configs", "corpora", "distill", "students", "teachers")
NEW_CLASSES = 3  # of a classifier that has not been trained


def main() -> None:
    """Answer until stdin ends.

    A question names a `folder`, `classes`: Auto classes of models, each true where the folder has all of its weights,
    `input_ids` and `attention_mask` [B, T], and `texts` for the tokenizer, if any. The answer has the `version` of
    transformers and for each class its `values`, logits or last hidden states, and the names of the weights that were
    `missing`; the `token_ids` of each text and the `special` ones. Or it has an `error`.
    """
    sys.modules |= dict.fromkeys(ROOMS)  # type: ignore[arg-type]  # None: importing one fails
    questions, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a library that asks its user gets no answer
    os.dup2(2, 1)
    for line in questions:
        answers.write(json.dumps(_answer(json.loads(line))) + "\n")
        answers.flush()


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    import transformers

    answer: dict[str, Any] = {"version": transformers.__version__, "classes": {}}
    doing, tokenizer = "AutoConfig", None
    try:
        transformers.AutoConfig.from_pretrained(question["folder"], trust_remote_code=True)
        if question["texts"]:
            doing = "AutoTokenizer"
            tokenizer = transformers.AutoTokenizer.from_pretrained(question["folder"], trust_remote_code=True)
            answer |= _tokenizer_answer(tokenizer, question["texts"])
        for doing, trained in question["classes"].items():
            answer["classes"][doing] = _model_answer(doing, trained, question, tokenizer)
    except Exception as error:  # whatever it is, it is the answer
        told = " ".join(str(error).split())
        answer["error"] = f"{doing}: {type(error).__name__}: {told[:300]}"
    return answer


def _tokenizer_answer(tokenizer: Any, texts: list[str]) -> dict[str, Any]:
    special = {name: getattr(tokenizer, name) for name in ("pad_token_id", "bos_token_id", "eos_token_id")}
    return {"token_ids": [tokenizer(text)["input_ids"] for text in texts], "special": special}


def _model_answer(auto_class: str, trained: bool, question: dict[str, Any], tokenizer: Any) -> dict[str, Any]:
    import torch
    import transformers

    model, loading = getattr(transformers, auto_class).from_pretrained(
        question["folder"],
        trust_remote_code=True,
        output_loading_info=True,
        **({} if trained else {"num_labels": NEW_CLASSES}),
    )
    model.float().eval()
    ids_BT, mask_BT = torch.tensor(question["input_ids"]), torch.tensor(question["attention_mask"])
    with torch.no_grad():
        output = model(input_ids=ids_BT, attention_mask=mask_BT)
        if tokenizer is not None:  # the model takes whatever the tokenizer makes
            length = ids_BT.shape[1]
            model(**tokenizer(question["texts"][0], return_tensors="pt", truncation=True, max_length=length))
    values = output.logits if "logits" in output else output.last_hidden_state
    return {"values": values.tolist(), "missing": sorted(loading["missing_keys"])}


if __name__ == "__main__":
    main()
