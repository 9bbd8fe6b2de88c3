"""Kill a small run by force, at random moments of every stage, call again, and compare what comes out.

    python tests/kill_and_resume.py /tmp/killed --kills 25
    python tests/kill_and_resume.py /tmp/late --kills 6 --stages rft,grpo

One run is never killed. Of another, the first call is killed in the first of ``stages``, the next one in that stage
again or the next, and so on: ``kills`` times, spread over these stages, each at a moment drawn from the time that the
stage took in the run which was never killed. Half of the kills hit every process of the call, half the outer recipe
alone, whose training must then end by itself. The last call must end with a whole run.

Out: a line for each kill, then what is the same: the bytes of ``data``; the bytes of what the SFT policy says, for the
same policy asked once more without a kill; how far trained weights and the measured CTRs are from those of the run
that was never killed. Status 1 where a call fails or bytes differ. About four times as long as a small run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from openrlhf_qs.files.record import durations, read_record
from openrlhf_qs.files.run_folder import RunFolder

ROOT = Path(__file__).parents[1]
SMALL = {  # with a policy that writes suggestions after SFT, which RFT needs, and several checkpoints a training
    "N_IMPRESSIONS": "1200",
    "N_CONTEXTS": "300",
    "SFT_EPOCHS": "3",
    "SFT_BATCH": "16",
    "GARM_EPOCHS": "1",
    "STEPS": "6",
    "PROMPTS": "4",
    "N_SAMPLES": "4",
    "GRPO_MICRO_BATCH": "16",
    "TRAIN_BATCH": "16",
    "N_RFT": "80",
    "RFT_SAMPLES": "4",
    "RFT_BATCH": "4",
    "RFT_EPOCHS": "1",
    **{f"{stage}_SAVE_STEPS": "2" for stage in ("RFT", "GRPO")},
    **{f"{stage}_SAVE_STEPS": "8" for stage in ("SFT", "GARM")},
    "N_HELDOUT": "40",
    "N_SELECTION": "20",
    "TEMPERATURES": "1",
    "BEST_OF": "1",
}
STAGES = ("data", "sft", "garm", "fusion", "rft", "grpo", "evaluate")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="for both runs; what is in it goes on")
    parser.add_argument("--kills", type=int, default=25)
    parser.add_argument("--stages", default=",".join(STAGES), help="that are killed, in the order of the way")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    args = parser.parse_args()
    stages = sorted(args.stages.split(","), key=STAGES.index)
    whole, killed = args.folder / "whole", args.folder / "killed"
    end(start(whole), whole)
    kill_often(killed, args.kills, stages, durations(RunFolder(whole)), random.Random(args.seed))
    end(start(killed), killed)
    sys.exit(compare(whole, killed))


def start(run: Path, recipe: str = "grpo_garm.sh", **variables: str) -> subprocess.Popen:
    """A call of a recipe in a session of its own; what it prints goes to ``calls.txt`` beside the run."""
    run.parent.mkdir(parents=True, exist_ok=True)
    environment = os.environ | SMALL | {"RUN": str(run), "VIRTUAL_ENV": sys.prefix} | variables
    with open(run.with_suffix(".calls.txt"), "a") as said:
        return subprocess.Popen(
            ["bash", str(ROOT / "recipes" / recipe)],
            env=environment,
            start_new_session=True,
            stdout=said,
            stderr=said,
            cwd=ROOT,
        )


def end(call: subprocess.Popen, run: Path) -> None:
    """Wait for a call, which must succeed."""
    if call.wait():
        print(run.with_suffix(".calls.txt").read_text()[-3000:])
        sys.exit(f"a call in {run} ended with status {call.returncode}")


def kill_often(
    run: Path, n_kills: int, stages: Sequence[str], seconds: Mapping[str, float], moments: random.Random
) -> None:
    """Kill calls in ``run``: as many in each of ``stages``, in their order."""
    journal = run.with_suffix(".kills.jsonl")
    done = len(journal.read_text().splitlines()) if journal.is_file() else 0
    for number in range(n_kills):
        aimed, share = stages[number * len(stages) // n_kills], moments.random()
        outer_alone = moments.random() < 0.5
        if number < done:
            continue
        called, call = time.time(), start(run)
        while call.poll() is None and STAGES.index(working_on(run, called) or "data") < STAGES.index(aimed):
            time.sleep(0.05)
        aimed = working_on(run, called) or aimed  # a later one where that was done before its kill came
        begun = time.monotonic()
        while call.poll() is None and time.monotonic() - begun < share * seconds[aimed]:
            time.sleep(0.02)
        if call.poll() is not None:
            end(call, run)  # it may have ended well, and not by an error: then there is nothing left to kill
            return
        hit = working_on(run, called)
        (os.kill if outer_alone else os.killpg)(call.pid, signal.SIGKILL)
        call.wait()
        row = {"kill": number + 1, "aimed_at": aimed, "hit": hit, "seconds": round(time.monotonic() - begun, 2)}
        row["what"] = "the recipe alone" if outer_alone else "every process"
        with open(journal, "a") as file:
            file.write(json.dumps(row) + "\n")
        print(json.dumps(row), flush=True)


def working_on(run: Path, called: float) -> str:
    """The stage that a call of that time has begun and not done, empty where none is."""
    entries = read_record(RunFolder(run)).items()
    return next((name for name, one in entries if one["state"] == "begun" and one["call"] >= called), "")


def compare(whole: Path, killed: Path) -> int:
    """Print what is the same and how far the rest is; 1 where bytes differ that must not."""
    found: dict[str, object] = {}
    files = sorted(path.relative_to(whole) for path in (whole / "data").rglob("*") if path.is_file())
    differ = [str(file) for file in files if bytes_of(whole, file) != bytes_of(killed, file)]
    found["files of data"] = {"n": len(files), "of other bytes": differ}

    again = killed.with_name("again")
    shutil.rmtree(again, ignore_errors=True)
    shutil.copytree(killed, again, symlinks=True)
    end(start(again, "fusion.sh", AGAIN="1"), again)
    same = [(run / "fusion" / "responses.jsonl").read_bytes() for run in (killed, again)]
    found["responses of the same policy"] = "the same bytes" if same[0] == same[1] else "of other bytes"

    for stage in ("sft", "garm", "rft", "grpo"):
        found[f"weights of {stage}"] = distance(whole / stage, killed / stage)
    metrics = [json.loads((run / "report" / "metrics.json").read_text())["ab"] for run in (whole, killed)]
    found["CTR, never killed and killed"] = {
        name: [round(one[name]["ctr"], 4) for one in metrics] for name in ("sft", "grpo") if name in metrics[0]
    }
    left = [str(path.relative_to(killed)) for path in killed.rglob(".*") if path.name != ".lock"]
    found["left in the run"] = left
    print(json.dumps(found, indent=1))
    return int(bool(differ or same[0] != same[1] or left))


def bytes_of(run: Path, file: Path) -> bytes:
    """A file of a run; the name of its own folder, which some have in them, is no difference."""
    return (run / file).read_bytes().replace(bytes(run), b"RUN").replace(f"{run.name}/".encode(), b"RUN/")


def distance(one: Path, other: Path) -> dict[str, float | bool]:
    """How far two trained models are: the largest difference of a number, and the norm of all differences relative
    to that of the weights."""
    from safetensors.torch import load_file

    largest, square, norm = 0.0, 0.0, 0.0
    for file in sorted(one.glob("*.safetensors")):
        ours, theirs = load_file(file), load_file(other / file.name)
        for name, tensor in ours.items():
            difference = tensor.double() - theirs[name].double()
            largest = max(largest, difference.abs().max().item())
            square += difference.square().sum().item()
            norm += tensor.double().square().sum().item()
    return {"largest": largest, "relative": (square / norm) ** 0.5, "equal": largest == 0}


if __name__ == "__main__":
    main()
