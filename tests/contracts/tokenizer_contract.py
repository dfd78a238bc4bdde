"""What every tokenizer must do. Inherit TokenizerContract in a class named Test…, give make_tokenizer, and pytest runs all of it."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import pytest

from tokenshards.pipeline.errors import CorruptObjectError, FormatVersionError, MissingObjectError, TokenizerError
from tokenshards.pipeline.records import TokenBatch
from tokenshards.pipeline.shards.spec import TokenizerSpec
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.base import DecodeNotSupported, Tokenizer, codebook_sha256
from tokenshards.pipeline.tokenizers.directory import load_tokenizer, save_tokenizer
from tokenshards.pipeline.tokenizers.registry import families, load_family, temporary_family


def sample_images(count: int, size: int, seed: int = 0) -> np.ndarray:
    """Smooth coloured blobs with a little noise: close enough to photographs for codes to repeat."""
    rng = np.random.default_rng(seed)
    cells = rng.integers(0, 256, (count, 4, 4, 3))
    smooth = cells.repeat(-(-size // 4), axis=1).repeat(-(-size // 4), axis=2)[:, :size, :size]
    return np.clip(smooth + rng.integers(-6, 7, (count, size, size, 3)), 0, 255).astype(np.uint8)


def token_rows(tokens: TokenBatch) -> list[tuple[list[list[int]], list[int] | None]]:
    """Return the ids and the shape of each row without padding, so that batches padded differently compare equal."""
    rows = []
    for index in range(len(tokens)):
        length = tokens.ids_BLQ.shape[1]
        shape = None
        if tokens.lengths_B is not None:
            length = int(tokens.lengths_B[index])
        if tokens.shapes_BD is not None:
            shape = tokens.shapes_BD[index].tolist()
            length = int(np.prod(shape))
        rows.append((tokens.ids_BLQ[index, :length].tolist(), shape))
    return rows


_SHARED: dict[type, Tokenizer] = {}


class TokenizerContract:
    min_reencode_agreement = 0.9
    """Share of ids that encoding a reconstruction must give back."""
    flips_per_file = 40

    def make_tokenizer(self) -> Tokenizer:
        raise NotImplementedError

    def shared_tokenizer(self) -> Tokenizer:
        """Return the tokenizer of all tests of the class that need no new one: making a network takes longer than most tests."""
        if type(self) not in _SHARED:
            _SHARED[type(self)] = self.make_tokenizer()
        return _SHARED[type(self)]

    def make_images(self, count: int) -> np.ndarray:
        return sample_images(count, self.shared_tokenizer().spec.preprocess.size)

    @pytest.fixture(autouse=True)
    def _registered(self) -> Iterator[None]:
        tokenizer = self.shared_tokenizer()
        family, kind = tokenizer.spec.family, type(tokenizer)
        known = family in families()
        with nullcontext() if known else temporary_family(family, f"{kind.__module__}:{kind.__qualname__}"):
            yield

    def test_family_loads_by_name(self) -> None:
        tokenizer = self.shared_tokenizer()
        assert load_family(tokenizer.spec.family) is type(tokenizer)

    def test_spec_survives_json_and_keeps_its_fingerprint(self) -> None:
        spec = self.shared_tokenizer().spec
        again = TokenizerSpec.from_json(json.loads(json.dumps(spec.to_json())))
        assert again == spec
        assert again.fingerprint == spec.fingerprint == self.make_tokenizer().spec.fingerprint
        assert len(spec.fingerprint) == 64

    def test_ids_fit_layout_and_vocabulary(self) -> None:
        tokenizer = self.shared_tokenizer()
        spec, layout = tokenizer.spec, tokenizer.spec.layout
        tokens = tokenizer.encode(self.make_images(5))
        ids = tokens.ids_BLQ
        assert ids.dtype == spec.id_dtype
        assert ids.shape[0] == len(tokens) == 5 and ids.shape[2] == layout.ids_per_site
        assert ids.shape[1] == layout.sites or (layout.variable and ids.shape[1] <= layout.sites)
        for q, vocabulary in enumerate(spec.vocabulary):
            assert ids[:, :, q].max() < vocabulary
        assert (tokens.lengths_B is not None) == (layout.variable and layout.kind == "sequence")
        assert (tokens.shapes_BD is not None) == (layout.shape_dims > 0)
        if tokens.lengths_B is not None:
            assert tokens.lengths_B.dtype == np.int32
        if tokens.shapes_BD is not None:
            assert tokens.shapes_BD.dtype == np.int32 and tokens.shapes_BD.shape == (5, layout.shape_dims)
            assert (tokens.shapes_BD <= np.array(layout.grid)).all()
        for index, (row, _) in enumerate(token_rows(tokens)):
            assert layout.min_sites <= len(row) <= layout.sites
            assert not ids[index, len(row) :].any(), "padding must be zero"

    def test_encoding_is_deterministic_and_tells_images_apart(self) -> None:
        tokenizer = self.shared_tokenizer()
        images = self.make_images(4)
        first, second = tokenizer.encode(images), tokenizer.encode(images.copy())
        assert token_rows(first) == token_rows(second) == token_rows(self.make_tokenizer().encode(images))
        assert token_rows(first)[0] != token_rows(first)[1]

    def test_images_are_left_as_they_were(self) -> None:
        images = self.make_images(2)
        images.flags.writeable = False
        self.shared_tokenizer().encode(images)

    def test_no_images_give_no_rows(self) -> None:
        tokenizer = self.shared_tokenizer()
        spec, tokens = tokenizer.spec, tokenizer.encode(self.make_images(2)[:0])
        assert token_rows(tokens) == [] and tokens.ids_BLQ.dtype == spec.id_dtype
        assert tokens.ids_BLQ.shape[0] == 0 and tokens.ids_BLQ.shape[2] == spec.layout.ids_per_site

    def test_images_and_ids_of_another_form_are_refused(self) -> None:
        tokenizer = self.shared_tokenizer()
        images = self.make_images(2)
        tokens = tokenizer.encode(images)
        for wrong in (images.astype(np.float32), images[..., :-1, :, :], images[..., :1]):
            with pytest.raises(TokenizerError):
                tokenizer.encode(wrong)
        wide = tokens.ids_BLQ.astype(np.uint64)
        wide[0, 0, 0] = tokenizer.spec.vocabulary[0]
        with pytest.raises(TokenizerError):
            tokenizer.decode(TokenBatch(wide, tokens.lengths_B, tokens.shapes_BD))

    def test_a_blank_slot_changes_no_other_row(self) -> None:
        tokenizer = self.shared_tokenizer()
        images = self.make_images(4)
        before = token_rows(tokenizer.encode(images))
        images[2] = 0
        after = token_rows(tokenizer.encode(images))
        assert [after[i] for i in (0, 1, 3)] == [before[i] for i in (0, 1, 3)]

    def test_decoding_gives_images_that_encode_alike(self) -> None:
        tokenizer = self.shared_tokenizer()
        images = self.make_images(3)
        tokens = tokenizer.encode(images)
        try:
            decoded = tokenizer.decode(tokens)
        except DecodeNotSupported as error:
            assert isinstance(error, TokenizerError)
            return
        assert decoded.shape == images.shape and decoded.dtype == np.uint8
        same = [
            np.mean(np.array(a) == np.array(b)) if len(a) == len(b) else 0.0
            for (a, _), (b, _) in zip(token_rows(tokens), token_rows(tokenizer.encode(decoded)), strict=True)
        ]
        assert np.mean(same) >= self.min_reencode_agreement

    def test_a_prefix_decodes_where_the_layout_says_so(self) -> None:
        tokenizer = self.shared_tokenizer()
        if not tokenizer.spec.layout.prefix_decodable:
            return
        images = self.make_images(3)
        short = tokenizer.spec.layout.min_sites
        tokens = tokenizer.encode(images)
        prefix = TokenBatch(tokens.ids_BLQ[:, :short], np.full(3, short, np.int32))
        assert tokenizer.decode(prefix).shape == images.shape

    def test_codebook_is_the_one_the_spec_names(self) -> None:
        tokenizer = self.shared_tokenizer()
        tables, info = tokenizer.codebook(), tokenizer.spec.codebook
        if info is None:
            assert tables == {}
            return
        assert codebook_sha256(tables) == info.sha256
        assert sorted(tables) == sorted(f"level_{q}" for q in range(len(tables)))
        assert tuple(tables[f"level_{q}"].shape[1] for q in range(len(tables))) == info.dims
        assert all(table.dtype == np.float32 and table.ndim == 2 for table in tables.values())

    @pytest.mark.parametrize("where", ["disk", "memory"])
    def test_saved_and_loaded_it_is_the_same(self, where: str, tmp_path: object) -> None:
        store = Store(str(tmp_path) if where == "disk" else f"memory://tokenizer-{uuid.uuid4().hex}")
        tokenizer = self.shared_tokenizer()
        digests = save_tokenizer(tokenizer, store, "tokenizer", {"images": 3})
        assert save_tokenizer(self.make_tokenizer(), store, "again", {"images": 3}) == {
            path.replace("tokenizer/", "again/", 1): digest for path, digest in digests.items()
        }, "equal tokenizers must give equal bytes"
        loaded = load_tokenizer(store, "tokenizer")
        assert loaded.spec == tokenizer.spec and loaded.spec.fingerprint == tokenizer.spec.fingerprint
        images = self.make_images(3)
        assert token_rows(loaded.encode(images)) == token_rows(tokenizer.encode(images))

    def test_damage_is_refused(self, tmp_path: object) -> None:
        store = Store(str(tmp_path))
        rng = np.random.default_rng(0)
        for path in save_tokenizer(self.shared_tokenizer(), store, "", {"images": 3}):
            intact = store.read(path)
            for bit in rng.choice(len(intact) * 8, self.flips_per_file, replace=False):
                damaged = bytearray(intact)
                damaged[bit // 8] ^= 1 << (bit % 8)
                store.fs.pipe_file(store.join(path), bytes(damaged))
                with pytest.raises((CorruptObjectError, TokenizerError, FormatVersionError)):
                    load_tokenizer(store)
            store.fs.pipe_file(store.join(path), intact[: len(intact) // 2])
            with pytest.raises(CorruptObjectError):
                load_tokenizer(store)
            store.delete(path)
            with pytest.raises(MissingObjectError):
                load_tokenizer(store)
            store.write(path, intact)
        load_tokenizer(store)

    def test_tokens_survive_a_shard(self) -> None:
        from tokenshards.pipeline.shards.codecs import get_codec
        from tokenshards.pipeline.shards.reader import ShardReader
        from tokenshards.pipeline.shards.writer import ShardRows, encode_shard

        tokenizer = self.shared_tokenizer()
        tokens = tokenizer.encode(self.make_images(5))
        rows = ShardRows(
            sample_id=[f"{index}.png" for index in range(5)],
            view=np.zeros(5, np.int16),
            label=[None] * 5,
            meta={},
            orig_width=np.full(5, 10, np.int32),
            orig_height=np.full(5, 10, np.int32),
            orig_bytes=np.full(5, 100, np.int64),
        )
        encoded = encode_shard(
            rows,
            tokens,
            spec=tokenizer.spec,
            codec=get_codec("default"),
            label_type=None,
            meta_types={},
            codebook=tokenizer.codebook(),
            extra_metadata={},
        )
        back = ShardReader.open(encoded.data).read().tokens
        assert token_rows(back) == token_rows(tokens)
        assert back.ids_BLQ.dtype == tokenizer.spec.id_dtype
