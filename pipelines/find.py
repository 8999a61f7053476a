"""Finds the artifact a person means: by the name of its recipe or sweep, its label, or the start of its identity."""

import difflib
import os
from pathlib import Path
from typing import Any

from reducible.data.paths import scheme_like
from reducible.tasks.errors import UserError
from reducible.tasks.workflow.store import MANIFEST, Store


class NotFound(UserError):
    """There is no artifact of that name."""


def find(store: Store, kind: str, wanted: str) -> Path:
    """The newest artifact that `wanted` names, of a kind of task ("train", "fit").

    Raises:
        UserError: nothing matches (the line suggests the nearest names), or several identities begin with it.
    """
    if (Path(wanted) / MANIFEST).is_file():
        return Path(wanted).absolute()
    manifests = list(store.manifests(kind))
    by_identity = [manifest for manifest in manifests if len(wanted) >= 6 and manifest["identity"].startswith(wanted)]
    if len(by_identity) > 1:
        raise UserError(f"{wanted}: {len(by_identity)} identities begin with it; give more of it")
    named = by_identity or [manifest for manifest in manifests if wanted in _names(kind, manifest)]
    if not named:
        scheme = scheme_like(wanted)
        if scheme is not None and not os.path.exists(wanted):
            raise UserError(
                f"{wanted!r} is not found: {scheme} is not a known scheme; give the name of a run or sweep, "
                "the beginning of an identity, or a path"
            )
        known = list(dict.fromkeys(name for manifest in manifests for name in _names(kind, manifest)))
        near = difflib.get_close_matches(wanted, known, n=3, cutoff=0.3) or known[:3]
        there = (
            f"did you mean {' or '.join(repr(name) for name in near)}?" if near else f"nothing of kind {kind} is there"
        )
        raise NotFound(f"{wanted}: no {kind} of that name under {store.root}; {there}")
    return store.artifact(kind, named[0]["identity"])


def name_of(store: Store, kind: str, identity: str, wanted: str) -> str:
    """A name under which `find` finds this artifact: the wanted one, one of its own, or the start of its identity.

    It was perhaps made under another name, and another artifact may have taken its name since.
    """
    for name in (wanted, *_names(kind, store.manifest(kind, identity))):
        newest = next((found for found in store.manifests(kind) if name in _names(kind, found)), None)
        if newest is not None and newest["identity"] == identity and not os.path.isfile(Path(name) / MANIFEST):
            return name
    return identity[:12]


def _names(kind: str, manifest: dict[str, Any]) -> list[str]:
    label = str(manifest["label"])
    return [label.removeprefix(f"{kind} "), label]
