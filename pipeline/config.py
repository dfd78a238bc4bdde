"""Configuration: one frozen dataclass per part, and each part gets only its own. Standard library only."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, fields
from typing import Any

from tokenshards.pipeline.errors import require
from tokenshards.pipeline.mask_rules import MaskRules
from tokenshards.pipeline.view_policy import ViewPolicy

__all__ = [
    "DECODE_PLACES",
    "ImageRules",
    "PlanConfig",
    "RayConfig",
    "RetryConfig",
    "RunConfig",
    "SHAPING_FIELDS",
    "SOURCE_RULES",
    "SourceConfig",
    "UrlLimits",
]


@dataclass(frozen=True, kw_only=True, slots=True)
class RetryConfig:
    """How often and how long to retry a failing store before the failure counts."""

    attempts: int = 8
    first_delay_seconds: float = 0.2
    max_delay_seconds: float = 10.0

    def __post_init__(self) -> None:
        require(self.attempts >= 1, "retry attempts", self.attempts, "at least 1")


UNREADABLE = ("stop", "quarantine")
_OF_A_RUN = {"storage_options", "allow_private_hosts", "unreadable", "urls", "yes", "frozen", "masks"}
_OF_FORMAT_1_0 = {"all_files", "image_column", "id_column", "label", "no_labels", "meta", "tars_per_shard", "rules"}
"""Planned fields of SourceConfig that format 1.0 knows. A planned field that joins later makes its plan one of a newer format."""
_AS_IN_FORMAT_1_0: dict[str, Any] = {"tar_key": "first-dot", "sixteen_bit": "high-byte"}
"""Settled values of newer fields, beside their defaults, by which the inputs are read as format 1.0 reads them."""
SOURCE_RULES = 3
"""Version of the rules by which inputs and labels are found.

