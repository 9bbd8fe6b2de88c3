from pathlib import Path

import pytest

from openrlhf_qs.benchmark.propensities import Kind, false_alarms, measure, measure_before

ROOT = Path(__file__).parents[3]


def test_another_version_runs_on_the_same_logs_and_what_is_not_so_is_a_false_alarm():
    kind = Kind("pbm", None, 50, n_impressions=2000)
    now, before = measure(kind, ["auto"], range(2)), measure_before(kind, str(ROOT), range(2))
    # this checkout against itself: the same estimators, so the same figures
    assert before == {"method": "auto", **now["methods"]["auto"]}
    findings = dict.fromkeys(now["findings"], 0.0) | {"top trusted": 0.25, "order chosen": 0.5}
    assert false_alarms("pbm, random, 66 shows", findings) == 0.5
    assert false_alarms("pbm, ranked, 66 shows", findings) == 0.25
    assert false_alarms("trust, ranked, 66 shows", findings) == 0.0


def test_it_is_the_other_version_that_runs(tmp_path):
    module = tmp_path / "openrlhf_qs" / "clicks" / "propensity.py"
    module.parent.mkdir(parents=True)
    for folder in (module.parent, module.parent.parent):
        (folder / "__init__.py").touch()
    module.write_text(
        "from collections import namedtuple\n"
        "DEFAULT_METHOD = 'old'\n"
        "def estimate(counts):\n"
        "    return namedtuple('P', 'values low high')([1, 2, 2], [1, 1, 1], [1, 3, 3])\n"
    )
    found = measure_before(Kind("pbm", None, 50, n_impressions=200), str(tmp_path), range(2))
    # 2 for a truth of .75 and .55, which [1, 3] has not in it
    assert found["method"] == "old" and found["coverage"] == [0, 0]
    assert found["bias"] == pytest.approx([1.25, 1.45], abs=0.01)


def test_a_folder_without_estimators_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is not a checkout of this package"):
        measure_before(Kind("pbm", None, 50), str(tmp_path), range(1))
