"""L(C, M) = E + (a M^eta + b M^-eta) C^-eta with M = D/N tokens per parameter (Gadre et al. 2024, equation 4).

(a M^eta) C^-eta is a (C/M)^-eta and (b M^-eta) C^-eta is b (C M)^-eta: a sum of powers of C N/D and of C D/N. At
C = 6ND it is the tied form. With a measured C it is not: what attention and embeddings cost then counts as size or as
data.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import ArrayLike

from reducible.tasks.fit.laws.powers import Power, SumOfPowers
from reducible.tasks.fit.objective import Floats


class OverTraining(SumOfPowers):
    """Powers of C/M and of C M, which stand under these names beside N, D and C."""

    @property
    def columns(self) -> tuple[str, ...]:
        return ("N", "D", "C")

    def variables_of(self, columns: Mapping[str, ArrayLike]) -> Mapping[str, Floats]:
        N, D, C = (np.asarray(columns[name], dtype=float) for name in self.columns)
        return {"(C/M)": C * N / D, "(C·M)": C * D / N}

    @property
    def variables(self) -> str:
        return "(C, M = D/N)"


OVERTRAINING = OverTraining(
    name="overtraining",
    powers=(Power("a", "(C/M)", "eta"), Power("b", "(C·M)", "eta")),
    meanings={
        "a": "scale of the loss if there are many {units} per parameter",
        "b": "scale of the loss if there are few {units} per parameter",
        "eta": "how fast compute removes both at constant M",
    },
    source=("Gadre et al. 2024", "https://arxiv.org/abs/2403.08540"),
)