1: A `.txt` member of a tar is the label if the tar holds no other label. Hidden files are inputs. One image makes a folder an image folder.
2: A `.txt` member is a label or a meta column only if an option names it. Hidden files are left out. A folder that also holds tars or
Parquet files is an image folder only if it holds more images than those.
3: A tar may hold several images a sample, keys with dots, links and tars, and every member is counted. Floats that are whole numbers, bools
and class names of a schema are labels. Missing images of a table are absent inputs, not failures.
"""
SIXTEEN_BIT = ("auto", "scale", "high-byte")
TAR_KEYS = ("auto", "first-dot", "last-dot")


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageRules:
    """How encoded images become pixels where a data set needs other rules than the usual ones; a plan records them."""

    max_pixels: int = 1 << 27
    """Images with more pixels are quarantined unread."""
    accept_truncated: bool = False
    """Take an image that ends too early; what is missing is grey in a JPEG, black in other formats."""
    sixteen_bit: str = "auto"
    """`scale` takes the 8 highest of the bits that a 16-bit image uses, `high-byte` the high byte of each sample; planning turns `auto` to
    one of the two where it sees 16-bit images; in a plan `auto` is `high-byte`."""

    def __post_init__(self) -> None:
        require(1 <= self.max_pixels <= 1 << 40, "--max-pixels", self.max_pixels, "1 to 2**40")
        require(self.sixteen_bit in SIXTEEN_BIT, "--sixteen-bit", self.sixteen_bit, " or ".join(SIXTEEN_BIT))


@dataclass(frozen=True, kw_only=True, slots=True)
class UrlLimits:
    """Limits of one URL of a table on a foreign host; these settings belong to a run, not to the plan."""

    attempts: int = 3
    """Attempts per URL before it is quarantined."""
    timeout_seconds: float = 30.0
    """Longest silence of a host."""
    total_seconds: float = 120.0
    """Longest time for one URL in all."""
    per_host: int = 8
    """Most requests to one host at a time, in one process."""

    def __post_init__(self) -> None:
        require(self.attempts >= 1, "--url-attempts", self.attempts, "at least 1")
        require(self.timeout_seconds > 0, "--url-timeout", self.timeout_seconds, "seconds above 0")
        require(self.total_seconds > 0, "--url-time", self.total_seconds, "seconds above 0")
        require(self.per_host >= 1, "--url-concurrency", self.per_host, "at least 1")


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
    label_from: str | None = None
    """Where the label of a path comes from: `first`, `parent`, `depth:N`, `tar`, `none`, `regex:PATTERN` or `file:TABLE`; None means the
    first folder of files, and the usual members of tars."""
    key_column: str | None = None
    """Column of the `file:TABLE` that names the image."""
    label_table: str | None = None
    """Size and version of the table of `file:TABLE` when the tars of the plan were looked at; workers compare it."""
    label_first: bool = False
    """Take the first of several labels of one image."""
    as_text: bool = False
    """Store labels and meta columns as text, even if those that planning read are numbers."""
    split: str | None = None
    """Take only the inputs of this split, such as `train`; `all` takes all splits and knows that their names are no classes."""
    tar_key: str = "auto"
    """How the key of a tar member ends: at the `first-dot` (webdataset's rule) or at the `last-dot` of its file name; planning turns `auto`
    into one of the two."""
    image_member: str | None = None
    """Suffix of the image member of samples with several images, or several by commas, the first that is there; `all` makes a row of each
    image, `first` takes the image that rules 2 take. None means that each sample holds one image."""
    image_root: str | None = None
    """Folder or URL that relative paths in a table start from; the folder of the table when None."""
    path_template: str | None = None
    """Path of an image as a pattern of columns, such as `train/{id}.jpg`."""
    image_rules: ImageRules = field(default_factory=ImageRules)
    masks: str | None = None
    """Folder or URL of masks with the paths of their images; None where a column or a member holds them, or where there are none."""
    mask_rules: MaskRules = field(default_factory=MaskRules)
    urls: UrlLimits = field(default_factory=UrlLimits)
    yes: bool = False
    """Settle every doubt about the input as it was understood."""
    frozen: bool = False
    """The rules are those of a plan: a listing settles nothing anew."""
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
        require(not (self.no_labels and self.label), "--label", self.label, "nothing beside --no-labels")
        require(not (self.no_labels and self.label_from), "--label-from", self.label_from, "nothing beside --no-labels")
        by_table = (self.label_from or "").startswith("file:")
        require(not (self.label and self.label_from) or by_table, "--label", self.label, "nothing beside --label-from, but for file:TABLE")
        require(self.tar_key in TAR_KEYS, "--key", self.tar_key, " or ".join(TAR_KEYS))
        require(self.tars_per_shard >= 1, "--tars-per-shard", self.tars_per_shard, "at least 1")
        if not self.frozen:
            self.mask_rules.check(self.masks)
        require(self.unreadable in (None, *UNREADABLE), "--unreadable", self.unreadable, " or ".join(UNREADABLE))

    def planned(self) -> dict[str, Any]:
        """Return the fields that decide the shards, in JSON types; a plan records them. Each run brings its own access options.

        Fields that format 1.0 does not know are left out where they have their defaults: a plan that needs none of them stays the same.
        """
        usual = asdict(SourceConfig())
        shaping = {name: value for name, value in asdict(self).items() if name in SHAPING_FIELDS}
        needed = {name: value for name, value in shaping.items() if name in _OF_FORMAT_1_0 or value != usual[name]}
        if "mask_rules" in needed:
            needed["mask_rules"] = self.mask_rules.to_json()
        return {**needed, "meta": list(self.meta)}

    def with_planned(self, planned: dict[str, Any]) -> SourceConfig:
        """Return this config with the fields that a plan recorded in place of its own; a field that the plan leaves out has its default."""
        known = {part.name for part in fields(ImageRules)}
        rules = ImageRules(**{name: value for name, value in planned.get("image_rules", {}).items() if name in known})
        mine = {name: getattr(self, name) for name in _OF_A_RUN} | {"frozen": True}
        masks = MaskRules.from_json(planned.get("mask_rules", {}))
        parts = {"meta": tuple(planned.get("meta", ())), "image_rules": rules, "mask_rules": masks}
        return SourceConfig(**{**mine, **planned, **parts})

    @property
    def beyond_format_1_0(self) -> bool:
        """Whether the inputs are chosen or read by an option that format 1.0 does not know."""
        planned, usual = self.planned(), asdict(ImageRules())
        rules = {name: value for name, value in planned.pop("image_rules", {}).items() if value != usual[name]}
        newer = {**{name: value for name, value in planned.items() if name not in _OF_FORMAT_1_0}, **rules}
        return any(value != _AS_IN_FORMAT_1_0.get(name) for name, value in newer.items())

    @property
    def takes_masks(self) -> bool:
        """Whether images have masks."""
        return self.masks is not None or self.mask_rules.mask_column is not None

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> SourceConfig:
        """Return the config that `asdict` turned into JSON types."""
        parts = {
            "image_rules": ImageRules(**value["image_rules"]),
            "mask_rules": MaskRules.from_json(value["mask_rules"]),
            "urls": UrlLimits(**value["urls"]),
        }
        return cls(**{**value, "meta": tuple(value["meta"]), **parts})


SHAPING_FIELDS = frozenset(part.name for part in fields(SourceConfig)) - _OF_A_RUN
"""Fields of SourceConfig that decide the shards."""


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
        require(self.shard_rows is None or 1 <= self.shard_rows <= 1_000_000, "--shard-rows", self.shard_rows, "1 to 1000000")
        require(1 <= self.batch_rows <= 4096, "batch_rows", self.batch_rows, "1 to 4096")
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

    workers: int | None = None
    """Worker processes of the local runner; None takes one per GPU where the tokenizer runs on one, else one per core."""
    max_bad: float = 0.01
    """Largest allowed share of permanently failed inputs; a larger share stops the job."""
    shard_attempts: int = 4
    """Attempts per shard when a store fails; after the last one the shard stays uncommitted."""
    worker_deaths: int = 3
    """Worker deaths on one shard before bisection searches for the poison input."""
    stall_timeout_seconds: float = 300.0
    """The shortest time after which a stage of work counts as hanging (runners/deadlines.py); stages that measure slower get more."""
    join: bool = False
    retry: RetryConfig = field(default_factory=RetryConfig)

    def __post_init__(self) -> None:
        require(self.workers is None or 1 <= self.workers <= 1024, "--workers", self.workers, "1 to 1024")
        require(0.0 <= self.max_bad <= 1.0, "--max-bad", self.max_bad, "a share from 0 to 1, such as 0.01")
        require(self.shard_attempts >= 1, "shard attempts", self.shard_attempts, "at least 1")
        require(self.stall_timeout_seconds > 0, "--stall-timeout", self.stall_timeout_seconds, "seconds above 0")


DECODE_PLACES = ("auto", "local", "remote")


@dataclass(frozen=True, kw_only=True, slots=True)
class RayConfig:
    """Which resources of a Ray cluster a run uses; these settings change speed, never bytes."""

    address: str | None = None
    """`host:port` or `auto`; None takes $RAY_ADDRESS, else the cluster of this machine, else starts one for the run."""
    max_actors: int | None = None
    """Most tokenizer actors; None means as many as the cluster can hold, and more when the cluster grows."""
    cpus_per_actor: int = 1
    gpus_per_actor: float = 0.0
    shards_in_flight: int = 2
    """Concurrent shards per actor: the actor reads or publishes one shard while it encodes another."""
    decode: str = "auto"
    """Where to decode images: `local` beside the tokenizer, `remote` on any CPU of the cluster, `auto` decides by measurement."""
    decode_cpus: int = 4
    """CPUs of one remote decoding task; fewer if no node has so many."""
    idle_timeout_seconds: float = 3600.0
    """Give up after so long without progress on any shard while no actor works, for example because no node joins."""

    def __post_init__(self) -> None:
        require(self.max_actors is None or self.max_actors >= 1, "--max-actors", self.max_actors, "at least 1")
        require(1 <= self.cpus_per_actor <= 1024, "--cpus-per-actor", self.cpus_per_actor, "a whole number from 1 to 1024")
        whole = self.gpus_per_actor <= 1 or self.gpus_per_actor == int(self.gpus_per_actor)
        require(0 <= self.gpus_per_actor <= 64 and whole, "--gpus-per-actor", self.gpus_per_actor, "a share such as 0.5, or a whole number")
        require(self.shards_in_flight >= 1, "shards in flight", self.shards_in_flight, "at least 1")
        require(self.decode in DECODE_PLACES, "--decode", self.decode, f"one of {', '.join(DECODE_PLACES)}")
        require(self.decode_cpus >= 1, "decode CPUs", self.decode_cpus, "at least 1")
        require(self.idle_timeout_seconds > 0, "--give-up-after", self.idle_timeout_seconds, "seconds above 0")

    @property
    def decode_threads(self) -> int:
        """Decoding threads beside the tokenizer; 0 if the actor has one CPU and no GPU, because threads would not add speed there."""
        return self.cpus_per_actor if self.cpus_per_actor > 1 or self.gpus_per_actor > 0 else 0
