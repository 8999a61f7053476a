"""Numbers as a person reads them: counts with suffixes, powers of ten, shares, seconds, bytes; and lists of names."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable

SUFFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))
TIED = "\u00a0"  # a space that never ends a line, before per cent signs
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def number(value: float | None, digits: int = 4) -> str:
    """Four significant digits, final zeros kept; a power of ten if the number is very large or small."""
    if value is None or math.isnan(value):
        return "unknown"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return power_of_ten(value, digits)
    if value == 0:
        return "0"
    if abs(value) >= 10**digits - 0.5:
        return f"{value:.0f}".replace("-", "−")
    return f"{value:#.{digits}g}".rstrip(".").replace("-", "−")


def exact(value: float | None) -> str:
    """Every digit of the float: what a reader needs to compute with it."""
    return number(value) if value is None or not math.isfinite(value) else repr(float(value))


def count(value: float | None) -> str:
    """12.3k, 4.56M: the suffixes that recipes understand."""
    if value is None or not math.isfinite(value):
        return number(value)
    if abs(value) >= 1e15:
        return power_of_ten(value, 3)
    for size, suffix in SUFFIXES:
        if abs(value) >= 0.9995 * size:
            return f"{value / size:.3g}{suffix}"
    return f"{value:.3g}"


def power_of_ten(value: float | None, digits: int = 3) -> str:
    """4.2×10¹²."""
    if value is None or not math.isfinite(value) or value == 0:
        return number(value) if value != 0 else "0"
    mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    power = "10" + str(int(exponent)).translate(_SUPERSCRIPT)
    return power if mantissa == "1" else f"{mantissa}×{power}".replace("-", "−")


def typed(value: float) -> str:
    """The number as a person types it in a command: 1.3e14, not 1.3e+14."""
    mantissa, exponent = f"{value:.4g}".partition("e")[::2]
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def signed(value: float | None) -> str:
    """+0.05, −0.2: three digits, for differences."""
    text = number(value, 3)
    return f"+{text}" if value is not None and value > 0 else text


def with_powers(text: str) -> str:
    """The text with numbers such as 2.4e+21 written as 2.4×10²¹."""
    return re.sub(r"\b\d+(?:\.\d+)?e[+-]?\d+\b", lambda match: power_of_ten(float(match[0])), text)


def percent(value: float | None) -> str:
    """Two significant digits; below a hundredth of a per cent, only that."""
    if value is None or not math.isfinite(value):
        return number(value)
    share = 100 * abs(value)
    if 0 < share < 0.01:
        return f"below 0.01{TIED}%"
    text = f"{share:.0f}" if share >= 10 else f"{share:#.2g}" if share else "0"
    return f"{'−' if value < 0 else ''}{text}{TIED}%"


def signed_percent(value: float | None) -> str:
    """+0.05 %, two decimals: for columns."""
    if value is None or not math.isfinite(value):
        return number(value)
    text = f"{100 * value:+.2f}".replace("-", "−")
    return ("0.00" if text[1:] == "0.00" else text) + f"{TIED}%"


def whole(value: float | None) -> str:
    """1,234,567: counts in tables, to the last unit."""
    if value is None or not math.isfinite(value):
        return number(value)
    return power_of_ten(value) if abs(value) >= 1e15 else f"{value:,.0f}"


def listed(items: list[str], most: int = 8) -> str:
    """a, b and c; a long list is cut and says so."""
    if len(items) > most:
        return f"{', '.join(items[:most])} and {len(items) - most} more"
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else "none"


def upper_first(text: str) -> str:
    """The text as a sentence begins."""
    return text[:1].upper() + text[1:]


def spelled(many: int) -> str:
    """Small numbers as words: five."""
    names = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
    return names[many] if 0 <= many < len(names) else str(many)


def unknown(what: str, name: object, known: Iterable[str]) -> str:
    """What every registry says of a name that it does not have: there is no optimizer 'adamv'; nearest is ..."""
    names = list(known)
    nearest = difflib.get_close_matches(str(name), names, n=1, cutoff=0)
    return f"there is no {what} {name!r}; nearest is {nearest[0]!r}, all: {', '.join(names)}"


def plural(many: int, one: str, several: str = "") -> str:
    return f"{many} {one if many == 1 else several or one + 's'}"


def duration(seconds: float) -> str:
    """Such as 90 s, 15 min, 3.5 h, 12 days, 30 years."""
    if seconds < 120:
        return f"{seconds:.3g} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    if seconds < 7 * 86400:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.0f} days" if seconds < 1000 * 86400 else f"{seconds / (365.25 * 86400):.3g} years"


def byte_count(number_of_bytes: float) -> str:
    """Such as 1.46 GB; powers of ten."""
    for unit in ("B", "kB", "MB", "GB"):
        if number_of_bytes < 999.5:
            return f"{number_of_bytes:.3g} {unit}"
        number_of_bytes /= 1000
    return f"{number_of_bytes:.3g} TB"
