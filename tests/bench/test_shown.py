"""What becomes of a run: charts, the document, cells of the tables."""

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from bench import document
from bench.cells import cell
from bench.results import save
from harness import run
from harness.runs import results, row

ROOT = Path(__file__).parent.parent.parent

RUN = results(
    row("native", [2e-6]),
    row("shiftfs", [5e-5, 4e-5, 6e-5], requests={"LOOKUP": 1.01}),
    row("bindfs", [2.5e-5]),
    row("shiftfs", [1e-6], "hot stat"),
    row("bindfs", [4e-6], "hot stat"),
    row("native", [1e-6], "hot stat"),
    *(
        row(name, [1e-6 * x], f"list, {x} entries", "listing", series="list by entries", x=x)
        for x in (1, 1000)
        for name in ("native", "shiftfs", "bindfs")
    ),
    row("python", [4e-6], "decode LOOKUP", "codec"),
    left_out={"mergerfs": "mergerfs is not on this machine"},
)


def shown(directory: Path, *words: str | Path) -> str:
    """What `python -m bench show` says of the run."""
    save(RUN, directory / "run.json")
    command = [sys.executable, "-P", "-c", f"import sys; sys.path.append({str(ROOT)!r})"]
    command[-1] += "; from bench.__main__ import main; sys.exit(main(sys.argv[1:]))"
    return run([*command, "show", directory / "run.json", *words]).stdout


def test_charts_are_well_formed_and_name_every_subject(tmp_path: Path) -> None:
    shown(tmp_path, "--plot", tmp_path / "charts")
    assert sorted(path.name for path in (tmp_path / "charts").iterdir()) == [
        "listing-list-by-entries.png",
        "listing-list-by-entries.svg",
        "lookup.png",
        "lookup.svg",
    ]
    for path in (tmp_path / "charts").glob("*.svg"):
        root = ElementTree.parse(path).getroot()
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        assert {"native", "shiftfs", "bindfs"} <= {text.text for text in root.iter("{http://www.w3.org/2000/svg}text")}
        assert path.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_the_terminal_shows_every_group_and_the_targets(tmp_path: Path) -> None:
    said = shown(tmp_path, "--targets")
    for part in ("lookup", "listing", "codec", "250,000/s", "50.0 us (25.00)", "without mergerfs", "missed"):
        assert part in said


@pytest.mark.parametrize(
    ("job", "subject", "shown"),
    [
        ("cold stat", "shiftfs", "50.0 us (25.00)"),  # of native
        ("cold stat", "bindfs", "25.0 us (2.00)"),  # what shiftfs takes of it
        ("hot stat", "bindfs", "4.0 us (0.25)"),
        ("cold stat", "fuse-overlayfs", "-"),
    ],
)
def test_a_cell_has_the_median_and_the_ratio(job: str, subject: str, shown: str) -> None:
    assert cell(RUN, "lookup", job, subject) == shown


def test_parts_are_shown_by_operations_per_second() -> None:
    assert cell(RUN, "codec", "decode LOOKUP", "python") == "250,000/s"


def test_the_document_says_what_is_slow_and_what_is_not_there() -> None:
    text = document.rendered(RUN)
    assert "| lookup: cold stat | shiftfs | bindfs | 2.00 |" in text
    assert "hot stat | shiftfs | bindfs" not in text.partition("## All of it")[0].partition("## What is slow")[2]
    assert "Without mergerfs: mergerfs is not on this machine." in text
    assert "load meanwhile 0.5 to 1.5" in text


def test_what_is_written_by_hand_stays(tmp_path: Path) -> None:
    path = tmp_path / "performance.md"
    path.write_text(f"before\n\n{document.BEGIN}\nof yesterday\n{document.END}\n\nafter\n")
    document.write(RUN, path, {})
    document.write(RUN, path, {})
    text = path.read_text()
    assert text.startswith(f"before\n\n{document.BEGIN}\n")
    assert text.endswith(f"{document.END}\n\nafter\n")
    assert "of yesterday" not in text
    assert text.count("## The run") == 1


def test_a_document_without_marks_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "performance.md"
    path.write_text("all by hand\n")
    with pytest.raises(ValueError, match="nobody knows what may be replaced"):
        document.write(RUN, path, {})
    assert path.read_text() == "all by hand\n"


def test_charts_are_shown_where_their_group_is(tmp_path: Path) -> None:
    document.write(RUN, tmp_path / "performance.md", {"listing": [tmp_path / "charts" / "listing-list"]})
    text = (tmp_path / "performance.md").read_text()
    assert "![listing-list](charts/listing-list.svg)" in text.partition("### listing")[2].partition("###")[0]
