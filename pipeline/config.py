"""Configuration: one frozen dataclass per part, and each part gets only its own. Standard library only."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal, get_args

from tokenshards.pipeline.errors import require as _require
from tokenshards.pipeline.view_policy import ViewPolicy

__all__ = [
    "ALLOW_PYTHON",
    "DECODE_PLACES",
    "Filter",
    "FSQ_LEVELS",
    "FitConfig",
    "ImportConfig",
    "LatentFitConfig",
    "PlanConfig",
    "QUANTIZERS",
    "RayConfig",
    "Resize",
    "RetryConfig",
    "RunConfig",
    "SOURCE_RULES",
    "SourceConfig",
    "VqFitConfig",
]

ALLOW_PYTHON = "TOKENSHARDS_ALLOW_PYTHON"
"""Environment variable: the callables, modules or packages that tokenizers of the family `python` may run."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryConfig:
    """How often and how long to retry a failing store before the failure counts."""

    attempts: int = 8
    first_delay_seconds: float = 0.2
    max_delay_seconds: float = 10.0

    def __post_init__(self) -> None:
        _require(self.attempts >= 1, "retry attempts", self.attempts, "at least 1")


UNREADABLE = ("stop", "quarantine")
_OF_A_RUN = {"storage_options", "allow_private_hosts", "unreadable"}
SOURCE_RULES = 2
"""Version of the rules by which inputs and labels are found.

1: A `.txt` member of a tar is the label if the tar holds no other label. Hidden files are inputs. One image makes a folder an image folder.
2: A `.txt` member is a label or a meta column only if an option names it. Hidden files are left out. A folder that also holds tars or
Parquet files is an image folder only if it holds more images than those.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceConfig:
    """Which files are inputs, and which columns or keys hold image, id, label and meta."""

    all_files: bool = False
    """Take every file, not only those whose extension Pillow reads."""
    image_column: str | None = None
    """Table column with bytes or URIs; found by name and type when None."""
    id_column: str | None = None
    """Table column whose values become sample ids; `path#row` when None."""
    label: str | None = None
    """Table column, key of a tar's .json, or suffix of a text member such as `txt`, that holds the label; found by name when None."""
    no_labels: bool = False
    """Take no labels, even if the source holds some."""
    meta: tuple[str, ...] = ()
    """Table columns, .json keys or suffixes of text members kept as `meta.*` columns."""
    tars_per_shard: int = 1
    rules: int = SOURCE_RULES
    """A plan records the rules it was made with, because other rules would give other rows for the same inputs."""
    storage_options: dict[str, Any] = field(default_factory=dict, repr=False)
    allow_private_hosts: bool = False
    """Tables may name hosts whose addresses are not public."""
    unreadable: str | None = None
    """What to do with an object that cannot be read while its store answers for others: `stop` or `quarantine`. None means `stop` in the
    user's own stores and `quarantine` for URLs of foreign hosts in a table."""

    def __post_init__(self) -> None:
        _require(not (self.no_labels and self.label), "--label", self.label, "nothing beside --no-labels")
        _require(self.tars_per_shard >= 1, "--tars-per-shard", self.tars_per_shard, "at least 1")
        _require(self.unreadable in (None, *UNREADABLE), "--unreadable", self.unreadable, " or ".join(UNREADABLE))

    def planned(self) -> dict[str, Any]:
        """Return the fields that decide the shards, in JSON types; a plan records them. Each run brings its own access options."""
        shaping = {name: value for name, value in asdict(self).items() if name not in _OF_A_RUN}
        return {**shaping, "meta": list(self.meta)}

    def with_planned(self, planned: dict[str, Any]) -> SourceConfig:
        """Return this config with the fields that a plan recorded in place of its own."""
        return replace(self, **{**planned, "meta": tuple(planned["meta"])})


