"""Words for the state of a run: reducible's own, MLflow's and W&B's."""

from __future__ import annotations

FINISHED = "finished"

_FINISHED = {"finished", "finish", "complete", "completed", "done", "success", "succeeded", "successful", "ok"}


def status_word(cell: object) -> str:
    """FINISHED for every word that means it. Another word stays as it is: it is the reason to leave the run out."""
    text = str(cell).strip()
    return FINISHED if text.lower().removeprefix("runstatus.") in _FINISHED else text
