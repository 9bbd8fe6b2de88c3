import asyncio
import inspect
import json
import math
import threading
import unicodedata
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openrlhf_qs.form.request import Request
from openrlhf_qs.form.response import format_response
from openrlhf_qs.form.task import SUGGEST
from openrlhf_qs.registry import REWARDS, load_plugins
from openrlhf_qs.reward import remote as remote_reward
from openrlhf_qs.reward.composite import CompositeReward
from openrlhf_qs.reward.remote import Batcher, RemoteReward, RewardFailed, load_reward, read_rollout, response_text

CONVERSATION = [
    {"role": "user", "content": "How do I bake bread?"},
    {"role": "assistant", "content": "Let the dough rise for long, then bake it in an oven."},
]
LABEL = Request(CONVERSATION).label()
PROMPT = "<|im_start|>user\nHow do I bake bread at 220 °C?<|im_end|>\n<|im_start|>assistant\n"
GOOD = "1. How long should dough rise?\n2. Which flour is best?\n3. Can it be frozen?"
BAD = "Ask me anything."


@pytest.fixture(scope="module", autouse=True)
def plugins():
    load_plugins()


def remote_reward_of(*names, **options):
    return RemoteReward(CompositeReward(names, options), scorer=None, wait_s=0.0)


def call(reward, response, prompt=PROMPT, label=LABEL):
    return reward([prompt + response], [prompt], [label])


# What stands after the prompt


@given(response=st.text())
def test_the_response_is_what_follows_the_prompt(response):
    assert response_text(PROMPT + response, PROMPT) == response


def test_moved_blanks_and_composed_letters_do_not_hide_the_prompt():
    decomposed = unicodedata.normalize("NFD", PROMPT + "Où est le café ? ")
    assert decomposed != PROMPT
    assert response_text(unicodedata.normalize("NFC", decomposed) + GOOD, decomposed) == " " + GOOD
    assert response_text(PROMPT.replace("<|im_end|>\n", "<|im_end|> ") + GOOD, PROMPT).strip() == GOOD


def test_a_prompt_that_lost_its_beginning_is_found_by_its_end():
    assert response_text(PROMPT[30:] + GOOD, PROMPT).strip() == GOOD
    assert response_text("\ufffd" + PROMPT[30:] + GOOD, PROMPT).strip() == GOOD  # cut amid a character


def test_of_a_cut_prompt_the_longest_end_counts():
    turn = "<|start_header_id|>assistant<|end_header_id|>\n\n"  # an end of the prompt, and its beginning
    assert response_text(f"{turn}Bread.<|eot_id|>{turn}{GOOD}", f"Hi {turn}Bread.<|eot_id|>{turn}").strip() == GOOD


@pytest.mark.parametrize("query", ["", "n", "another text", PROMPT[-5:] + GOOD, PROMPT[:-30] + GOOD])
def test_a_query_without_its_prompt_is_an_error(query):
    with pytest.raises(ValueError, match="cannot be told apart"):
        response_text(query, PROMPT)


@pytest.mark.parametrize(
    "end", ["<|im_end|>", "<|eot_id|>\n", "</s>", "<end_of_turn>", "<｜end▁of▁sentence｜>", "<turn|>"]
)
def test_special_tokens_are_cut_off_and_say_that_the_response_is_whole(end):
    rollout = read_rollout(PROMPT + GOOD + end, PROMPT, LABEL)
    assert (rollout.response.strip(), rollout.finish_reason) == (GOOD, "stop")
    assert rollout.request.conversation == CONVERSATION


def test_padding_after_the_end_is_cut_off_as_well():
    assert read_rollout(f"{PROMPT}{GOOD}<|im_end|><|endoftext|><|endoftext|>", PROMPT, LABEL).response == GOOD


def test_a_response_without_an_end_was_cut_at_the_token_limit():
    rollout = read_rollout(f"{PROMPT}1. Is 3 < 4|5?<|im_start|>\n2. Wh", PROMPT, LABEL)
    assert (rollout.response, rollout.finish_reason) == ("1. Is 3 < 4|5?\n2. Wh", "length")


@pytest.mark.parametrize("label", ["", None, "bread", "{}", "[]", '["bread"]', '[{"role": "user"}]'])
def test_a_label_that_is_no_conversation_is_an_error_that_names_the_flag(label):
    with pytest.raises(ValueError, match="--data.label_key label"):
        read_rollout(PROMPT + GOOD, PROMPT, label)


# The reward of one call


