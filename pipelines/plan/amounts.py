"""Seconds and bytes as a person reads them."""


def duration(seconds: float) -> str:
    """Such as 90 s, 15 min, 3.5 h, 12 days, 30 years."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 7 * 86400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.0f} days" if seconds < 1000 * 86400 else f"{seconds / (365.25 * 86400):.3g} years"


def written(bytes_: float) -> str:
    """Such as 1.46 GB; powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if bytes_ < 999.5:
            return f"{bytes_:.3g} {unit}"
        bytes_ /= 1000
    return f"{bytes_:.3g} TB"
