"""Rows that begin alike as one tree of tokens: what they share is read once, and so are its outputs.

The sentences of a minimal pair share a third of their tokens and more, the options of an entity-tracking item nearly
all. A tree is read as one row whose tokens see their ancestors alone, each at the position of its depth.

Axes: B trees, T nodes.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# A row joins a tree when it finds at least this share of its tokens there ...
SMALLEST_SHARE = 0.2
# ... and they are worth the pairs of nodes at which attention looks, all of a tree's where a row's are half of them: so
# many take as long as a token (measured: 900 with 128 features, 2,300 with 384)
PAIRS_OF_TOKEN = 1000
LARGEST_TREE = 32  # nodes, or twice the first row's tokens where that is more

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TokenTree:
    """Several rows; whatever descends from a node stands right behind it."""

    ids: list[int]  # token of each node
    depths: list[int]  # of each node, from 0
    rows: dict[int, list[int]]  # the nodes of each row, by its number


def token_trees(rows: Sequence[Ids], *, most: int) -> list[TokenTree]:
    """All rows, each in one tree of at most `most` nodes, the largest first; empty rows are in none.

    Which rows meet depends on their tokens alone.
    """
    trees: list[TokenTree] = []
    before: Ids = ()
    path: list[int] = []
    largest = 0
    for number in sorted((number for number, row in enumerate(rows) if row), key=lambda number: rows[number]):
        row = rows[number]
        shared = len(os.path.commonprefix([before, row]))
        fits = bool(trees) and len(trees[-1].ids) + len(row) - shared <= largest
        if not fits or not _pays(shared, len(row), len(trees[-1].ids)):
            trees.append(TokenTree([], [], {}))
            shared, path, largest = 0, [], min(max(LARGEST_TREE, 2 * len(row)), most)
        tree = trees[-1]
        path = path[:shared]
        for depth in range(shared, len(row)):
            tree.ids.append(row[depth])
            tree.depths.append(depth)
            path.append(len(tree.ids) - 1)
        tree.rows[number] = list(path)
        before = row
    return sorted(trees, key=lambda tree: -len(tree.ids))


def tree_tensors(trees: Sequence[TokenTree]) -> tuple[Tensor, Tensor, Tensor]:
    """Trees as (ids_BT int64, depths_BT int64, sees_BTT bool), padded at their end with tokens that nobody sees."""
    longest = max(len(tree.ids) for tree in trees)
    ids_BT = torch.tensor([tree.ids + [0] * (longest - len(tree.ids)) for tree in trees])
    # padding stands at depth 0, so that nothing descends from anything there
    depths = [tree.depths + [0] * (longest - len(tree.ids)) for tree in trees]
    ends_BT = torch.tensor([_ends(of_tree) for of_tree in depths])
    nodes_T = torch.arange(longest)
    sees_BTT = (nodes_T <= nodes_T[:, None]) & (nodes_T[:, None] < ends_BT[:, None, :])
    return ids_BT, torch.tensor(depths), sees_BTT


def _ends(depths: Sequence[int]) -> list[int]:
    """Of each node, the first one behind it that does not descend from it."""
    ends, above = [len(depths)] * len(depths), []
    for node, depth in enumerate(depths):
        for ended in above[depth:]:
            ends[ended] = node
        above[depth:] = [node]
    return ends


def _pays(shared: int, length: int, nodes: int) -> bool:
    """Whether a row of so many tokens joins a tree of so many nodes, among which it finds `shared` of them."""
    added_pairs = (nodes + length - shared) ** 2 - nodes**2 - length**2 / 2
    return shared >= SMALLEST_SHARE * length and shared * PAIRS_OF_TOKEN >= added_pairs
