"""A directory of exported rows with its data-set card: what `load_dataset` and the hub take as it is."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from selfalign.errors import RunError
from selfalign.export.cards import dataset_card
from selfalign.export.contents import Part, Split, What, parts_of, rows_of
from selfalign.export.files import write_file
from selfalign.export.formats import SUFFIX, Format, Row, check_format, dataset_info, row_in
from selfalign.runs.files import hash_file, replacing, write_json, write_text


@dataclass(frozen=True)
class Exported:
    """What an export wrote."""

    directory: Path
    rows: dict[Split, int]
    """By split, none of them empty."""
    hashes: dict[str, str]
    """SHA-256 of each file of rows, by its name."""


def export_rows(
    root: Path,
    output: Path,
    what: What = "pairs",
    format: Format = "trl",
    *,
    iteration: int | None = None,
    licence: str | None = None,
) -> Exported:
    """Write the finished rows of a kind in a format, with a card, into a new directory.

    Args:
        root: The run directory.
        output: Directory to write; it appears whole or not at all.
        what: Kind of rows.
        format: Of the files.
        iteration: Rows of this iteration only, counted from 1; of all if `None`.
        licence: What the card states, by its name on the hub; it states none if `None`.

    Raises:
        RunError: There are no such rows, the format has no place for them, or the output exists.
        DataError: A file of the run is damaged.
    """
    check_format(what, format)
    parts = parts_of(root, what, iteration)
    refuse_existing(output)
    name = f"{root.resolve().name}_{what}"
    counts: dict[Split, int] = {}
    hashes: dict[str, str] = {}
    with replacing(output) as temporary:
        temporary.mkdir()
        info: Row = {}
        for split in dict.fromkeys(part.split for part in parts):
            file = temporary / f"{split}.{SUFFIX[format]}"
            number = write_file(file, _rows([part for part in parts if part.split == split], format))
            if not number:
                file.unlink()
                continue
            counts[split], hashes[file.name] = number, hash_file(file)
            info |= dataset_info(name if split == "train" else f"{name}_{split}", file.name, what)
        if format == "llamafactory":
            write_json(temporary / "dataset_info.json", info)
        card = dataset_card(root, parts, format, counts, hashes, licence)
        write_text(temporary / "README.md", card)
    return Exported(output, counts, hashes)


def refuse_existing(output: Path) -> None:
    """Refuse to write over what is there.

    Raises:
        RunError: The path exists.
    """
    if output.exists():
        raise RunError(f"{output}: exists already; remove it, or give another directory")


def _rows(parts: list[Part], format: Format) -> Iterator[Row]:
    return (row_in(format, record, part.iteration) for part in parts for record in rows_of(part))
