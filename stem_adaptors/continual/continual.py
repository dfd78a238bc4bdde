"""The composition root of `continual`: make the sides, train their chains, and put the results together.

Each finished step is kept in the store under a name that holds a digest of what it depends on. So the same command continues after a kill
at the step that it had begun, and a command with other budgets or more seeds trains only what is new.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from tokenshards.pipeline.reports.terminal import TerminalReporter
from tokenshards.pipeline.shards.dataset import TokenDataset
from tokenshards.pipeline.storage.store import Store, absolute_url, display_url
from tokenshards.pipeline.words import counted
from tokenshards.stem_adaptors.comparison.image_sides import OpenRunner
from tokenshards.stem_adaptors.comparison.run_results import Trainings, results_of
from tokenshards.stem_adaptors.continual.chain import Chain
from tokenshards.stem_adaptors.continual.class_groups import ClassGroups, class_groups
from tokenshards.stem_adaptors.continual.continual_config import ALL, ContinualRequest
from tokenshards.stem_adaptors.continual.kept_steps import KeptSteps
from tokenshards.stem_adaptors.continual.lines import class_names, image_lines, token_lines
from tokenshards.stem_adaptors.continual.paired_figures import rows_of_lines
from tokenshards.stem_adaptors.continual.result import Continual
from tokenshards.stem_adaptors.continual.understood import understood
from tokenshards.stem_adaptors.curves.both_sets import BothSets, listed_pixels, shared_with_note
from tokenshards.stem_adaptors.curves.curve_config import TOKENS
from tokenshards.stem_adaptors.data.class_names import class_map
from tokenshards.stem_adaptors.data.selection import Ints, labels_of

__all__ = ["measured_continual"]

RESULT = "continual.json"


def measured_continual(
    request: ContinualRequest, reporter: TerminalReporter, open_runner: OpenRunner, train: Trainings[Chain]
) -> Continual:
    """Return the result, and keep it as `continual.json` in the store of the request.

    Raises ConfigError where an option or a budget is wrong or there are no labels, OtherTokenizerError where VAL has another tokenizer,
    DoubtError where the images are in grave doubt, and the errors of opening, converting and training.
    """
    request = replace(
        request, data_url=absolute_url(request.data_url), val_url=absolute_url(request.val_url), out_url=absolute_url(request.out_url)
    )
    store = Store(request.out_url, storage_options=request.storage_options)
    sets = BothSets.opened(request.data_url, request.val_url, store, reporter, "are left out")
    names = class_names(sets.data)
    groups = [class_groups(names, request.steps, seed) for seed in range(request.seeds)]
    sets.stock.require_room("--replay", request.budgets, len(names), f"one of each of {len(names):,} classes")
    lines, measured = token_lines(request, sets), {TOKENS: sets.val}
    if request.images is not None:
        whole = listed_pixels(request.images, sets, store, open_runner, reporter)
        measured[whole.place] = whole.data.val
        lines += image_lines(request, sets, whole, store)
        lines.sort(key=lambda line: (line.side == ALL, line.budget or 0))
    for message in understood(request, sets, groups, lines):
        reporter.say(message)
    places = shared_with_note(measured, reporter)
    chains = sorted(dict.fromkeys(chain for line in lines for chain in line.chains), key=lambda chain: chain.seed)
    firsts = Counter(chain.first for chain in chains)
    results_of([first for first, count in firsts.items() if count > 1], store, train, reporter, "first step")
    begun = [len(KeptSteps(store, chain).results) for chain in chains if store.info(chain.path) is None]
    if any(steps > 1 for steps in begun):
        reporter.say(f"{counted(sum(begun) - len(begun), 'step')} of unfinished chains kept from before")
    results = results_of(chains, store, train, reporter, "chain")
    groups_SN = _groups_of(sets.val, groups, places[TOKENS])
    found = Continual(
        out=display_url(request.out_url),
        minutes=request.minutes,
        seeds=request.seeds,
        choice=request.choice,
        measured=int((groups_SN[0] >= 0).sum()),
        groups=tuple(tuple(one.names_of(step) for step in range(request.steps)) for one in groups),
        tokenizer_bytes=sets.tokenizer_bytes,
        rows=rows_of_lines(lines, results, places, groups_SN),
    )
    store.write(RESULT, json.dumps(found.to_json(), indent=1, sort_keys=True).encode())
    return found


def _groups_of(val: TokenDataset, groups: Sequence[ClassGroups], places_N: Ints) -> Ints:
    """Return the step in which the class of each measured image comes, int64 [S, N]; -1 for classes that DATA has not."""
    labels_n = labels_of(val)[:: val.views]
    labels_N = labels_n[labels_n >= 0][places_N]
    found = []
    for one in groups:
        known_C = class_map(val.classes, one.names, val.store.url, missing_is_error=False).numpy()
        found.append(np.array([*one.group_of, -1])[known_C[labels_N]])
    return np.stack(found)