@dataclass(frozen=True, kw_only=True, slots=True)
class FitConfig:
    """How the default tokenizer is fitted."""

    size: int | None = None
    """Side in pixels; None takes the largest of 32, 64, 128 not above the median short side of the sample."""
    patch: int = 4
    levels: int = 2
    codes: int = 256
    beam: int = 1
    """Candidate sums kept per patch from level to level during encoding; 1 takes the nearest code of each level."""
    sample: int = 20_000
    """Most images to fit to."""
    seed: int = 0
    iterations: int = 12
    max_patches: int = 100_000

    def __post_init__(self) -> None:
        _require(1 <= self.patch <= 64, "--patch", self.patch, "1 to 64 pixels")
        if self.size is not None:
            ok = 8 <= self.size <= 4096 and self.size % self.patch == 0
            _require(ok, "--size", self.size, f"8 to 4096 pixels, a multiple of --patch {self.patch}")
        _require(1 <= self.levels <= 8, "--levels", self.levels, "1 to 8")
        _require(2 <= self.codes <= 65_536, "--codes", self.codes, "2 to 65536")
        _require(1 <= self.beam <= 64, "--beam", self.beam, "1 to 64")
        _require(self.sample >= 1, "--sample", self.sample, "at least 1 image")


@dataclass(frozen=True, kw_only=True, slots=True)
class LatentFitConfig:
    """How codes are fitted to the latents of a published encoder."""

    size: int = 256
    """Side in pixels, a multiple of 8."""
    levels: int = 1
    codes: int = 1024
    mirrored: bool = False
    """Also fit to each image mirrored, which gives twice as many latents."""
    sample: int = 20_000
    """Most images to fit to."""
    seed: int = 0
    iterations: int = 12
    max_latents: int = 600_000

    def __post_init__(self) -> None:
        _require(8 <= self.size <= 4096 and self.size % 8 == 0, "--size", self.size, "8 to 4096 pixels, a multiple of 8")
        _require(1 <= self.levels <= 8, "--levels", self.levels, "1 to 8")
        _require(2 <= self.codes <= 65_536, "--codes", self.codes, "2 to 65536")
        _require(self.sample >= 1, "--sample", self.sample, "at least 1 image")


FSQ_LEVELS = {256: (8, 6, 5), 1024: (8, 5, 5, 5), 4096: (7, 5, 5, 5, 5), 16384: (8, 8, 8, 6, 5), 65536: (8, 8, 8, 5, 5, 5)}
"""Number of codes, roughly -> levels of each dimension (Mentzer et al. 2023, arXiv 2309.15505, table 1)."""
QUANTIZERS = ("vq", "fsq", "lfq")


@dataclass(frozen=True, kw_only=True, slots=True)
class VqFitConfig:
    """How a small autoencoder with codes is trained."""

    size: int | None = None
    """Side in pixels; None takes the largest of 32, 64, 128 not above the median short side of the sample."""
    patch: int = 4
    """Side of a site in pixels."""
    quantizer: str = "vq"
    """`vq`: code tables updated by moving averages, residual if there are several levels; `fsq`, `lfq`: rounding, no tables to learn."""
    levels: int = 2
    codes: int = 256
    code_width: int | None = None
    """Values per code of `vq`; None takes 16, or the number of values in a patch if that is smaller."""
    width: int = 64
    """Channels of the networks."""
    depth: int = 2
    """Blocks of two convolutions in each network."""
    epochs: int = 8
    batch: int = 32
    learning_rate: float = 1e-3
    decay: float = 0.95
    """Decay of the moving averages of `vq` per step."""
    commitment: float = 1.0
    """Weight of the term that pulls vectors to their codes; the squared error of pixels from -1 to 1 has weight 1."""
    perceptual: str | None = None
    """timm model for a perceptual loss: its features of input and output should agree."""
    perceptual_weight: float = 0.1
    sample: int = 20_000
    """Most images to train on."""
    seed: int = 0

    def __post_init__(self) -> None:
        _require(1 <= self.patch <= 32, "--patch", self.patch, "1 to 32 pixels")
        if self.size is not None:
            ok = 8 <= self.size <= 1024 and self.size % self.patch == 0
            _require(ok, "--size", self.size, f"8 to 1024 pixels, a multiple of --patch {self.patch}")
        _require(self.quantizer in QUANTIZERS, "--quantizer", self.quantizer, " or ".join(QUANTIZERS))
        most = 8 if self.quantizer == "vq" else 1
        _require(1 <= self.levels <= most, "--levels", self.levels, f"1 to {most} for --quantizer {self.quantizer}")
        if self.quantizer == "fsq":
            _require(self.codes in FSQ_LEVELS, "--codes", self.codes, f"one of {', '.join(map(str, FSQ_LEVELS))} for --quantizer fsq")
        elif self.quantizer == "lfq":
            ok = 2 <= self.codes <= 65_536 and self.codes.bit_count() == 1
            _require(ok, "--codes", self.codes, "a power of 2 up to 65536 for --quantizer lfq")
        else:
            _require(2 <= self.codes <= 65_536, "--codes", self.codes, "2 to 65536")
        pixels = 3 * self.patch**2
        ok = self.code_width is None or (self.quantizer == "vq" and 1 <= self.code_width <= pixels)
        _require(ok, "--code-width", self.code_width, f"1 to {pixels}, the values of a patch, and --quantizer vq")
        _require(8 <= self.width <= 2048, "--width", self.width, "8 to 2048 channels")
        _require(0 <= self.depth <= 32, "--depth", self.depth, "0 to 32 blocks")
        _require(1 <= self.epochs <= 10_000, "--epochs", self.epochs, "1 to 10000")
        _require(1 <= self.batch <= 4096, "--batch", self.batch, "1 to 4096")
        _require(0 < self.learning_rate <= 1, "--learning-rate", self.learning_rate, "above 0, up to 1")
        _require(0 <= self.decay < 1, "decay", self.decay, "0 up to 1")
        _require(self.commitment >= 0, "commitment", self.commitment, "0 or more")
        _require(self.perceptual_weight >= 0, "--perceptual-weight", self.perceptual_weight, "0 or more")
        _require(self.sample >= 1, "--sample", self.sample, "at least 1 image")

    @property
    def vq_width(self) -> int:
        """Values per code of `vq`, with the default filled in."""
        return self.code_width or min(16, 3 * self.patch**2)


