"""Whether a stored state has the tensors that a network of given sizes needs; all that are wrong are named at once."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from corpora.errors import InputRefused


def require_same_shapes(found: Mapping[str, torch.Size], expected: Mapping[str, torch.Size], *, place: str) -> None:
    """Raise InputRefused, in one line, unless both sides have the same names with the same shapes."""
    missing = [name for name in expected if name not in found]
    extra = [name for name in found if name not in expected]
    misshapen = [
        f"{name} {tuple(found[name])} for {tuple(expected[name])}"
        for name in expected
        if name in found and found[name] != expected[name]
    ]
    kinds = (("missing", missing), ("not known", extra), ("of another shape", misshapen))
    wrong = [f"{kind}: {', '.join(names)}" for kind, names in kinds if names]
    if wrong:
        raise InputRefused(f"{place}: tensors {'; '.join(wrong)}; expected those of the given sizes; correct the sizes")
