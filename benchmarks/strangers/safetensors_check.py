"""The header of a safetensors file, proved before the library reads it: these tensors, these shapes, these bytes.

The format promises that no code runs. It does not promise little memory (a header of a million empty tensors takes 2
GB), a reader that agrees with other readers (equal keys), or the tensors that a model needs; all of that is asked here.

    8 bytes   length of the header, little-endian
    header    JSON: name -> {"dtype", "shape", "data_offsets": [begin, end]}, and "__metadata__"; spaces may follow
    data      the tensors' bytes, one after the other, without gaps, to the end of the file
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, NoReturn

from benchmarks.strangers.files import CONFIG
from benchmarks.strangers.refusal import refuse, shown
from benchmarks.strangers.strict_json import parse_json_object

Shapes = Mapping[str, tuple[int, ...]]

HEADER_BYTES = 1_000_000  # of any header, and
HEADER_BYTES_PER_TENSOR = 1_000
BYTES = {"F32": 4, "F16": 2, "BF16": 2}  # of one number, in types of weights
_OTHER_BYTES = {"F64": 8, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
# buffers that older versions of transformers stored; they are made anew, and what the file says of them is not read
_NOT_WEIGHTS = re.compile(r"[\w.]{1,200}\.(position_ids|token_type_ids|inv_freq|(attn|attention)\.(bias|masked_bias))")
_REMEDY = "save the model again with save_pretrained"


class StoredTensor(NamedTuple):
    """Where a tensor lies."""

    dtype: str
    shape: tuple[int, ...]
    begin: int  # bytes after the header
    end: int


def check_header(path: Path, expected: Shapes, second_names: Shapes) -> set[str]:
    """Names of the weights in a safetensors file, which are all of `expected` and may be some of `second_names`.

    `second_names`: of tied weights, which are stored once, or twice by older versions. Raises InputRefused.
    """
    with path.open("rb") as file:
        return checked_names(file, path.stat().st_size, str(path), expected=expected, second_names=second_names)


def checked_names(file: BinaryIO, size: int, place: str, *, expected: Shapes, second_names: Shapes) -> set[str]:
    """What `check_header` does, with an open file of `size` bytes; `place` is its name in messages."""
    shapes = {**expected, **second_names}
    header, length = _header(file, size, place, most=HEADER_BYTES + HEADER_BYTES_PER_TENSOR * len(expected))
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        _refuse(place, "__metadata__ is no object of strings", "texts alone")
    tensors = {name: _stored(name, told, place) for name, told in header.items()}
    weights = {name for name in tensors if name in shapes}
    for name in weights:
        _check_weight(name, tensors[name], shapes[name], place)
    for name in tensors.keys() - weights:
        if not _NOT_WEIGHTS.fullmatch(name):
            _refuse(place, f"a tensor {shown(name)}", f"those that {CONFIG} means")
    if missing := sorted(expected.keys() - weights):
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        _refuse(place, f"no tensor {missing[0]}{more}", f"those that {CONFIG} means")
    _check_contiguous(tensors, size - 8 - length, place)
    return weights


def _header(file: BinaryIO, size: int, place: str, *, most: int) -> tuple[dict[str, Any], int]:
    length = int.from_bytes(file.read(8), "little")
    if size < 10 or length > size - 8:
        _refuse(place, f"{size:,} bytes with a header of {length:,}", "a whole safetensors file")
    if length > most:
        _refuse(place, f"a header of {length:,} bytes", f"at most {most:,}")
    data = file.read(length)
    if not data.startswith(b"{"):
        _refuse(place, "a header that is no JSON object", "a safetensors file")
    return parse_json_object(data.rstrip(b" "), place, max_depth=3, remedy=_REMEDY), length


def _stored(name: str, told: Any, place: str) -> StoredTensor:
    """One entry of the header, whose offsets are the size of its shape apart."""
    if not isinstance(told, dict) or told.keys() != {"dtype", "shape", "data_offsets"}:
        _refuse(place, f"{shown(name)} is {shown(told)}", "dtype, shape and data_offsets")
    dtype, shape, offsets = told["dtype"], told["shape"], told["data_offsets"]
    item_bytes = {**BYTES, **_OTHER_BYTES}.get(dtype) if isinstance(dtype, str) else None
    if item_bytes is None:
        _refuse(place, f"{shown(name)} has dtype {shown(dtype)}", f"one of {', '.join(BYTES)}")
    if not _whole_numbers(shape, most=8) or not _whole_numbers(offsets, most=2) or len(offsets) != 2:
        _refuse(place, f"{shown(name)} has shape {shown(shape)} at {shown(offsets)}", "lists of whole numbers")
    begin, end = offsets
    if end - begin != math.prod(shape) * item_bytes:  # Python's numbers do not overflow
        _refuse(place, f"{shown(name)} has {end - begin:,} bytes", "those of its shape")
    return StoredTensor(dtype, tuple(shape), begin, end)


def _whole_numbers(value: Any, *, most: int) -> bool:
    """Whether a value is a short list of whole numbers of at most 64 bits, none of them negative."""
    return (
        isinstance(value, list)
        and len(value) <= most
        and all(type(number) is int and 0 <= number < 1 << 64 for number in value)
    )


def _check_weight(name: str, stored: StoredTensor, shape: tuple[int, ...], place: str) -> None:
    if stored.dtype not in BYTES:
        _refuse(place, f"{name} has dtype {stored.dtype}", f"one of {', '.join(BYTES)}")
    if stored.shape != shape:
        _refuse(place, f"{name} has shape {shown(stored.shape)}", f"{shape}, as {CONFIG} means")


def _check_contiguous(tensors: Mapping[str, StoredTensor], size: int, place: str) -> None:
    """Every byte of the data belongs to one tensor: none to two, none to nobody."""
    reached = 0
    for name, stored in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if stored.begin != reached:
            _refuse(place, f"{shown(name)} begins at byte {stored.begin:,} of the data", f"byte {reached:,}")
        reached = stored.end
    if reached != size:
        _refuse(place, f"{size:,} bytes of data, of which tensors take {reached:,}", "no other bytes")


def _refuse(place: str, found: str, expected: str) -> NoReturn:
    refuse(place, found, expected=expected, remedy=_REMEDY)