def test_a_call_returns_reward_score_and_parts():
    # rules: 0 in good form; diversity: in (0, 1]; both raw, weight 1
    result = call(remote_reward_of("rules", "diversity"), GOOD + "<|im_end|>")
    parts = result["extra_logs"]
    assert list(parts) == ["reward/rules", "reward/diversity"]
    assert parts["reward/rules"] == 0 and 0 < parts["reward/diversity"] <= 1
    assert result["rewards"] == parts["reward/rules"] + parts["reward/diversity"]
    assert result["scores"] == pytest.approx(1 / (1 + math.exp(-result["rewards"])))
    assert type(result["rewards"]) is type(result["scores"]) is float


def test_a_malformed_and_a_cut_response_have_the_same_keys_and_lose_reward():
    reward = remote_reward_of("rules", "diversity")
    results = [call(reward, response) for response in (BAD + "<|im_end|>", GOOD)]
    assert [result["extra_logs"]["reward/rules"] for result in results] == [-1, -1]
    assert len({tuple(result["extra_logs"]) for result in results}) == 1


def test_scores_stay_inside_0_and_1_for_extreme_rewards():
    composite = SimpleNamespace(score=lambda batch: SimpleNamespace(raw={}, total=torch.tensor([1e4, -1e4])))
    rollout = read_rollout(PROMPT + GOOD, PROMPT, LABEL)
    high, low = RemoteReward(composite, None, 0.0).score([rollout, rollout])
    assert 0 < low["scores"] < high["scores"] < 1


def test_concurrent_calls_are_scored_together_and_each_gets_its_own():
    release, sizes = threading.Event(), []
    reward = remote_reward_of("rules")
    score = reward.batcher.function

    def slow_score(rollouts):
        sizes.append(len(rollouts))
        release.wait(10)
        return score(rollouts)

    reward.batcher.function = slow_score
    responses = [(GOOD if n % 3 else BAD) + "<|im_end|>" for n in range(16)]
    with ThreadPoolExecutor(16) as pool:
        futures = [pool.submit(call, reward, response) for response in responses]
        while sum(sizes) + reward.batcher.calls.qsize() < 16:
            pass
        release.set()
        rewards = [future.result()["rewards"] for future in futures]
    assert rewards == [0 if n % 3 else -1 for n in range(16)]
    assert len(sizes) == 2 and sum(sizes) == 16  # the first, and all that came while it was scored


def test_an_error_reaches_every_call_of_its_batch_and_the_next_batch_is_served():
    def halve(items):
        if 0 in items:
            raise ZeroDivisionError("0 in the batch")
        return [8 / item for item in items]

    batcher = Batcher(halve, wait_s=0.05)
    with ThreadPoolExecutor(2) as pool:
        futures = [pool.submit(batcher, item) for item in (0, 1)]
        assert [type(future.exception()) for future in futures] == [ZeroDivisionError] * 2
    assert batcher(4) == 2


def test_a_function_that_forgets_an_item_is_an_error():
    with pytest.raises(ValueError, match="zip"):
        Batcher(lambda items: [], wait_s=0.0)(1)


@pytest.mark.parametrize("error", [ZeroDivisionError(), SystemExit(1)])
def test_whatever_fails_is_no_exception_that_openrlhf_would_swallow(error):
    def fail(rollouts):
        raise error

    reward = remote_reward_of("rules")
    reward.batcher.function = fail
    with pytest.raises(RewardFailed, match=type(error).__name__):
        call(reward, GOOD)
    assert not issubclass(RewardFailed, Exception)


def test_more_than_one_query_in_a_call_is_refused():
    with pytest.raises(RewardFailed, match="2 queries"):
        remote_reward_of("rules")([PROMPT, PROMPT], [PROMPT], [LABEL])


# What the environment asks for


