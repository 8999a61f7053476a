"""generated: the prefix of data that is computed, not read. data.generated describes it; a location cannot."""

from reducible.data.scheme import Scheme


class Generated(Scheme):
    prefix = "generated:"

    def refusal(self, rest: str) -> str:
        return "a path or a built-in corpus; generated data is described in data.generated"
