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

# A row joins a tree when it finds at least this share of its tokens there: attention is over all nodes.
SMALLEST_SHARE = 0.2
LARGEST_TREE = 32  # nodes, or twice the first row's tokens where that is more

Ids = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class TokenTree:
    """Several rows; a node stands behind its parent."""

    ids: list[int]  # token of each node
    parents: list[int]  # of each node, -1 at the beginning
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
        if not fits or shared < SMALLEST_SHARE * len(row):
            trees.append(TokenTree([], [], [], {}))
            shared, path, largest = 0, [], min(max(LARGEST_TREE, 2 * len(row)), most)
        tree = trees[-1]
        path = path[:shared]
        for depth in range(shared, len(row)):
            tree.parents.append(path[-1] if path else -1)
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
    depths_BT = torch.tensor([tree.depths + [0] * (longest - len(tree.ids)) for tree in trees])
    # column of every node's parent; those at the beginning have the extra last row, which sees nothing
    parents_BT = torch.tensor([tree.parents + [-1] * (longest - len(tree.ids)) for tree in trees])
    sees_BTT = torch.zeros(len(trees), longest + 1, longest, dtype=torch.bool)
    every = torch.arange(len(trees))
    for node in range(longest):
        sees_BTT[:, node] = sees_BTT[every, parents_BT[:, node]]
        sees_BTT[:, node, node] = True
    return ids_BT, depths_BT, sees_BTT[:, :longest]
