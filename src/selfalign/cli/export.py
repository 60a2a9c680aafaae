"""`selfalign export`, `push` and `merge`: the way out of a run."""

from pathlib import Path
from typing import Annotated, get_args

import typer

from selfalign.errors import SelfAlignError


def export(
    run: Annotated[Path, typer.Argument(help="Run directory.")],
    output: Annotated[
        Path | None, typer.Argument(help="Directory to write; in export/ of the run if not given.")
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            help="trl (JSON lines, as TRL takes them; the default), parquet (the same rows), autoalign, "
            "llamafactory or openrlhf."
        ),
    ] = None,
    what: Annotated[
        str,
        typer.Option(
            help="pairs, candidates, judgments, prompts, ift or eft; model for the last model, or a model by "
            "its name, such as M2."
        ),
    ] = "pairs",
    iteration: Annotated[
        int | None, typer.Option(help="Rows of this iteration only; of all if not given.")
    ] = None,
    licence: Annotated[
        str | None,
        typer.Option("--license", help="Licence that the card states, by its name on the hub."),
    ] = None,
) -> None:
    """Write rows of a run for other libraries, or a model that is whole, with a card.

    `selfalign export runs/quickstart` writes its preference pairs for TRL.
    `--to llamafactory --what eft` and the like write other rows for other libraries.
    `--what model` writes the last model, an adapter merged into its base.
    What is written loads with `load_dataset` or `from_pretrained`, and goes to the hub with `selfalign push`.
    """
    from selfalign.export import Format, What, export_model, export_rows
    from selfalign.methods.execute import recipe_of

    recipe_of(run)
    if what not in get_args(What):
        if to is not None or iteration is not None:
            raise SelfAlignError(f"--to and --iteration are for rows, not for {what}; leave them out")
        name = None if what == "model" else what
        place = output or run / "export" / what
        written = export_model(run, place, name, licence=licence)
        typer.echo(f"wrote {written} to {place}")
        return
    form = to or "trl"
    if form not in get_args(Format):
        raise SelfAlignError(f"--to {form}: not one of {', '.join(get_args(Format))}")
    of = "" if iteration is None else f"-iteration-{iteration}"
    place = output or run / "export" / f"{what}-{form}{of}"
    exported = export_rows(run, place, what, form, iteration=iteration, licence=licence)  # type: ignore[arg-type]
    counted = ", ".join(f"{number:,} {what} in {split}" for split, number in exported.rows.items())
    typer.echo(f"wrote {counted} to {place}")


def merge(
    adapter: Annotated[Path, typer.Argument(help="Adapter directory, such as a model/ of a LoRA run.")],
    output: Annotated[Path, typer.Argument(help="Directory to write the whole model to.")],
) -> None:
    """Merge a LoRA adapter into its base model."""
    from selfalign.models.merge import merge_adapter

    merge_adapter(adapter, output)
    typer.echo(f"wrote {output}")


def push(
    directory: Annotated[Path, typer.Argument(help="What `selfalign export` wrote.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository on the hub.")],
    public: Annotated[
        bool,
        typer.Option("--public", help="Let all see a new repository; else it is private."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="List what would go; ask and send nothing.")
    ] = False,
) -> None:
    """Put an exported model or data set on the Hugging Face Hub.

    The token is the hub's own: `hf auth login`, or HF_TOKEN.
    """
    from selfalign.export import push as send
    from selfalign.export import upload_of

    upload = upload_of(directory)
    for name, size in upload.files.items():
        typer.echo(f"{size:>16,}  {name}")
    total = f"{len(upload.files)} files, {sum(upload.files.values()):,} bytes, as a {upload.kind}"
    if dry_run:
        typer.echo(f"would send {total} to {repository} ({'public' if public else 'private'} if new)")
        return
    typer.echo(f"sending {total} to {repository}")
    typer.echo(send(upload, repository, public=public))
