"""generated: data that is computed, not read; data.generated describes it, and no location can."""

from reducible.data.scheme import Scheme


class Generated(Scheme):
    prefix = "generated:"

    def refusal(self, rest: str) -> str:
        return "a path or a built-in corpus; what is generated is described in data.generated instead of data.source"
