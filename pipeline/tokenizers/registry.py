"""Tokenizer families by name. The first use imports a family, so that unused families cost nothing."""

from __future__ import annotations

import importlib
import importlib.metadata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache

from tokenshards.pipeline.errors import TokenizerError
from tokenshards.pipeline.optional_packages import install_hint, package_error
from tokenshards.pipeline.tokenizers.base import Tokenizer

__all__ = ["families", "load_family", "published_families", "register_family", "temporary_family"]


@dataclass(frozen=True, slots=True)
class _Entry:
    target: str
    """`package.module:Class`."""
    install: str
    """The command that installs missing packages of the module."""
    published: bool


ENTRY_POINTS = "tokenshards.tokenizers"
"""Group of entry points under which installed packages offer families: `name = "package.module:Class"`."""

_families: dict[str, _Entry] = {}


def register_family(name: str, target: str, install: str = "", *, published: bool = False) -> None:
    """Make `name` load the class at `target` (`package.module:Class`). A name that is taken raises TokenizerError.

    `install` is the command that brings the packages of the family, where tokenshards alone does not. A `published` family is a
    PublishedTokenizer: `import tokenizer` builds it from a checkpoint.
    """
    if name in _families:
        raise TokenizerError(f"tokenizer family {name!r} is already registered as {_families[name].target}; choose another name")
    module, colon, attribute = target.partition(":")
    if not (module and colon and attribute):
        raise TokenizerError(f"tokenizer family {name!r}: target is {target!r}; expected package.module:Class")
    _families[name] = _Entry(target, install or install_hint(), published)


@contextmanager
def temporary_family(name: str, target: str) -> Iterator[None]:
    """Register a family for the length of a `with` block."""
    register_family(name, target)
    try:
        yield
    finally:
        del _families[name]


def families() -> list[str]:
    """Return the names of all families, also those of installed packages, sorted."""
    return sorted(_families | _offered())


def published_families() -> list[str]:
    """Return the names of the families for published checkpoints, sorted. Every family of an installed package may be one."""
    return sorted(name for name, entry in (_offered() | _families).items() if entry.published)


def load_family(name: str) -> type[Tokenizer]:
    """Import and return the class of a family. Raises TokenizerError for an unknown name, ConfigError where its packages are missing.

    An installed package that offers the name of one of our families does not replace our family.
    """
    entry = _families.get(name) or _offered().get(name)
    if entry is None:
        raise TokenizerError(
            f"tokenizer family {name!r} is unknown; this version knows {', '.join(families())}. "
            "Install the version of tokenshards that wrote the tokenizer, the package that offers the family, or register it"
        )
    module, _, attribute = entry.target.partition(":")
    try:
        family: type[Tokenizer] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, RuntimeError) as error:  # torchvision built for another torch raises RuntimeError
        raise package_error(f"tokenizer family {name!r} needs {entry.target}", error, entry.install) from error
    return family


@cache
def _offered() -> dict[str, _Entry]:
    """Return the families of installed packages; none of their code is imported."""
    found: dict[str, _Entry] = {}
    for point in importlib.metadata.entry_points(group=ENTRY_POINTS):
        package = point.dist.name if point.dist is not None else "its package"
        if point.name in found and found[point.name].target != point.value:
            raise TokenizerError(
                f"tokenizer family {point.name!r} is offered by {found[point.name].target} and by {point.value}; expected one. "
                "Uninstall one of the two packages"
            )
        found[point.name] = _Entry(point.value, f"pip install --force-reinstall {package}", published=True)
    return found


_TORCH = install_hint("train")

register_family("patch-kmeans", "tokenshards.pipeline.tokenizers.kmeans.patch_kmeans:PatchKMeans")
register_family("layered-kmeans", "tokenshards.pipeline.tokenizers.layered.layered_kmeans:LayeredKMeans")
register_family("pixels", "tokenshards.pipeline.tokenizers.pixels.pixel_values:PixelValues")
register_family("latent-kmeans", "tokenshards.pipeline.tokenizers.fitted.latent_kmeans:LatentKMeans", _TORCH)
register_family("vq-autoencoder", "tokenshards.pipeline.tokenizers.fitted.vq_autoencoder:VqAutoencoder", _TORCH)
register_family("seit-vit-vqgan", "tokenshards.pipeline.tokenizers.published.seit_tokens:SeitTokens")
register_family("vit-vqgan", "tokenshards.pipeline.tokenizers.published.vit_vqgan:VitVqgan", _TORCH, published=True)
register_family("conv-vqgan", "tokenshards.pipeline.tokenizers.published.conv_vqgan:ConvVqgan", install_hint("vqgan"), published=True)
register_family("maskgit", "tokenshards.pipeline.tokenizers.published.maskgit:MaskGitVqgan", _TORCH, published=True)
register_family("open-magvit2", "tokenshards.pipeline.tokenizers.published.open_magvit2:OpenMagvit2", _TORCH, published=True)
register_family("vq-kd", "tokenshards.pipeline.tokenizers.published.vq_kd:VqKd", _TORCH, published=True)
register_family("titok", "tokenshards.pipeline.tokenizers.published.titok:TiTok", _TORCH, published=True)
register_family("one-d-piece", "tokenshards.pipeline.tokenizers.published.titok:OneDPiece", _TORCH, published=True)
register_family("python", "tokenshards.pipeline.tokenizers.custom.python_callable:PythonTokenizer")
register_family("torchscript", "tokenshards.pipeline.tokenizers.custom.torchscript:TorchScript", _TORCH, published=True)
