"""How a number is shown beside those that it is compared with. The terminal and the document show the same."""

from .results import MICRO_SUBJECTS, Results, Row
from .subjects import KERNEL, NATIVE, SINGLE


def cell(results: Results, group: str, job: str, subject: str) -> str:
    """A median and a ratio."""
    row = results.row(group, job, subject)
    if row is None:
        return "-"
    ratio = compared(results, row)
    return f"{quantity(row)} ({ratio:.2f})" if ratio is not None else quantity(row)


def compared(results: Results, row: Row) -> float | None:
    """Of a peer: what ours takes of its time. Of ours: its multiple of native, or where that does not take part, of
    the kernel's overlayfs."""
    if row.subject in results.ours:
        for reference in (NATIVE, KERNEL):
            ratio = results.ratio(row.group, row.job, row.subject, reference)
            if ratio is not None:
                return ratio
        return None
    return results.ratio(row.group, row.job, results.rivals.get(row.subject, SINGLE), row.subject)


def quantity(row: Row) -> str:
    """A median in a unit that can be read."""
    if row.unit != "s":
        return f"{row.median:.0f} {row.unit}"
    if row.subject in MICRO_SUBJECTS:
        return f"{1 / row.median:,.0f}/s"
    for unit, factor in (("s", 1.0), ("ms", 1e3)):
        if row.median * factor >= 1:
            return f"{row.median * factor:.2f} {unit}"
    return f"{row.median * 1e6:.1f} us" if row.median >= 1e-6 else f"{row.median * 1e9:.0f} ns"
