"""Open dataset, plan, source and tokenizer from the plain data of a job. The workers of every runner use these functions."""

from __future__ import annotations

import socket
import threading

from tokenshards.pipeline.errors import FingerprintMismatchError, PlanError
from tokenshards.pipeline.images.decode import DECODER
from tokenshards.pipeline.job.job_spec import JobSpec
from tokenshards.pipeline.job.shard_job import InputContext, JobContext
from tokenshards.pipeline.planning.plan import load_plan
from tokenshards.pipeline.sources.source_store import SourceStore
from tokenshards.pipeline.storage.store import Store
from tokenshards.pipeline.tokenizers.directory import load_tokenizer

__all__ = ["TOKENIZER_FOLDER", "open_context", "open_inputs", "uses_gpu"]

TOKENIZER_FOLDER = "tokenizer"


def uses_gpu(job: JobSpec) -> bool:
    """Return whether the tokenizer of a job uses a GPU. Tokenizers with networks do, and a user's own tokenizer may."""
    plan = load_plan(Store(job.out_url, storage_options=job.out_options, retry=job.retry), job.plan_id)
    return plan is not None and (bool(plan.spec.weights_sha256) or plan.spec.family == "python")


def open_inputs(job: JobSpec, *, decode_threads: int = 0) -> InputContext:
    """Open dataset, plan and source of a job, for a process that only decodes.

    Raises PlanError if the plan is gone, and FingerprintMismatchError if the decoder here is not the decoder of the plan.
    """
    out = Store(job.out_url, storage_options=job.out_options, retry=job.retry)
    plan = load_plan(out, job.plan_id)
    if plan is None:
        raise PlanError(f"{out.url} has no plan {job.plan_id[:12]}; run `tokenshards tokenize` again")
    planned = plan.spec.preprocess.decoder
    if planned not in ("", "unknown", DECODER):
        raise FingerprintMismatchError(
            f"{out.url} is planned for images decoded by {planned}; {socket.gethostname()} has {DECODER}, which gives other pixels. "
            f"Install {planned.replace('-', ' ')} on that host, or fit a tokenizer with the decoder of that host"
        )
    source = SourceStore(job.source_url, storage_options=job.source_config.storage_options, retry=job.retry)
    return InputContext(
        out=out,
        plan=plan,
        source=source,
        source_config=job.source_config,
        decode_threads=decode_threads,
        cpus=threading.BoundedSemaphore(max(1, decode_threads)),
    )


def open_context(job: JobSpec, *, decode_threads: int = 0) -> JobContext:
    """Open dataset, plan, source and tokenizer of a job; `decode_threads` as in JobContext.

    Raises PlanError if the plan is gone, and FingerprintMismatchError if the stored tokenizer is not the tokenizer of the plan.
    """
    inputs = open_inputs(job, decode_threads=decode_threads)
    tokenizer = load_tokenizer(inputs.out, TOKENIZER_FOLDER)
    if tokenizer.spec.fingerprint != inputs.plan.fingerprint:
        raise FingerprintMismatchError(
            f"{inputs.out.url}/{TOKENIZER_FOLDER} has fingerprint {tokenizer.spec.fingerprint[:12]}; "
            f"the plan was made for {inputs.plan.fingerprint[:12]}. Run `tokenshards repair` to restore the planned tokenizer"
        )
    return JobContext(
        out=inputs.out,
        plan=inputs.plan,
        source=inputs.source,
        source_config=inputs.source_config,
        decode_threads=decode_threads,
        cpus=inputs.cpus,
        tokenizer=tokenizer,
        run_uuid=job.run_uuid,
        join=job.join,
    )
