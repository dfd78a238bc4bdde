"""How small and how good are the tokens of a real neural encoder? Codes of several sizes, fitted to the latents of a published encoder.

    python infra/bench/latent_tokens.py --image look.png

Data and weights are those beside the repository, or those of --data and --weights. Tokenizers are fitted as in
`fit-tokenizer --kind latent-kmeans --mirrored`, to the images that are then encoded; all fits share the latents, which are computed once.
`token_share` is the token column of a shard with `--codec publish` over the bytes of the JPEGs. Its bars are 1 % for 391 codes, 1.2 % for
1,024 and 1.6 % for 8,192; `ratio` is the worst share over its bar. `psnr_db` compares pixels after the decoder; `psnr_db_unquantised` is
the loss of encoder and decoder alone.

Shapes: B images, H and W pixels, C channels of images and of latents, L sites, Q ids per site.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

import numpy as np  # noqa: E402
import torch  # noqa: E402
from network_sides import TAEF2  # noqa: E402
from PIL import Image  # noqa: E402
from tokenize_overhead import find_images  # noqa: E402

from tokenshards.pipeline.canonical import sha256_hex  # noqa: E402
from tokenshards.pipeline.images.decode import DECODER, decode_image  # noqa: E402
from tokenshards.pipeline.records import TokenBatch  # noqa: E402
from tokenshards.pipeline.shards.codecs import get_codec  # noqa: E402
from tokenshards.pipeline.shards.spec import Preprocess  # noqa: E402
from tokenshards.pipeline.shards.writer import ShardRows, encode_shard  # noqa: E402
from tokenshards.pipeline.tokenizers.base import Images  # noqa: E402
from tokenshards.pipeline.tokenizers.config import LatentFitConfig  # noqa: E402
from tokenshards.pipeline.tokenizers.fitted.latent_fit import fit_latent_kmeans  # noqa: E402
from tokenshards.pipeline.tokenizers.fitted.latent_kmeans import LatentEncoder, LatentKMeans, open_encoder  # noqa: E402

BARS = {391: 0.01, 1024: 0.012, 8192: 0.016}
IMAGES = 8


class RememberingEncoder(LatentEncoder):
    """Encodes each image once, however many tokenizers are fitted to it."""

    seen: dict[str, torch.Tensor]

    def encode(self, images_BHWC: Images) -> torch.Tensor:
        names = [sha256_hex(np.ascontiguousarray(image).tobytes()) for image in images_BHWC]
        new = [index for index, name in enumerate(names) if name not in self.seen]
        for index, latents_LC in zip(new, super().encode(images_BHWC[new]) if new else [], strict=True):
            self.seen[names[index]] = latents_LC
        return torch.stack([self.seen[name] for name in names])


def psnr_db(images: Images, decoded: Images) -> float:
    error_B = np.square(decoded.astype(np.float32) - images).mean(axis=(1, 2, 3))
    return float(np.mean(10 * np.log10(255**2 / np.maximum(error_B, 1e-5))))


def token_bytes(tokenizer: LatentKMeans, tokens: TokenBatch, names: list[str], sizes: list[int]) -> int:
    sides = np.full(len(names), tokenizer.spec.preprocess.size, np.int32)
    rows = ShardRows(
        sample_id=names,
        view=np.zeros(len(names), np.int16),
        label=[None] * len(names),
        meta={},
        orig_width=sides,
        orig_height=sides,
        orig_bytes=np.array(sizes, np.int64),
    )
    codec, tables = get_codec("publish"), tokenizer.codebook()
    return encode_shard(rows, tokens, spec=tokenizer.spec, codec=codec, label_type=None, meta_types={}, codebook=tables).token_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--data", type=Path, help="folder with JPEGs; default: the samples beside the repository, else generated ones")
    parser.add_argument("--weights", type=Path, default=TAEF2, help="folder with taef2_encoder.pth and taef2_decoder.pth")
    parser.add_argument("--codes", type=int, nargs="+", default=sorted(BARS))
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--shown", type=int, default=32, help="images that are decoded for PSNR")
    parser.add_argument("--image", type=Path, help="file for originals and reconstructions, one row a tokenizer")
    options = parser.parse_args()
    load = os.getloadavg()
    preprocess = Preprocess(size=options.size, filter="bicubic", exif_orientation=True, decoder=DECODER)
    if not options.weights.is_dir():
        parser.error(f"{options.weights} is not there; expected a folder with the two .pth files of taef2: give it as --weights")
    with tempfile.TemporaryDirectory() as root:
        files = [path.read_bytes() for path in find_images(options.data, Path(root))]
    if not files:
        parser.error(f"no images in {options.data}; expected a folder with JPEGs")
    names, sizes = [sha256_hex(data) for data in files], [len(data) for data in files]
    images = np.stack([decode_image(data, preprocess).pixels_HWC for data in files])
    opened = open_encoder(str(options.weights / "taef2_encoder.pth"), str(options.weights / "taef2_decoder.pth"))
    encoder = RememberingEncoder.from_arrays(opened.arrays())
    encoder.seen = {}
    shown = images[: options.shown]
    started = time.perf_counter()
    latents_BLC = encoder.encode(images)
    rate = len(images) / (time.perf_counter() - started)
    encoder.encode(images[:, :, ::-1])  # the fits also use mirror images
    side = options.size // 8
    plain = psnr_db(shown, encoder.decode(latents_BLC[: len(shown)], (side, side)))
    found: list[dict[str, Any]] = []
    strips = [shown[:IMAGES]]
    for codes in options.codes:
        config = LatentFitConfig(size=options.size, codes=codes, mirrored=True)
        started = time.perf_counter()
        tokenizer, statistics = fit_latent_kmeans(zip(names, images, strict=True), encoder, config, preprocess)
        seconds = time.perf_counter() - started
        tokens = tokenizer.encode(images)
        size = token_bytes(tokenizer, tokens, names, sizes)
        decoded = tokenizer.decode(TokenBatch(tokens.ids_BLQ[: len(shown)]))
        strips.append(decoded[:IMAGES])
        found.append(
            {
                "codes": statistics["levels"][0]["codes"],
                "token_share": round(size / sum(sizes), 5),
                "bar": BARS.get(codes),
                "token_bytes_per_image": round(size / len(images), 1),
                "bits_per_token": round(8 * size / tokens.ids_BLQ.size, 3),
                "psnr_db": round(psnr_db(shown, decoded), 2),
                "perplexity": statistics["levels"][0]["perplexity"],
                "dead_codes": statistics["levels"][0]["dead_codes"],
                "fit_seconds_without_encoding": round(seconds, 1),
            }
        )
        print(found[-1], flush=True)
    if options.image is not None:
        Image.fromarray(np.concatenate([np.concatenate(list(strip), axis=1) for strip in strips])).save(options.image)
    barred = [entry["token_share"] / entry["bar"] for entry in found if entry["bar"]]
    report = {
        "name": "latent_tokens",
        "ratio": round(max(barred), 3) if barred else None,
        "limit": 1,
        "tokenizers": found,
        "psnr_db_unquantised": round(plain, 2),
        "encoder_images_per_second": round(rate, 2),
        "images": len(images),
        "shown": len(shown),
        "jpeg_bytes_per_image": round(sum(sizes) / len(sizes)),
        "size": options.size,
        "device": str(latents_BLC.device),
        "cpu_count": os.cpu_count(),
        "load_average_before": [round(value, 2) for value in load],
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
