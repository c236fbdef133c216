"""Randomness by address: every draw is a pure function of a seed, a purpose and a place (house contract 2).

Nothing is consumed, so nothing needs replaying: resuming, another world size or another order of reading see the same
draws.
"""

from __future__ import annotations

import numpy as np
import xxhash


def address(seed: int, *purpose: str | int) -> int:
    """A 64-bit key for a purpose, for example `address(seed, "offset", epoch)`."""
    return xxhash.xxh3_64_intdigest("\x1f".join(map(str, (seed, *purpose))).encode())


def hashes(key: int, places: np.ndarray) -> np.ndarray:
    """One 64-bit hash for each integer place, any shape (the finaliser of SplitMix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        value = places.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(key)
        value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return value ^ (value >> np.uint64(31))


def uniforms(key: int, places: np.ndarray) -> np.ndarray:
    """One float in [0, 1) for each place."""
    return (hashes(key, places) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def permutation(key: int, length: int) -> np.ndarray:
    """A permutation of range(length), the same with every release of NumPy."""
    return np.argsort(hashes(key, np.arange(length)), kind="stable")
