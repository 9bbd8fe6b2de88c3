"""run.json: what is refused, what is made anew, what is remembered."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
import time
from pathlib import Path

import pytest

from openrlhf_qs.files import record
from openrlhf_qs.files.asked import asked_of, words_of
from openrlhf_qs.files.fingerprint import broken
from openrlhf_qs.files.run_folder import STAGE_FOLDERS, RunFolder
from openrlhf_qs.files.stages import STAGES

ROOT = Path(__file__).parents[3]
DATA = ("sft", "preferences", "prompts", "fusion", "heldout")
VALUES = {"SEED": "0", "SFT_LR": "2e-3", "SFT_DATASET": "diverse", "REWARD": "garm,ood", "N_CONTEXTS": "300"}


def write_safetensors(path: Path, n_bytes: int = 16) -> None:
    header = json.dumps({"weight": {"dtype": "U8", "shape": [n_bytes], "data_offsets": [0, n_bytes]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(n_bytes))


def write_products(run: RunFolder, stage: str) -> None:
    """What the stage leaves, as small as can be."""
    folder = run.stage(stage)
    if stage == "data":
        for name in DATA:
            (folder / f"{name}.jsonl").write_text('{"row": 1}\n' * 3)
        for path in (run.data.log, run.data.lengths, run.data.max_new_tokens):
            path.write_text("{}\n")
    elif stage == "fusion":
        run.weights.write_text("{}")
        run.fusion_responses.write_text("{}\n")
    elif stage == "evaluate":
        for path in (run.metrics, run.report, run.responses("sft")):
            path.write_text("{}\n")
    else:
        if stage in ("distil", "rft"):
            (folder / "candidates.jsonl").write_text("{}\n")
        if stage == "distil":
            folder = run.teacher
            folder.mkdir(exist_ok=True)
        write_safetensors(folder / "model.safetensors")
        (folder / "config.json").write_text("{}")
        (folder / "tokenizer_config.json").write_text("{}")


def make(run: RunFolder, stage: str, flags=(), given=(), again="", **values: str) -> bool:
    """Begin the stage, and where it is to be made, make and finish it."""
    begun = record.begin(run, stage, VALUES | values, flags, given, again)
    if begun:
        write_products(run, stage)
        record.finish(run, stage, seconds=3)
    return begun


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """A run whose data, SFT and GaRM are done."""
    run = RunFolder(tmp_path / "run")
    for stage in ("data", "sft", "garm"):
        assert make(run, stage)
    return run


def test_a_second_call_that_asks_for_the_same_finds_it_done(run):
    assert not make(run, "sft")
    assert record.durations(run) == {"data": 3, "sft": 3, "garm": 3}


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"SFT_LR": "1e-4"}, "SFT_LR=1e-4, made with SFT_LR=2e-3"),
        ({"SEED": "1"}, "SEED=1, made with SEED=0"),
        ({"SFT_DATASET": "raw"}, "SFT_DATASET=raw, made with SFT_DATASET=diverse"),
        ({"OPTION": "diverse.depth=2"}, "OPTION=diverse.depth=2, made with ''"),
        ({"EMBEDDER": "minilm"}, "EMBEDDER=minilm, made with EMBEDDER="),
        ({"flags": ["--adam.eps", "1e-7"]}, "with --adam.eps 1e-7, made without --adam.eps"),
    ],
)
def test_a_call_that_asks_for_something_else_is_told_what_differs(run, asked, said):
    before = run.record.read_bytes()
    with pytest.raises(record.Differs, match=re.escape(said)):
        make(run, "sft", given=[name for name in asked if name.isupper()], **asked)
    assert run.record.read_bytes() == before and (run.sft / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "asked",
    [
        {"SFT_SAVE_STEPS": "5"},
        {"REWARD": "garm"},
        {"OPTION": "ood.threshold=2"},  # of a reward, which SFT does not have
        {"flags": ["--logger.wandb.key", "k", "--ckpt.max_num", "9"]},
    ],
)
def test_what_makes_no_other_product_does_not_differ(run, asked):
    assert not make(run, "sft", **asked)


def test_another_file_under_the_same_name_differs_and_a_copy_of_it_does_not(tmp_path):
    log = tmp_path / "mine.jsonl"
    log.write_text("a\n")
    run = RunFolder(tmp_path / "run")
    make(run, "data", CLICK_LOG=str(log))
    os.utime(log, (1, 1))
    assert not make(run, "data", CLICK_LOG=str(log))
    (tmp_path / "copy.jsonl").write_text("a\n")
    assert not make(run, "data", CLICK_LOG=str(tmp_path / "copy.jsonl"))
    log.write_text("b\n")
    with pytest.raises(record.Differs, match="mine.jsonl, which has changed since"):
        make(run, "data", CLICK_LOG=str(log))
    with pytest.raises(record.Differs, match="CLICK_LOG=, made with CLICK_LOG="):
        make(run, "data")


@pytest.mark.parametrize("value", ["nowhere.jsonl", "nowhere/*.jsonl", "./nowhere"])
def test_a_log_that_is_not_there_is_named(tmp_path, value):
    with pytest.raises(ValueError, match=re.escape(f"CLICK_LOG={value}: {value} does not exist")):
        make(RunFolder(tmp_path), "data", CLICK_LOG=value)


def test_a_folder_or_a_pipe_among_the_logs_is_named(tmp_path):
    (tmp_path / "logs" / "inner").mkdir(parents=True)
    with pytest.raises(ValueError, match="inner is a folder; name its files"):
        make(RunFolder(tmp_path / "run"), "data", CLICK_LOG=str(tmp_path / "logs" / "*"))
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe is not a file that can be read twice"):
        make(RunFolder(tmp_path / "run"), "data", CLICK_LOG=str(tmp_path / "pipe"))


def test_a_path_with_a_blank_is_one_path(tmp_path):
    log = tmp_path / "my clicks.jsonl"
    log.write_text("a\n")
    assert words_of(str(log)) == [str(log)]
    assert words_of("a.jsonl b\\ c.jsonl") == ["a.jsonl", "b c.jsonl"]
    run = RunFolder(tmp_path / "run")
    make(run, "data", CLICK_LOG=str(log), given=["CLICK_LOG"])
    assert words_of(record.recall(run, "sft", ["CLICK_LOG"])["CLICK_LOG"]) == [str(log)]


def test_options_count_for_a_stage_that_always_uses_their_plugin(run):
    raw = {"SFT_DATASET": "raw", "DISTIL": "0"}
    for stage in ("sft", "garm"):
        make(run, stage, again="stage", **raw)
    assert make(run, "rft", **raw) and make(run, "distil", **raw)
    with pytest.raises(record.Differs, match=re.escape("OPTION=diverse.max_similarity=.5, made with ''")):
        make(run, "rft", OPTION="diverse.max_similarity=.5", **raw)
    with pytest.raises(record.Differs, match=re.escape("OPTION=single.seed=1, made with ''")):
        make(run, "distil", OPTION="diverse.max_similarity=.5 single.seed=1", **raw)


def test_the_plugins_that_a_recipe_names_itself_are_known():
    recipes = {"distil": "distil", "rft": "rft", "reason": "rgalign", "align": "rgalign", "foresee": "rgalign"}
    for stage, recipe in recipes.items():
        text = (ROOT / "recipes" / f"{recipe}.sh").read_text()
        assert tuple(re.findall("--qs.sft_dataset ([a-z]+)", text)) == STAGES[stage].fixed_plugins, stage
    assert {stage for stage in STAGES if STAGES[stage].fixed_plugins} == recipes.keys()


def test_a_plugin_file_counts_for_the_stages_whose_plugins_it_registers(run, tmp_path):
    plugin = tmp_path / "brevity.py"
    plugin.write_text('@REWARDS.register("brevity")\nclass Brevity: ...\n')
    assert not make(run, "sft", PLUGIN=str(plugin))  # a reward
    make(run, "fusion", PLUGIN=str(plugin), REWARD="garm,brevity")
    plugin.write_text(plugin.read_text() + "# another threshold\n")
    with pytest.raises(record.Differs, match="brevity.py, which has changed since"):
        make(run, "fusion", PLUGIN=str(plugin), REWARD="garm,brevity")
    with pytest.raises(ValueError, match="plugin file nowhere.py does not exist"):
        make(run, "sft", PLUGIN="nowhere.py")


def test_again_makes_the_stage_and_all_after_it_anew_with_their_checkpoints(run):
    (run.checkpoints("garm") / "global_step5").mkdir(parents=True)
    run.checkpoints("data").mkdir()
    data = run.data.path.stat().st_mtime_ns
    assert record.begin(run, "sft", VALUES | {"SFT_LR": "1e-4"}, again="stage")
    assert not run.garm.exists() and not run.checkpoints("garm").exists() and run.checkpoints("data").exists()
    assert run.sft.is_dir() and not list(run.sft.iterdir())
    assert run.data.path.stat().st_mtime_ns == data
    assert set(record.durations(run)) == {"data"}


def test_again_leaves_the_stages_that_read_nothing_of_it(run):
    assert record.begin(run, "intents", VALUES)
    (run.path / "intents" / "train.jsonl").write_text("{}\n")
    assert record.begin(run, "data", VALUES, again="stage")
    assert (run.path / "intents" / "train.jsonl").is_file() and not run.garm.exists()
    assert record.read_record(run)["intents"]["state"] == "begun"


def test_a_stage_made_anew_makes_the_later_ones_stale_even_where_they_were_left(run):
    entries = record.read_record(run)
    entries["sft"]["id"] = "redone"
    record.write_record(run, entries)
    with pytest.raises(record.Differs, match="sft has been redone since"):
        make(run, "garm")


def test_a_stage_made_from_one_that_was_redone_since_is_built_on_by_none(run):
    shutil.rmtree(run.sft)
    assert make(run, "sft", SFT_LR="1e-4", given=["SFT_LR"])
    said = "fusion builds on garm, which was made before sft was redone. AGAIN=1 bash recipes/garm.sh redoes it"
    with pytest.raises(ValueError, match=re.escape(said)):
        make(run, "fusion", SFT_LR="1e-4", given=["SFT_LR"])
    assert make(run, "garm", again="stage", SFT_LR="1e-4") and make(run, "fusion", SFT_LR="1e-4")


def test_again_redoes_what_reads_the_stage_by_a_variable(run):
    asked = {"GARM_BASE": str(run.sft), "given": ["GARM_BASE"]}
    assert make(run, "garm", again="stage", **asked) and make(run, "fusion", **asked)
    assert "sft" not in record.read_record(run)["garm"]["stages"]
    assert make(run, "rft", **asked)
    assert record.builds_on(run, record.read_record(run), "sft")[:3] == ["garm", "fusion", "rft"]
    assert make(run, "sft", again="stage", SFT_LR="1e-4", **asked)
    with pytest.raises(ValueError, match="garm is not finished"):
        make(run, "fusion", **asked)


AGREED_ON = {"MAX_LEN": "512", "N_SUGGESTIONS": "3", "POLICY": "Qwen/Qwen3-0.6B", "MAX_NEW_TOKENS": "40"}


@pytest.mark.parametrize(
    ("stage", "earlier", "name", "value"),
    [
        ("sft", "data", "MAX_LEN", "99"),
        ("rft", "data", "N_SUGGESTIONS", "5"),
        ("sft", "data", "POLICY", "Qwen/Qwen3-4B"),
        ("sft", "data", "POLICY", ""),
        ("sft", "data", "PROMPT_TEMPLATE", __file__),
        ("grpo", "fusion", "MAX_NEW_TOKENS", "9"),
    ],
)
def test_what_all_stages_agree_on_is_no_stage_s_own(tmp_path, stage, earlier, name, value):
    run = RunFolder(tmp_path / "run")
    for made in ("data", "sft", "garm", "fusion", "rft"):
        make(run, made, given=list(AGREED_ON), **AGREED_ON)
    before = run.record.read_bytes()
    said = f"{stage} builds on {earlier}, which was made with other settings; requested: {name}="
    with pytest.raises(ValueError, match=re.escape(said)):
        make(run, stage, again="stage", given=[name], **(AGREED_ON | {name: value}))
    assert run.record.read_bytes() == before


def test_a_stage_may_have_a_base_a_teacher_a_seed_and_gpus_of_its_own(run):
    of_its_own = {"DISTIL": "0", "SEED": "1", "GPUS": "8", "GARM_BASE": "Qwen/Qwen3-0.6B", "TEACHER": "Qwen/Qwen3-8B"}
    for stage in ("distil", "garm", "sft"):
        assert make(run, stage, again="stage", given=list(of_its_own), **of_its_own)


def test_through_the_whole_way_again_keeps_what_is_as_asked(run):
    assert not make(run, "data", again="differing")
    assert make(run, "sft", again="differing", SFT_LR="1e-4")
    assert make(run, "garm", again="differing")
    assert not make(run, "garm", again="differing")


def test_a_killed_stage_goes_on_with_the_same_and_stops_with_something_else(run):
    make(run, "fusion")
    assert record.begin(run, "grpo", VALUES)
    run.checkpoints("grpo").mkdir(parents=True)
    with pytest.raises(record.Differs, match="SEED=1"):
        record.begin(run, "grpo", VALUES | {"SEED": "1"})
    assert record.begin(run, "grpo", VALUES) and run.checkpoints("grpo").is_dir()
    # a checkpoint that the caller names is gone on from, with another reward as well
    flags = ["--ckpt.path", str(run.checkpoints("grpo") / "last_good")]
    assert record.begin(run, "grpo", VALUES | {"REWARD": "garm"}, flags)


def test_a_run_of_an_earlier_version_goes_on_under_a_variable_that_came_since_unless_it_is_named(run):
    assert "MAX_LEN" not in VALUES
    assert not make(run, "data", MAX_LEN="512")
    record.check_earlier(record.read_record(run), "sft", VALUES | {"MAX_LEN": "512"}, given=())
    for stage in ("data", "sft"):
        with pytest.raises(ValueError, match="MAX_LEN=99, made with no MAX_LEN"):
            make(run, stage, given=["MAX_LEN"], MAX_LEN="99")


def test_a_default_that_changed_since_is_told_from_what_a_call_asks_for(run, capsys):
    def begun(given: str) -> str:
        with pytest.raises(SystemExit):
            words = [f"{name}={value}" for name, value in (VALUES | {"SFT_LR": "1e-3"}).items()]
            record.main(["begin", "--run", str(run.path), "--stage", "sft", "--given", given, *words, "--"])
        return capsys.readouterr().err

    said = begun("")
    assert "SFT_LR=1e-3 by default, made with SFT_LR=2e-3" in said and f"CONFIG={run.variables} keeps those" in said
    said = begun("SFT_LR")
    assert "SFT_LR=1e-3, made with SFT_LR=2e-3" in said and "CONFIG=" not in said


def test_an_entry_of_another_form_is_told_in_one_line(run):
    text = run.record.read_text(encoding="utf-8").replace('"plugin_files"', '"plugins"')
    run.record.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="is from another version .data has no plugin_files.: use another RUN"):
        make(run, "data")


def test_what_a_killed_call_was_writing_is_gone_with_the_next_one(run):
    make(run, "fusion")
    assert record.begin(run, "grpo", VALUES)
    (run.grpo.path / "policy" / ".5ab.writing").mkdir(parents=True)
    for name in (".weights.json.77.writing", "policy/.5ab.writing/config.json"):
        (run.grpo.path / name).write_text("half")
    assert record.begin(run, "grpo", VALUES)
    assert not list(run.grpo.path.rglob("*.writing"))


def test_a_stage_whose_folder_was_removed_is_made_again(run):
    run.checkpoints("garm").mkdir(parents=True, exist_ok=True)
    for path in run.garm.iterdir():
        path.unlink()
    run.garm.rmdir()
    assert make(run, "garm")
    assert not run.checkpoints("garm").exists(), "it would go on from the end of what was removed"


def test_a_folder_that_no_record_speaks_of_is_not_taken_for_done(tmp_path):
    run = RunFolder(tmp_path)
    run.data.path.mkdir()
    write_products(run, "data")
    with pytest.raises(record.Differs, match="run.json does not say what it was made from"):
        make(run, "data")


def test_a_killed_removal_is_finished_by_the_next_call(run):
    entries = record.read_record(run)
    entries["garm"] = {"state": "removed", "given": {}}  # killed before its folder was gone
    record.write_record(run, entries)
    assert record.begin(run, "garm", VALUES) and not list(run.garm.iterdir())


def test_a_file_that_was_cut_at_a_line_end_is_found_before_it_is_trained_on(run):
    run.data.preferences.write_text('{"row": 1}\n' * 2)
    with pytest.raises(ValueError, match=r"preferences.jsonl is not what the stage wrote \(22 of 33 bytes\)"):
        make(run, "garm", again="stage")
    run.data.preferences.unlink()
    with pytest.raises(ValueError, match="preferences.jsonl is gone: redo it with AGAIN=1 bash recipes/data.sh"):
        make(run, "garm", again="stage")


def test_a_ranker_that_is_damaged_is_found_before_it_is_built_on(tmp_path):
    run = RunFolder(tmp_path / "run")
    assert record.begin(run, "intents", VALUES)
    (run.stage("intents") / "world").mkdir()
    for name in ("train.jsonl", "instruction.txt", "world/intents.jsonl"):
        (run.stage("intents") / name).write_text("{}\n" * 2)
    record.finish(run, "intents", 1)
    assert record.begin(run, "rank", VALUES)
    for name in ("two", "words"):
        (run.stage("rank") / name / ".half.writing").mkdir(parents=True)
        (run.stage("rank") / name / ".half.writing" / "ranker.json").write_text("{")
        (run.stage("rank") / name / "ranker.json").write_text("{}")
        write_safetensors(run.stage("rank") / name / "ranker.safetensors")
    record.finish(run, "rank", 1)
    assert not record.begin(run, "rank", VALUES)
    (run.stage("rank") / "words" / "ranker.safetensors").write_bytes(b"half")
    with pytest.raises(record.Differs, match="words/ranker.safetensors is not what the stage wrote"):
        record.begin(run, "rank", VALUES)
    (run.stage("intents") / "world" / "intents.jsonl").write_text("{}\n")
    with pytest.raises(ValueError, match=r"world/intents.jsonl is not what the stage wrote \(3 of 6 bytes\)"):
        record.begin(run, "rank", VALUES, again="stage")


def test_a_stage_waits_for_those_that_it_reads(run):
    with pytest.raises(ValueError, match="fusion is not finished in .*: bash recipes/fusion.sh"):
        make(run, "grpo")
    with pytest.raises(ValueError, match="distil is not finished"):
        make(run, "sft", DISTIL="1", again="stage")


def test_a_stage_that_made_nothing_is_not_done(run):
    make(run, "fusion")
    record.begin(run, "grpo", VALUES)
    with pytest.raises(ValueError, match=r"grpo wrote no .*\*\.safetensors: it is not done"):
        record.finish(run, "grpo", 1)
    write_products(run, "grpo")
    for path in run.grpo.path.iterdir():
        os.utime(path, (time.time() - 60,) * 2)  # of an earlier call
    with pytest.raises(ValueError, match="grpo wrote nothing: .* is older than this call"):
        record.finish(run, "grpo", 1)
    assert "grpo" not in record.durations(run)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a"', "ends in the middle of a line"),
        ("a.json", b'{"a": ', "is not complete JSON"),
        ("a.safetensors", b"", "is not a safetensors file, or its header is truncated"),
        ("a.safetensors", b"\x20\0\0\0\0\0\0\0{", "is not a safetensors file, or its header is truncated"),
        ("a.jsonl", b"", ""),
    ],
)
def test_a_file_that_is_not_whole_is_told(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    assert problem in broken(tmp_path / name) and bool(problem) == bool(broken(tmp_path / name))


def test_safetensors_that_lack_their_last_byte_are_told(tmp_path):
    write_safetensors(tmp_path / "m.safetensors", n_bytes=100)
    assert broken(tmp_path / "m.safetensors") == ""
    whole = (tmp_path / "m.safetensors").read_bytes()
    (tmp_path / "m.safetensors").write_bytes(whole[:-1])
    assert broken(tmp_path / "m.safetensors") == f"has {len(whole) - 1} of {len(whole)} bytes"


def test_a_run_remembers_what_it_was_given_and_no_default(tmp_path):
    run = RunFolder(tmp_path / "run")
    make(run, "data", given=["N_CONTEXTS", "REWARD"])
    make(run, "sft", given=["REWARD"], REWARD="ood")
    assert record.recall(run, "sft", ["REWARD", "N_CONTEXTS", "SFT_LR"]) == {"REWARD": "ood", "N_CONTEXTS": "300"}
    assert record.recall(run, "data", ["REWARD"]) == {"REWARD": "garm,ood"}, "a stage's own comes first"
    assert record.recall(run, "grpo", ["REWARD"]) == {"REWARD": "ood"}
    record.begin(run, "sft", VALUES, again="stage")
    assert record.recall(run, "grpo", ["N_CONTEXTS"]) == {"N_CONTEXTS": "300"}, "what AGAIN removes is remembered"


def test_what_one_stage_was_given_for_itself_is_not_recalled_for_another_that_is_there(run):
    assert make(run, "fusion") and make(run, "grpo", given=["SEED", "POLICY"], SEED="1", POLICY="")
    for stage in ("data", "sft", "garm", "fusion"):
        assert record.recall(run, stage, ["SEED"]) == {}
        assert not make(run, stage, given=list(record.recall(run, stage, ["SEED"])))
    assert record.recall(run, "grpo", ["SEED"]) == {"SEED": "1"}
    assert record.recall(run, "evaluate", ["SEED"]) == {"SEED": "1"}, "which is not there yet"
    assert record.recall(run, "grpo_garm", ["SEED"]) == {"SEED": "1"}, "which is no stage"
    assert record.recall(run, "sft", ["POLICY"]) == {"POLICY": ""}, "on which all agree"


def test_a_log_inside_a_folder_that_again_would_remove_is_kept(tmp_path):
    run = RunFolder(tmp_path)
    run.data.path.mkdir()
    log = run.data.path / "mine.jsonl"
    log.write_text("a\n")
    asked = asked_of("data", {"CLICK_LOG": str(log)}, [])
    record.write_record(run, {"data": {"state": "begun", "stages": {}, **asked}})
    with pytest.raises(ValueError, match="which AGAIN=1 would remove: move it first"):
        record.begin(run, "data", VALUES | {"CLICK_LOG": str(log)}, again="stage")
    assert log.is_file()


def test_an_arm_of_an_ablation_shares_stages_of_another_run(run, tmp_path):
    arm = RunFolder(tmp_path / "arm")
    record.share(arm, run, ["data", "sft"])
    assert not make(arm, "sft") and arm.sft.is_symlink()
    assert make(arm, "garm") and not arm.garm.is_symlink()
    make(run, "fusion")
    record.share(arm, run, ["fusion/responses.jsonl"])
    assert make(arm, "fusion") and arm.fusion_responses.exists()
    make(run, "sft", again="stage", SEED="1")  # the arm's GaRM is then stale
    record.share(arm, run, ["data", "sft"])
    with pytest.raises(record.Differs, match="sft has been redone since"):
        make(arm, "garm")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "[]",
        '{"stages": {"data": 1}}',
        '{"stages": {"data": {"state": "odd"}}}',
        '{"stages": {"data": {"state": "done", "seconds": Infinity}}}',
        '{"stages": {"data": {"state": "done", "seconds": "long"}}}',
    ],
)
def test_a_record_that_is_damaged_is_told_in_one_line(run, text):
    run.record.write_text(text)
    with pytest.raises(ValueError, match="run.json cannot be read"):
        make(run, "sft")


def test_run_json_says_what_a_stage_was_made_from(run):
    entry = json.loads(run.record.read_text())["stages"]["sft"]
    assert entry["variables"]["SFT_LR"] == "2e-3" and entry["stages"] == {
        "data": record.read_record(run)["data"]["id"]
    }
    assert entry["versions"]["openrlhf-qs"] and entry["python"] and "commit" in entry
    assert set(entry["products"]) == {"model.safetensors", "config.json", "tokenizer_config.json"}
    assert list(json.loads(run.record.read_text())["stages"]) == ["data", "sft", "garm"]


def test_every_stage_of_the_way_has_a_record_and_a_folder():
    assert list(STAGES) == list(STAGE_FOLDERS)


@pytest.mark.parametrize("flags", [("--logger.wandb.key", "secret"), ("--logger.wandb.key=secret",)])
def test_a_key_is_written_nowhere_and_the_run_goes_on_with_another(run, flags):
    assert make(run, "garm", again="stage", flags=(*flags, "--adam.eps", "1e-7"))
    written = "".join(path.read_text(errors="replace") for path in run.path.rglob("*") if path.is_file())
    assert "secret" not in written and "--adam.eps" in written
    assert not make(run, "garm", flags=("--logger.wandb.key", "other", "--adam.eps", "1e-7"))
