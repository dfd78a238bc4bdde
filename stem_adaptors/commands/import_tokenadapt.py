"""`import tokenadapt`: take a TokenAdapt that another project published."""

from __future__ import annotations

from typing import Annotated

import typer

from tokenshards.pipeline.commands.options import JsonFlag, OutOptions, StorageOptions, TokenizerOptions, parse_options, side_options
from tokenshards.pipeline.commands.output import print_json
from tokenshards.pipeline.commands.process import prepare_for_torch

__all__ = ["app"]

app = typer.Typer()


@app.command("tokenadapt", epilog="Example: tokenshards import tokenadapt tokenadapt.ckpt --tokenizer imagenet.tokens --out seit.adapt")
def import_tokenadapt_command(
    weights: Annotated[str, typer.Argument(help="Published weights (.ckpt, .pth, .safetensors), local or any fsspec URL.")],
    tokenizer: Annotated[str, typer.Option(help="Tokenizer directory or dataset whose ids the weights know.")],
    out: Annotated[str, typer.Option(metavar="ADAPT", help="Directory for the result, local or any fsspec URL.")],
    storage_option: StorageOptions = None,
    out_option: OutOptions = None,
    tokenizer_option: TokenizerOptions = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a fitted TokenAdapt of published weights of SeiT++; nothing of the file is run, and every weight must fit."""
    prepare_for_torch()
    from tokenshards.pipeline.shards.codebook import load_codebook
    from tokenshards.pipeline.storage.store import Store, display_url
    from tokenshards.pipeline.tokenizers.directory import CODEBOOK_NAME, load_spec, resolve_tokenizer
    from tokenshards.pipeline.tokenizers.networks.checkpoint_file import read_state_dict
    from tokenshards.stem_adaptors.augment.adapt_file import require_free, save_adapter
    from tokenshards.stem_adaptors.augment.adapt_published import adapter_of_published

    target = Store(out, storage_options=side_options("out", out, storage_option, out_option))
    require_free(target)
    store, prefix = resolve_tokenizer(tokenizer, side_options("tokenizer", tokenizer, storage_option, tokenizer_option))
    spec, tables = load_spec(store, prefix), {}
    if spec.codebook is not None:
        path = f"{prefix}/{CODEBOOK_NAME}" if prefix else CODEBOOK_NAME
        tables = load_codebook(store.read(path), spec.codebook.sha256, path)
    state = read_state_dict(weights, parse_options(storage_option))
    adapter = adapter_of_published(state, spec, tables, display_url(weights))
    about = save_adapter(adapter, spec, target, "", settings={"imported": display_url(weights)}, fidelity={})
    if as_json:
        print_json({"out": target.url, "fingerprint": about.fingerprint, "tensors": len(state), "out_grid": list(about.sizes.out_grid)})
    else:
        sizes = f"{len(state)} tensors, {adapter.grid} sites become {about.sizes.out_grid}"
        print(f"{target.url}: {sizes}. Use it with: train --tokenadapt {target.url}")
