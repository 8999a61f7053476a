"""The names of the files and folders that a training writes, in its work folder and in its artifact."""

from pathlib import Path

MODEL = "model"
"""The whole weights and what builds them (models/weights/model_folder.py), in the work folder and in the artifact."""
ADAPTER = "adapter"
"""What a fine-tuning by lora or qlora adds to its base, in peft's format."""
CHECKPOINTS = "checkpoints"
"""In the work folder: a folder for each checkpoint."""
STATE = "state"
"""In the artifact: the last checkpoint."""

MANIFEST = "manifest.json"
"""In a checkpoint: every file's size and SHA-256. It is written last."""
PREFIX = "step-"
"""The name of a checkpoint's folder begins with it."""


def checkpoint_name(step: int) -> str:
    """The folder's name for a step. Names sort in the order of steps."""
    return f"{PREFIX}{step:08d}"


def complete(checkpoints: Path) -> list[Path]:
    """The checkpoints in a folder of them, oldest first."""
    return sorted(path.parent for path in checkpoints.glob(f"{PREFIX}*/{MANIFEST}"))
