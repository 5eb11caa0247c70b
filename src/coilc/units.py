"""Numbers with units, for people."""

from __future__ import annotations


def show_seconds(duration: float) -> str:
    """A duration in the unit that shows three digits: ``41.2 ms``."""
    if duration < 1e-3:
        return f"{duration * 1e6:.3g} us"
    return f"{duration * 1e3:.3g} ms" if duration < 1 else f"{duration:.3g} s"


def show_bytes(count: float) -> str:
    """Bytes in powers of ten: ``516.4 MB``."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} B" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.2f} GB"


def show_ratio(ratio: float) -> str:
    """``5.1x faster`` or ``1.3x slower``."""
    return f"{ratio:.1f}x faster" if ratio >= 1 else f"{1 / ratio:.1f}x slower"
