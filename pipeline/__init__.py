"""Convert images in object stores to verified shards of discrete tokens; shards/SPEC.md is the contract."""

if not __name__.startswith("tokenshards."):
    raise ImportError(f"{__name__} is imported by its folder's name; expected `import tokenshards.pipeline`, so that no class exists twice")
