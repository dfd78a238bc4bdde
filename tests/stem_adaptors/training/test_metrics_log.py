"""The log of a training, which survives a crash."""

from __future__ import annotations

import csv
import io

from tokenshards.stem_adaptors.training.metrics_log import MetricsLog


def test_a_log_comes_back_from_its_lines_but_for_one_cut_short() -> None:
    log = MetricsLog([{"epoch": 0, "train_loss": 1.5}, {"epoch": 1, "train_loss": 1.25, "val_top1": 0.5}])
    data = log.to_jsonl()
    assert MetricsLog.parse(data).records == log.records
    assert MetricsLog.parse(data[:-5]).records == log.records[:1]
    assert MetricsLog.parse(data).before(1).records == log.records[:1]
    rows = list(csv.DictReader(io.StringIO(log.to_csv().decode())))
    assert rows[0] == {"epoch": "0", "train_loss": "1.5", "val_top1": ""}
    assert rows[1]["val_top1"] == "0.5"
