"""Opening what the work on a plan's shards needs, from plain data; used by every runner's workers."""

from __future__ import annotations

from pipeline.errors import FingerprintMismatchError, PlanError
from pipeline.job import JobContext
from pipeline.plan import load_plan
from pipeline.runners.base import JobSpec
from pipeline.storage import Store
from pipeline.tokenizers.directory import load_tokenizer

__all__ = ["TOKENIZER_FOLDER", "open_context"]

TOKENIZER_FOLDER = "tokenizer"


def open_context(job: JobSpec) -> JobContext:
    """Open dataset, plan, source and tokenizer of a job.

    Raises PlanError when the plan is gone and FingerprintMismatchError when the stored tokenizer is not the planned one.
    """
    out = Store(job.out_url, storage_options=job.out_options, retry=job.retry)
    plan = load_plan(out, job.plan_id)
    if plan is None:
        raise PlanError(f"{out.url} has no plan {job.plan_id[:12]}; run `tokenshards tokenize` again")
    tokenizer = load_tokenizer(out, TOKENIZER_FOLDER)
    if tokenizer.spec.fingerprint != plan.fingerprint:
        raise FingerprintMismatchError(
            f"{out.url}/{TOKENIZER_FOLDER} has fingerprint {tokenizer.spec.fingerprint[:12]}; "
            f"the plan was made for {plan.fingerprint[:12]}. Run `tokenshards repair` to restore the planned tokenizer"
        )
    source = Store(job.source_url, storage_options=job.source_config.storage_options, retry=job.retry)
    return JobContext(out=out, plan=plan, source=source, source_config=job.source_config, tokenizer=tokenizer, join=job.join)
