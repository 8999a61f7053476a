"""L(N, D) = E + A N^-alpha + B D^-alpha: one exponent for both, so that N* and D* grow alike with compute.

Replications of Hoffmann et al. find alpha close to beta. Where the runs are few, one exponent less narrows E.
"""

from reducible.tasks.fit.laws.powers import Power, SumOfPowers

TIED = SumOfPowers(
    name="tied",
    powers=(Power("A", "N", "alpha"), Power("B", "D", "alpha")),
    meanings={
        "A": "scale of what more parameters remove",
        "B": "scale of what more {units} remove",
        "alpha": "how fast both remove it",
    },
    source=("Muennighoff et al. 2023, appendix A", "https://arxiv.org/abs/2305.16264"),
)
