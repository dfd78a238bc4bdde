"""Classifiers from token shards: reader, augmentation, models, training."""

if not __name__.startswith("tokenshards."):
    raise ImportError(
        f"{__name__} is imported by its folder's name; expected `import tokenshards.stem_adaptors`, so that no class exists twice"
    )
