"""Words for the state of a run: reducible's own, MLflow's and W&B's."""

from __future__ import annotations

FINISHED = "finished"

_FINISHED = {"finished", "finish", "complete", "completed", "done", "success", "succeeded", "successful", "ok"}


def status_word(cell: object) -> str:
    """FINISHED for every word that means it. Another word stays as it is: it is the reason to leave the run out."""
    text = str(cell).strip()
    return FINISHED if text.lower().removeprefix("runstatus.") in _FINISHED else text


_SAYS = {
    **dict.fromkeys(("finished", "completed", "complete", "done", "success", "succeeded", "converged"), False),
    **dict.fromkeys(("diverged", "failed", "crashed", "killed", "unfinished", "hasnan", "isnan", "nan"), True),
}
"""Names of columns of yes and no, in small letters: whether yes says that a run is no finished one."""
_WORDS = {"true": True, "yes": True, "1": True, "1.0": True, "false": False, "no": False, "0": False, "0.0": False}


def says_unfinished(column: str, cell: object) -> bool:
    """Whether a cell of a column such as diverged says that its run did not finish."""
    return column in _SAYS and _WORDS.get(str(cell).strip().lower()) is _SAYS[column]
