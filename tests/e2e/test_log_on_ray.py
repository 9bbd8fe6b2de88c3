"""The click log over Ray Data: the same rows, problems and description as on this machine alone."""

from __future__ import annotations

import gzip
import json

import pytest

from openrlhf_qs.clicks.check import check_log
from openrlhf_qs.clicks.click_log import read_click_log


@pytest.fixture
def local_ray():
    import ray

    ray.init(num_cpus=1, include_dashboard=False, configure_logging=False)
    yield
    ray.shutdown()


def test_ray_and_polars_give_the_same(local_ray, tiny_log_rows, tmp_path):
    lines = [json.dumps(row) for row in tiny_log_rows]
    plain, zipped, table = (tmp_path / name for name in ("a.jsonl", "b.jsonl.gz", "c.parquet"))
    plain.write_text("\n".join([*lines[:10], "{", lines[3]]))
    zipped.write_bytes(gzip.compress("\n".join(lines[10:20]).encode()))
    rest = tmp_path / "rest.jsonl"
    rest.write_text("\n".join(lines[20:]))
    read_click_log(rest).write_parquet(table)
    files = [plain, zipped, table]

    expected = check_log(files, "skip")
    assert expected["n_impressions"] == 31 and expected["skipped"] == {"bad JSON": 1, "impression_id seen before": 1}
    found = check_log(files, "skip", engine="ray")
    # Rare texts are forgotten batch by batch, and Ray's batches are others: what every batch has is the same.
    frequent, texts = expected.pop("frequent_texts"), found.pop("frequent_texts")
    assert found == expected and texts["Tell me more."] == frequent["Tell me more."] == 20
    assert read_click_log(files, "skip", engine="ray").equals(read_click_log(files, "skip"))
    with pytest.raises(ValueError) as here:
        check_log(files)
    with pytest.raises(ValueError) as there:
        check_log(files, engine="ray")
    assert str(there.value) == str(here.value)
