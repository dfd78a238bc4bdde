"""Where the images of a table are, if they are not where it says: an option is proposed."""

from __future__ import annotations

import os
import posixpath
from itertools import islice

from tokenshards.pipeline.config import SourceConfig
from tokenshards.pipeline.sources.summary import Doubt
from tokenshards.pipeline.storage.store import Store

__all__ = ["where_images_are"]

SEARCHED = 20_000
"""Most files to look through for the images."""


def where_images_are(store: Store, places: list[str], config: SourceConfig) -> Doubt | None:
    """Return the doubt that none of the first paths of a table is a file, with the option that would find one; None if one is.

    Only the local disk is looked at.
    """
    if not store.is_local or any(os.path.lexists(place if place.startswith("/") else store.join(place)) for place in places):
        return None
    sentence = f"none of the first {len(places)} images is there, such as {places[0]}"
    option = "--image-root FOLDER or --path-template 'FOLDER/{COLUMN}.jpg' says where they are"
    if config.image_root is None and config.path_template is None:
        wanted = {posixpath.basename(place): place for place in places}
        found = next((path for path in _files(store.root) if _name_of(path, wanted)), None)
        if found is not None:
            name = _name_of(found, wanted)
            place = wanted[name]
            if "/" in place and not found.endswith(f"/{place}"):
                option = f"tokenize the folder of {found} with --label-from file:TABLE, which joins the rows by the names of the images"
            elif posixpath.basename(found) == name and found.endswith(f"/{place}"):
                option = f"--image-root {found.removesuffix(f'/{place}')}, where {found} is"
            else:
                folder, extension = posixpath.dirname(found), posixpath.splitext(found)[1]
                ending = "" if posixpath.basename(found) == name else extension
                column = config.image_column or "COLUMN"
                template = posixpath.join(folder, f"{{{column}}}{ending}")
                option = f"--path-template '{template}', because {found} is there"
    return Doubt(sentence=sentence, option=option)


def _name_of(path: str, wanted: dict[str, str]) -> str:
    name = posixpath.basename(path)
    stem = posixpath.splitext(name)[0]
    return name if name in wanted else stem if stem in wanted else ""


def _files(root: str) -> islice[str]:
    found = (
        posixpath.relpath(posixpath.join(folder, name), root)
        for folder, _, names in os.walk(root)
        for name in names
        if not name.startswith(".")
    )
    return islice(found, SEARCHED)
