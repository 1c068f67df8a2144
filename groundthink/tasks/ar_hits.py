"""R11: where real text asks for recall: tokens that complete a bigram seen before in the same document.

    tokens    the red  fox saw the red  fox
    position                        5    6       "red" after "the", "fox" after "red"
    distance                        3    3       from the first completion to the token that predicts

Averaging a model's losses over these positions, by distance, gives the worth of its memory in nats, without any
synthetic task. Run this file to see them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from groundthink.errors import TaskError

BUCKETS = ("inside", "between", "beyond")


def ar_hit_positions(
    tokens: NDArray[np.integer], documents: NDArray[np.integer]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions whose token completes a bigram that the document held before, and how far back.

    Args:
        tokens: int [T], one row.
        documents: int [T], document of each token; a bigram lies within one, and so does its memory.

    Returns:
        Two int64 arrays [n], by position: index t of the completing token, whose label stands there and which
        is predicted at t - 1; and tokens between the last earlier completion s and that prediction, t - 1 - s,
        counted as `Query.distance` is.

    Raises:
        TaskError: arrays that are not two rows of one length.
    """
    if tokens.ndim != 1 or tokens.shape != documents.shape:
        raise TaskError(
            f"tokens {tokens.shape} and documents {documents.shape} are not two rows of one length",
            where="ar_hit_positions",
            fix="pass one row of a batch at a time.",
        )
    second = np.flatnonzero(documents[1:] == documents[:-1]) + 1
    # Sorted by bigram and document; the sort is stable, so equal ones stay in order of position.
    keys = np.stack([documents[second], tokens[second - 1], tokens[second]])
    order = np.lexsort(keys)
    same = (keys[:, order[1:]] == keys[:, order[:-1]]).all(axis=0)
    later, earlier = second[order[1:][same]], second[order[:-1][same]]
    by_position = np.argsort(later)
    later, earlier = later[by_position], earlier[by_position]
    return later.astype(np.int64), (later - 1 - earlier).astype(np.int64)


def ar_hit_buckets(
    tokens: NDArray[np.integer], documents: NDArray[np.integer], *, window: int, reach: int
) -> dict[str, NDArray[np.int64]]:
    """The same positions by what could have carried the answer: the arrays of `BUCKETS`.

    Args:
        tokens, documents: int [T].
        window: W, tokens that one attention layer sees, the predicting one included: `inside` is distance
            below W.
        reach: R, the farthest that stacked windows and convolutions relay: `beyond` is distance above R.

    Raises:
        TaskError: shapes as above, or not 1 <= window <= reach + 1.
    """
    if not 1 <= window <= reach + 1:
        raise TaskError(f"window {window} and reach {reach}", where="ar_hits", fix="0 <= window - 1 <= reach.")
    positions, distances = ar_hit_positions(tokens, documents)
    inside, beyond = distances < window, distances > reach
    return {
        "inside": positions[inside],
        "between": positions[~inside & ~beyond],
        "beyond": positions[beyond],
    }


def mean_losses(losses: NDArray[np.floating], buckets: Mapping[str, NDArray[np.int64]]) -> dict[str, tuple[float, int]]:
    """For each bucket the mean of its losses in nats, NaN where it is empty, and their number.

    Args:
        losses: float [T], at the index of the label; what stands elsewhere is not looked at.
        buckets: of `ar_hit_buckets`, for the same row.
    """
    means = {name: float(losses[at].mean()) if at.size else float("nan") for name, at in buckets.items()}
    return {name: (means[name], int(at.size)) for name, at in buckets.items()}


if __name__ == "__main__":
    words = ["the", "red", "fox", "saw", "the", "red", "fox", "and", "the", "grey", "wolf", "saw", "the", "red", "fox"]
    ids = np.array([sorted(set(words)).index(word) for word in words])
    for position, distance in zip(*ar_hit_positions(ids, np.zeros_like(ids)), strict=True):
        print(f"{position:3} {words[position - 1]} {words[position]}, distance {distance}")
