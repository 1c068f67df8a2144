"""R7: copy the tokens that stand scattered in filler, in their order.

    tokens   BOS  f v3 f f v7 f v3 f f  QUERY  v3 v7 v3
    labels    .   .  . . .  . .  . . .    .    v3 v7 v3

Places are drawn uniformly; `n_copy` is what is copied, no more and no fewer. Run this file to see one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from groundthink.tasks.copy import Copy
from groundthink.tasks.kv_recall import picture
from groundthink.tasks.task import Vocabulary


@dataclass(frozen=True, eq=False)
class SelectiveCopy(Copy):
    """R7, `copy` with filler in between, before and after.

    Args:
        n_copy: tokens to copy.
        n_filler: tokens of filler.
    """

    name: ClassVar[str] = "selective_copy"
    n_filler: int = 64

    def problems(self) -> list[str]:
        """See `Task`."""
        found = super().problems()
        return found if self.n_filler >= 0 else [*found, f"n_filler {self.n_filler} is negative"]

    @property
    def max_length(self) -> int:
        """See `Task`."""
        return super().max_length + self.n_filler

    def context(self, generator: np.random.Generator) -> NDArray[np.int64]:
        """See `Copy`."""
        filler, total = self.vocabulary.filler, self.n_copy + self.n_filler
        tokens = generator.integers(filler.start, filler.stop, size=total)
        tokens[generator.permutation(total)[: self.n_copy]] = super().context(generator)
        return tokens


if __name__ == "__main__":
    example = SelectiveCopy(Vocabulary(), n_copy=3, n_filler=6)
    print(picture(example, next(example.episodes(0, "train", 1))))
