"""`preview`: draw what the tokens hold."""

from __future__ import annotations

import functools
from typing import Annotated

import typer

from tokenshards.pipeline.commands.options import AllowPrivateHosts, JsonFlag, Out, OutOptions, SrcOptions, StorageOptions, side_options
from tokenshards.pipeline.commands.output import print_json

__all__ = ["app"]

app = typer.Typer()


@app.command("preview", epilog="Example: tokenshards preview photos.tokens --to look.png -n 16 --source photos/")
def preview_command(
    out: Out,
    to: Annotated[str, typer.Option(metavar="FILE.png", help="Image file to write.")],
    n: Annotated[int | None, typer.Option("-n", help="Images to show.", show_default="16; 6 with --augment or --masked")] = None,
    sample_id: Annotated[list[str] | None, typer.Option("--id", help="Show this sample id; may be repeated.")] = None,
    label: Annotated[str | None, typer.Option("--class", help="Show images of this class only.")] = None,
    source: Annotated[str | None, typer.Option(help="Show the originals from this place, which was tokenized, beside the tokens.")] = None,
    augment: Annotated[bool, typer.Option("--augment", help="Show what each augmentation of `train` does, one column each.")] = False,
    seed: Annotated[int, typer.Option(help="Seed of the augmentations.")] = 8,
    recipe: Annotated[str | None, typer.Option(metavar="NAME|FILE.py", help="With --augment: the augmentation of this recipe.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="With --augment: another setting, augment.FIELD=VALUE; may be repeated.")
    ] = None,
    masked: Annotated[
        str | None, typer.Option(metavar="RUN", help="Show the images with 75 % hidden, and as this run of `pretrain` completes them.")
    ] = None,
    storage_option: StorageOptions = None,
    src_option: SrcOptions = None,
    out_option: OutOptions = None,
    allow_private_hosts: AllowPrivateHosts = False,
    as_json: JsonFlag = False,
) -> None:
    """Draw what the tokens hold: reconstructions, beside the originals (--source), augmentations (--augment) or completions (--masked)."""
    from tokenshards.pipeline.config import SourceConfig
    from tokenshards.pipeline.errors import ConfigError
    from tokenshards.pipeline.reports.previews import preview_dataset, preview_views

    options, sample_ids = side_options("out", out, storage_option, out_option), tuple(sample_id or ())
    if masked is not None and (augment or source is not None):
        raise ConfigError("--masked was given with --augment or --source; expected one of the three")
    if augment and source is not None:
        raise ConfigError("--augment and --source were both given; expected one of them: augmentations or originals beside the tokens")
    if masked is not None and (recipe is not None or settings):
        raise ConfigError(
            "--masked was given with --recipe or --set, which say how to augment; the run has its own settings: leave them out"
        )
    if not augment and (recipe is not None or settings):
        raise ConfigError("--recipe and --set say how to augment; give --augment too")
    if masked is not None:
        from tokenshards.pipeline.storage.store import Store
        from tokenshards.stem_adaptors.commands.masked_views import masked_views

        views = functools.partial(masked_views, Store(masked, storage_options=options), seed=seed)
        shown = preview_views(out, to, views, count=6 if n is None else n, sample_ids=sample_ids, label=label, options=options)
    elif augment:
        from tokenshards.stem_adaptors.commands.augmented_views import augmented_views

        views = functools.partial(augmented_views, seed=seed, recipe=recipe, settings=settings or ())
        shown = preview_views(out, to, views, count=6 if n is None else n, sample_ids=sample_ids, label=label, options=options)
    else:
        count = 16 if n is None else n
        reading = SourceConfig(
            storage_options=side_options("src", source, storage_option, src_option),
            allow_private_hosts=allow_private_hosts,
            unreadable="quarantine",
        )
        shown = preview_dataset(
            out, to, count=count, sample_ids=sample_ids, label=label, source_url=source, options=options, reading=reading
        )
    if as_json:
        print_json(shown.to_json())
    else:
        print(shown.text())
        if augment:
            print("embeddings are drawn as their nearest codes, so a change smaller than half the way to another code cannot be seen")