Resize = Literal["squash", "crop"]
Filter = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImportConfig:
    """How a published tokenizer is imported; None keeps the setting of the project that published it."""

    resize: Resize | None = None
    filter: Filter | None = None
    dtype: str = "float32"
    """Type of the matrix products in its networks; the search for codes always uses float32."""
    decoder: bool = True
    """Keep the decoder, which is about half of the weights."""
    size: int | None = None
    """Side in pixels, for networks that take any side."""
    preset: str | None = None
    """Whose preprocessing and settings to use, for networks that several projects publish."""
    ema: bool = True
    """Take the moving averages of the parameters if the checkpoint has them."""
    max_tokens: int | None = None
    """Keep only the first so many ids of an image, for networks whose ids go from coarse to fine."""
    decoder_file: str | None = None
    """Path or URL of the decoder, for networks that are published as two files."""
    vocabulary: tuple[int, ...] = ()
    """Number of ids of each level, for files that do not record it."""
    colour_range: tuple[float, ...] = ()
    """The values that pixels 0 and 255 become, for files that do not record them."""
    target: str = ""
    """`package.module:callable` of a tokenizer that the user wrote."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Settings passed to that callable, in plain JSON types."""

    def __post_init__(self) -> None:
        _require(self.resize in (None, *get_args(Resize)), "--resize", self.resize, " or ".join(get_args(Resize)))
        _require(self.filter in (None, *get_args(Filter)), "--filter", self.filter, f"one of {', '.join(get_args(Filter))}")
        _require(self.size is None or 8 <= self.size <= 4096, "--size", self.size, "8 to 4096 pixels")
        _require(self.max_tokens is None or self.max_tokens >= 1, "--max-tokens", self.max_tokens, "at least 1")
        _require(self.dtype in DTYPES, "--dtype", self.dtype, " or ".join(DTYPES))
        sizes = self.vocabulary
        _require(all(1 <= size <= 1 << 32 for size in sizes), "--vocabulary", sizes, "a number from 1 to 2**32, or several with commas")
        low_high = self.colour_range
        _require(not low_high or (len(low_high) == 2 and low_high[0] < low_high[1]), "--colour-range", low_high, "such as 0,1 or -1,1")


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanConfig:
    """The settings that decide the bytes of the shards, beside inputs and tokenizer; they are part of the plan's identity."""

    shard_rows: int | None = None
    """Inputs per shard; None means 10,000 rows, or fewer for a small data set, so that every core gets a shard."""
    batch_rows: int = 64
    codec: str = "default"
    order_seed: int = 0
    views: str = "one"
    """Name of the view policy: which views of each image become rows."""

    def __post_init__(self) -> None:
        _require(self.shard_rows is None or 1 <= self.shard_rows <= 1_000_000, "--shard-rows", self.shard_rows, "1 to 1000000")
        _require(1 <= self.batch_rows <= 4096, "--batch-rows", self.batch_rows, "1 to 4096")
        object.__setattr__(self, "views", ViewPolicy.parse(self.views).name)  # one name per policy, because the name is part of plan ids

    def rows_per_shard(self, inputs: int) -> int:
        """Return the target inputs per shard for `inputs` in all: at most 10,000 rows, and 16 shards if each then has 256 rows or more."""
        if self.shard_rows is not None:
            return self.shard_rows
        views = ViewPolicy.parse(self.views).count
        return min(10_000 // views, max(-(-256 // views), -(-inputs // 16)))


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """How a run uses the machine; these settings change speed, never bytes."""

    workers: int
    max_bad: float = 0.01
    """Largest allowed share of permanently failed inputs; a larger share stops the job."""
    shard_attempts: int = 4
    """Attempts per shard when a store fails; after the last one the shard stays uncommitted."""
    worker_deaths: int = 3
    """Worker deaths on one shard before bisection searches for the poison input."""
    stall_timeout_seconds: float = 300.0
    """The driver kills a worker that reports nothing for so long; that counts as a death."""
    join: bool = False
    retry: RetryConfig = field(default_factory=RetryConfig)

    def __post_init__(self) -> None:
        _require(1 <= self.workers <= 1024, "--workers", self.workers, "1 to 1024")
        _require(0.0 <= self.max_bad <= 1.0, "--max-bad", self.max_bad, "a share from 0 to 1, such as 0.01")
        _require(self.shard_attempts >= 1, "shard attempts", self.shard_attempts, "at least 1")
        _require(self.stall_timeout_seconds > 0, "--stall-timeout", self.stall_timeout_seconds, "seconds above 0")


DECODE_PLACES = ("auto", "local", "remote")


@dataclass(frozen=True, kw_only=True, slots=True)
class RayConfig:
    """Which resources of a Ray cluster a run uses; these settings change speed, never bytes."""

    address: str | None = None
    """`host:port` or `auto`; None takes $RAY_ADDRESS, else the cluster of this machine, else starts one for the run."""
    max_actors: int | None = None
    """Most tokenizer actors; None means as many as the cluster can hold when the run starts."""
    cpus_per_actor: int = 1
    gpus_per_actor: float = 0.0
    shards_in_flight: int = 2
    """Concurrent shards per actor: the actor reads or publishes one shard while it encodes another."""
    decode: str = "auto"
    """Where to decode images: `local` beside the tokenizer, `remote` on any CPU of the cluster, `auto` decides by measurement."""
    decode_cpus: int = 4
    """CPUs of one remote decoding task; fewer if no node has so many."""
    idle_timeout_seconds: float = 3600.0
    """Give up after so long without progress on any shard, for example because no node joins or the store stays down."""

    def __post_init__(self) -> None:
        _require(self.max_actors is None or self.max_actors >= 1, "--max-actors", self.max_actors, "at least 1")
        _require(1 <= self.cpus_per_actor <= 1024, "--cpus-per-actor", self.cpus_per_actor, "a whole number from 1 to 1024")
        whole = self.gpus_per_actor <= 1 or self.gpus_per_actor == int(self.gpus_per_actor)
        _require(
            0 <= self.gpus_per_actor <= 64 and whole, "--gpus-per-actor", self.gpus_per_actor, "a share such as 0.5, or a whole number"
        )
        _require(self.shards_in_flight >= 1, "shards in flight", self.shards_in_flight, "at least 1")
        _require(self.decode in DECODE_PLACES, "--decode", self.decode, f"one of {', '.join(DECODE_PLACES)}")
        _require(self.decode_cpus >= 1, "decode CPUs", self.decode_cpus, "at least 1")
        _require(self.idle_timeout_seconds > 0, "--give-up-after", self.idle_timeout_seconds, "seconds above 0")

    @property
    def decode_threads(self) -> int:
        """Decoding threads beside the tokenizer; 0 if the actor has one CPU and no GPU, because threads would not add speed there."""
        return self.cpus_per_actor if self.cpus_per_actor > 1 or self.gpus_per_actor > 0 else 0