def test_the_environment_names_parts_options_weights_and_wait(tmp_path):
    parts = {"rules": {"weight": 2.0, "mean": -0.5, "std": 0.5}}
    (tmp_path / "weights.json").write_text(json.dumps({"rewards": parts}))
    environ = {
        "OPENRLHF_QS_REWARD": "rules",
        "OPENRLHF_QS_OPTIONS": "rules.min_width=9, rules.max_width=12",
        "OPENRLHF_QS_WEIGHTS": str(tmp_path / "weights.json"),
        "OPENRLHF_QS_BATCH_WAIT_MS": "2.5",
    }
    reward = load_reward(environ)
    assert reward.batcher.wait_s == 0.0025
    # no suggestion of GOOD has nine words: rules are -1; (-1 + 0.5) / 0.5 * 2 = -2
    assert call(reward, GOOD + "<|im_end|>")["rewards"] == -2


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("OPENRLHF_QS_REWARD", "", "set OPENRLHF_QS_REWARD_MODEL"),  # garm is in the default
        ("OPENRLHF_QS_REWARD", "rules,ood", "openrlhf-qs grpo --qs.reward rules,ood"),
        ("OPENRLHF_QS_REWARD", "rules,charm", "unknown reward 'charm'"),
        ("OPENRLHF_QS_OPTIONS", "ood.threshold=1", "'ood' is not in OPENRLHF_QS_REWARD=rules"),
        ("OPENRLHF_QS_WEIGHTS", "nowhere.json", "nowhere.json does not exist"),
        ("OPENRLHF_QS_PLUGINS", "nowhere.py", "nowhere.py does not exist"),
        ("OPENRLHF_QS_BATCH_WAIT_MS", "soon", "OPENRLHF_QS_BATCH_WAIT_MS=soon"),
        ("OPENRLHF_QS_BATCH_WAIT_MS", "-1", "OPENRLHF_QS_BATCH_WAIT_MS=-1"),
    ],
)
def test_a_wrong_variable_is_refused_at_load(variable, value, message):
    with pytest.raises(ValueError, match=message):
        load_reward({"OPENRLHF_QS_REWARD": "rules", variable: value})


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("OPENRLHF_QS_REWARD_MODEL", "nowhere", "nowhere: no such folder, seen from"),
        ("OPENRLHF_QS_REWARD_MODEL", ".", "config.json"),
        ("OPENRLHF_QS_DEVICE", "gpu", "OPENRLHF_QS_DEVICE=gpu"),
    ],
)
def test_a_reward_model_that_cannot_be_loaded_is_refused_at_load(variable, value, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_reward({"OPENRLHF_QS_REWARD": "garm", "OPENRLHF_QS_REWARD_MODEL": str(tmp_path), variable: value})


# Inside OpenRLHF's own executor


@pytest.fixture(scope="module")
def agent():
    """``openrlhf.utils.agent``, as it is."""
    from openrlhf_qs.host import flash_attn_stand_in

    flash_attn_stand_in.install()
    import openrlhf.utils.agent

    return openrlhf.utils.agent


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A small policy and an untrained GaRM upon it."""
    import polars as pl
    from transformers import AutoConfig, AutoModel, AutoTokenizer

    from openrlhf_qs.clicks.click_log import SCHEMA
    from openrlhf_qs.garm.reward_model import reward_model_class
    from openrlhf_qs.sft.small_policy import build_small_policy

    policy, garm = (tmp_path_factory.mktemp("models") / name for name in ("policy", "garm"))
    rows = {"conversation": [CONVERSATION], "suggestions": [["How long?", "Which flour?", "Can it be frozen?"]]}
    log = pl.DataFrame(rows, schema={name: SCHEMA[name] for name in rows})
    build_small_policy(log, policy, vocab_size=300, hidden_size=128, n_layers=1)
    config = AutoConfig.from_pretrained(policy)
    base = AutoModel._model_mapping[type(config)]
    mark = {"name": "gaussian", "options": {}}
    torch.manual_seed(0)
    reward_model_class(base.__base__, base, mark=mark)(config).float().save_pretrained(garm)
    AutoTokenizer.from_pretrained(policy).save_pretrained(garm)
    return policy, garm


@pytest.fixture(scope="module")
def tokenizer(folders):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folders[0])


class ScriptedEngine:
    """vLLM, as the executor sees it: answers with the given texts in turn."""

    def __init__(self, tokenizer, texts):
        self.answers = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]

    async def generate(self, prompt_token_ids, sampling_params, multi_modal_data=None):
        output = SimpleNamespace(token_ids=self.answers.pop(0), finish_reason="stop", logprobs=None, text="")
        return SimpleNamespace(outputs=[output])


def load_file(agent, monkeypatch, **environ):
    """OpenRLHF's executor with our file as ``--reward.remote_url``."""
    for name, value in environ.items():
        monkeypatch.setenv(f"OPENRLHF_QS_{name}", str(value))
    return agent.SingleTurnAgentExecutor([remote_reward.__file__])


def rollouts(executor, tokenizer, responses, max_length=1024, label=LABEL):
    """What OpenRLHF makes of ``responses`` to one prompt."""
    prompt = tokenizer.apply_chat_template(SUGGEST.messages(CONVERSATION), tokenize=False, add_generation_prompt=True)
    engine = ScriptedEngine(tokenizer, responses)
    params = SimpleNamespace(max_tokens=64, logprobs=None)

    async def generate_responses():
        tasks = [executor.execute(prompt, label, params, max_length, tokenizer, engine) for _ in responses]
        return await asyncio.gather(*tasks)

    return asyncio.run(generate_responses())


def test_the_executor_is_the_one_that_was_read(agent):
    executor = agent.SingleTurnAgentExecutor
    assert list(inspect.signature(executor.__init__).parameters) == ["self", "remote_rm_url"]
    parameters = list(inspect.signature(executor.execute).parameters)
    assert parameters == "self prompt label sampling_params max_length hf_tokenizer llm_engine images".split()
    called = inspect.signature(executor._fetch_rewards_via_func).parameters
    assert list(called) == ["self", "queries_list", "prompts_list", "labels_list"]


def test_the_executor_calls_with_lists_of_one_in_a_thread_and_swallows_exceptions(agent, tokenizer, tmp_path):
    file = tmp_path / "spy.py"
    file.write_text(
        "import threading\n"
        "calls = []\n"
        "def reward_func(*lists):\n"
        "    calls.append((lists, threading.current_thread() is threading.main_thread()))\n"
        "    raise Exception\n"
    )
    executor = agent.SingleTurnAgentExecutor([str(file)])
    outputs = rollouts(executor, tokenizer, [GOOD, BAD])
    calls = executor.reward_func.__globals__["calls"]
    assert [(*map(len, lists), main) for lists, main in calls] == [(1, 1, 1, False)] * 2
    assert [output["reward"] for output in outputs] == [None, None]  # why RewardFailed is no Exception


def test_the_executor_gets_rewards_scores_and_parts_from_our_file(agent, monkeypatch, tokenizer, folders):
    from openrlhf_qs.garm.reward_model import SuggestionScorer

    responses = [format_response([f"{word} long is it?", "Which flour?", "Why?"]) for word in ("How", "What", "Where")]
    ended = [response + tokenizer.eos_token for response in responses]
    executor = load_file(agent, monkeypatch, REWARD="garm,garm_sigma", REWARD_MODEL=folders[1], DEVICE="cpu")
    outputs = rollouts(executor, tokenizer, ended)
    scorer = SuggestionScorer(folders[1])
    for response, output in zip(responses, outputs, strict=True):
        suggestions = [line[3:] for line in response.splitlines()]
        mean, std, _ = scorer([CONVERSATION] * 3, suggestions)
        expected = {"reward/garm": mean.mean(), "reward/garm_sigma": -std.mean()}
        assert output["extra_logs"] == pytest.approx(expected, abs=1e-5)
        assert output["reward"] == pytest.approx(sum(expected.values()), abs=1e-5)
        assert output["scores"] == pytest.approx(1 / (1 + math.exp(-output["reward"])))


def test_a_prompt_that_openrlhf_cuts_is_told_apart_from_its_response(agent, monkeypatch, tokenizer):
    # 64 tokens are kept for the response: of the prompt's some 150 tokens, 80 are left
    executor = load_file(agent, monkeypatch, REWARD="rules")
    [output] = rollouts(executor, tokenizer, [GOOD + tokenizer.eos_token], max_length=144)
    assert len(output["observation_tokens"][: output["action_ranges"][0][0]]) == 80
    assert output["reward"] == 0


def test_a_reward_that_fails_stops_the_rollout_with_its_message(agent, monkeypatch, tokenizer, tmp_path):
    monkeypatch.setattr(REWARDS, "_plugins", dict(REWARDS._plugins))  # what is registered here is forgotten after it
    file = tmp_path / "fragile.py"
    file.write_text(
        "from openrlhf_qs.registry import REWARDS\n"
        "@REWARDS.register('fragile_in_this_test')\n"
        "class Fragile:\n"
        "    def __call__(self, batch):\n"
        "        return [float('nan') if 'oven' in response else 1.0 for response in batch.responses]\n"
    )
    executor = load_file(agent, monkeypatch, REWARD="fragile_in_this_test", PLUGINS=file)
    assert [output["reward"] for output in rollouts(executor, tokenizer, [GOOD, BAD])] == [1, 1]
    with pytest.raises(RewardFailed, match="reward 'fragile_in_this_test' is nan for response 'An oven'"):
        rollouts(executor, tokenizer, [GOOD, "An oven", BAD])


def test_a_missing_label_stops_the_rollout(agent, monkeypatch, tokenizer):
    with pytest.raises(RewardFailed, match="--data.label_key label"):
        rollouts(load_file(agent, monkeypatch, REWARD="rules"), tokenizer, [GOOD], label="")


def test_the_file_refuses_at_load_what_plain_openrlhf_cannot_give(agent, monkeypatch):
    with pytest.raises(ValueError, match="openrlhf-qs grpo"):
        load_file(agent, monkeypatch, REWARD="ood")


def test_weights_that_want_groups_are_refused(tmp_path):
    weights = tmp_path / "weights.json"
    weights.write_text(json.dumps({"normalisation": "group", "rewards": {"rules": {}}}))
    with pytest.raises(
        ValueError, match="learned for the normalisation 'group', but a reward function sees no groups"
    ):
        load_reward({"OPENRLHF_QS_REWARD": "rules", "OPENRLHF_QS_WEIGHTS": str(weights)})
