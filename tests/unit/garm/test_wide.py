import argparse
import json

import numpy as np
import pytest
import torch
from scipy import sparse

from openrlhf_qs.clicks.click_log import read_click_log
from openrlhf_qs.files.whole import write_json_lines
from openrlhf_qs.garm import fit_wide
from openrlhf_qs.garm.calibrate import rescale_means
from openrlhf_qs.garm.crosses import N_BUCKETS, buckets
from openrlhf_qs.garm.fit_wide import boosted, fit, of_overlaps, ridge, stacked
from openrlhf_qs.garm.overlap import FIGURES, NO_WORD, figures_of_turns, rarities, token_forms, turns_of
from openrlhf_qs.garm.reward_model import Overlaps, SuggestionScorer, encode_suggestions, load_reward_model
from openrlhf_qs.garm.shown import Clicks
from openrlhf_qs.models.shared_prefix import share_prefixes, texts_of
from openrlhf_qs.sft.small_policy import train_tokenizer

END = 2
ASKED = ["How do I begin?", "What did I pay?"]
SUGGESTED = ["What does it cost?", "Where do I start?"]


def under(question: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": question}, {"role": "assistant", "content": "That depends."}]


def clicks_that_hang_on_both(n: int, seed: int = 0, strength: float = 3.0) -> list[dict]:
    """Each question has one suggestion that is liked under it; on the average both are liked as much."""
    rng = np.random.default_rng(seed)
    rows = []
    for k in range(n):
        asked, order = int(rng.integers(2)), rng.permutation(2)
        odds = np.array([strength if place == asked else -strength for place in order]) / 2
        clicks = (rng.random(2) < 1 / (1 + np.exp(-odds))).astype(int).tolist()
        suggestions = [SUGGESTED[place] for place in order]
        rows.append(
            {
                "impression_id": f"{seed}-{k}",
                "conversation": under(ASKED[asked]),
                "suggestions": suggestions,
                "clicks": clicks,
                "pairs": [[clicks.index(1), clicks.index(0), 1.0, 1.0]] if sum(clicks) == 1 else [],
            }
        )
    return rows


def test_a_text_has_the_crosses_of_its_last_turn_with_the_question_two_turns_before():
    question, answer, suggestion = [11, 12, END], [13, END], [14, 11, END]
    found = set(buckets(question + answer + suggestion, END, N_BUCKETS))
    # two tokens, one that follows another, 2 x 3 crosses (the end of the question is one), one that was asked
    assert len(found) == 2 + 1 + 6 + 1
    assert found == set(buckets([99, END] + question + answer + suggestion, END, N_BUCKETS)), "no more than these"
    other = set(buckets([15, 16, END] + answer + suggestion, END, N_BUCKETS))
    assert len(found & other) == 2 + 1 + 2, "what hangs on the question is another's"
    assert len(set(buckets(suggestion, END, N_BUCKETS))) == 3, "alone it has its own words"
    assert found != set(buckets(question + answer + [11, 14, END], END, N_BUCKETS)), "order counts"


def test_texts_in_rows_that_share_a_beginning_are_whole_again():
    texts = [[5, 6, END, 7, END, 8, 9, END], [5, 6, END, 7, END, 8, 10, 11, END], [5, END]]
    shared = share_prefixes(texts, [0, 0, 1], 0)
    read = list(texts_of(shared.input_ids, shared.segments))
    assert [read[place] for place in shared.place] == texts
    ids = torch.tensor([[0, 5, END], [4, 5, END]])
    assert list(texts_of(ids, (ids > 0).long())) == [[5, END], [4, 5, END]]


def test_what_a_linear_model_of_crosses_knows_it_finds_and_examination_is_taken_out():
    rng = np.random.default_rng(0)
    features = sparse.csr_matrix(rng.integers(0, 2, size=(20_000, 3)).astype(float))
    log_odds, looked_at = features @ np.array([2.0, -1.0, 0.0]) - 1, np.where(rng.random(20_000) < 0.5, 1.0, 0.4)
    clicked = (rng.random(20_000) < looked_at / (1 + np.exp(-log_odds))).astype(float)
    weights, constant = ridge(features, Clicks(clicked, looked_at, np.zeros(20_000)))
    np.testing.assert_allclose([*weights, constant], [2.0, -1.0, 0.0, -1.0], atol=0.15)


def test_of_two_models_the_one_that_knows_nothing_gets_no_factor():
    rng = np.random.default_rng(0)
    log_odds = rng.normal(size=20_000)
    clicks = Clicks(
        (rng.random(20_000) < 1 / (1 + np.exp(-log_odds))).astype(float), np.ones(20_000), np.zeros(20_000)
    )
    (known, noise, constant), _ = stacked(clicks, 2 * log_odds, rng.normal(size=20_000))
    np.testing.assert_allclose([known, noise, constant], [0.5, 0.0, 0.0], atol=0.05)


def test_a_reward_model_learns_what_hangs_on_question_and_suggestion_together(write_small_garm):
    folder = write_small_garm("click_gaussian")
    report = fit(clicks_that_hang_on_both(600), clicks_that_hang_on_both(300, seed=1), folder)
    assert report["with both"] < 0.55 < 0.6 < report["negative log-likelihood of a click there, before"]
    scorer = SuggestionScorer(folder)
    conversations = [under(question) for question in ASKED for _ in SUGGESTED]
    mean, *_ = scorer(conversations, SUGGESTED * 2)
    assert mean[0] > mean[1] + 1 and mean[3] > mean[2] + 1
    # alone in its row as among others, and after a temperature, which the config multiplies with what the fit did
    plain = scorer.model(*encode_suggestions(scorer.tokenizer, conversations, SUGGESTED * 2, 512))
    np.testing.assert_allclose(plain[:, 0].detach().numpy(), mean, rtol=1e-4, atol=1e-5)
    config = json.loads((folder / "config.json").read_text())
    assert config["mean_scale"] == pytest.approx(report["the reward model's log-odds, times"])
    rescale_means(folder, 0.5)
    assert json.loads((folder / "config.json").read_text())["mean_scale"] == pytest.approx(config["mean_scale"] / 2)
    raw = [
        one.model(*encode_suggestions(one.tokenizer, conversations, SUGGESTED * 2, 512), return_output=True)[0]
        for one in (scorer, SuggestionScorer(folder))
    ]
    torch.testing.assert_close(raw[1][:, 0], raw[0][:, 0] / 2, rtol=1e-4, atol=1e-5)


def clicks_that_hang_on_overlap(n: int, seed: int = 0) -> list[dict]:
    """Of two suggestions the one that takes up a word of the question is liked; words that no other row has."""
    rng = np.random.default_rng(seed)
    rows = []
    for k in range(n):
        letters = ["".join(rng.choice(list("abcdefghijklm"), 4)) for _ in range(4)]
        conversation = under(f"What is {letters[0]} {letters[1]}?")
        order = rng.permutation(2)
        suggestions = [(f"Tell me {letters[0]} now", f"Tell me {letters[2]} now")[place] for place in order]
        odds = np.where(order == 0, 1.5, -1.5)
        clicks = (rng.random(2) < 1 / (1 + np.exp(-odds))).astype(int).tolist()
        rows.append(
            {"impression_id": str(k), "conversation": conversation, "suggestions": suggestions, "clicks": clicks}
        )
    return rows


def test_a_reward_model_learns_overlap_from_words_that_it_never_saw_again(write_small_garm):
    folder = write_small_garm("click_gaussian")
    report = fit(clicks_that_hang_on_overlap(500), clicks_that_hang_on_overlap(200, seed=1), folder)
    assert report["those of the overlaps, times"] > 0.3
    assert report["with both"] < report["negative log-likelihood of a click there, before"] - 0.08
    scorer = SuggestionScorer(folder)
    fresh = clicks_that_hang_on_overlap(100, seed=2)
    conversations = [row["conversation"] for row in fresh for _ in range(2)]
    texts = [text for row in fresh for text in row["suggestions"]]
    mean, *_ = scorer(conversations, texts)
    named = np.array([text.split()[2] in one[0]["content"] for one, text in zip(conversations, texts, strict=True)])
    higher = np.where(named[::2], mean[::2] > mean[1::2], mean[1::2] > mean[::2])
    assert higher.mean() > 0.9
    # alone in its row as among others; in bfloat16 no threshold moves; a temperature holds for the trees, too
    plain = scorer.model(*encode_suggestions(scorer.tokenizer, conversations, texts, 512))
    np.testing.assert_allclose(plain[:, 0].detach().numpy(), mean, rtol=1e-4, atol=1e-5)
    ids = [[5, 6, END, 7, END, 6, 8, END], [5, 6, END, 7, END, 9, END]]
    whole, short = (load_reward_model(folder, dtype).overlaps for dtype in (torch.float32, torch.bfloat16))
    assert torch.equal(whole(ids), short(ids))
    rescale_means(folder, 0.5)
    torch.testing.assert_close(load_reward_model(folder).overlaps(ids), whole(ids) / 2)


def test_the_trees_of_the_model_say_what_lightgbm_says():
    rng = np.random.default_rng(0)
    forms = np.arange(40, dtype=np.int32)
    texts = [
        [token for length in (6, 9, n) for token in (*rng.integers(3, 40, length).tolist(), END)]
        for n in rng.integers(1, 12, 600)
    ]
    clicks = Clicks(rng.integers(0, 2, 600).astype(float), np.full(600, 0.8), np.zeros(600))
    found = of_overlaps(texts, texts, clicks, END, forms)
    module = Overlaps(**found.options)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in found.tensors(1.0).items()})
    said = module(texts)[:, 0].numpy() + found.constant
    np.testing.assert_allclose(said, found.log_odds, atol=1e-5)
    assert said.std() > 0.1, "they say something"


def test_so_few_suggestions_that_no_tree_can_split_them_say_nothing():
    texts = [[5, 6, END, 7, END, 6, END], *[[5, 6, END, 7, END, 8, END]] * 9]
    clicks = Clicks(np.array([1.0, *[0.0] * 9]), np.ones(10), np.zeros(10))
    assert of_overlaps(texts[1:], texts[:2], Clicks(*(column[1:] for column in clicks)), END, np.arange(20)) is None
    found = of_overlaps(texts, texts[:2], clicks, END, np.arange(20, dtype=np.int32))
    module = Overlaps(**found.options)
    module.load_state_dict({name: torch.from_numpy(array) for name, array in found.tensors(1.0).items()})
    np.testing.assert_allclose(module(texts[:2])[:, 0].numpy() + found.constant, found.log_odds, atol=1e-6)
    np.testing.assert_allclose(found.log_odds, np.log(1 / 9), atol=0.1)


def test_trees_find_what_users_do_and_examination_is_taken_out():
    rng = np.random.default_rng(0)
    figures = rng.integers(0, 3, size=(20_000, 2)).astype(np.float32)
    log_odds, looked_at = np.where(figures[:, 0] == 1, 1.5, -1.5), np.where(rng.random(20_000) < 0.5, 1.0, 0.4)
    clicked = (rng.random(20_000) < looked_at / (1 + np.exp(-log_odds))).astype(float)
    trees, constant = boosted(figures, Clicks(clicked, looked_at, np.zeros(20_000)))
    found = trees.predict(np.array([[0, 1], [1, 1], [2, 1]]), raw_score=True) + constant
    np.testing.assert_allclose(found, [-1.5, 1.5, -1.5], atol=0.2)


def test_a_word_is_one_however_it_is_written_and_marks_and_signs_are_none(tiny_log):
    tokenizer = train_tokenizer(read_click_log(tiny_log), vocab_size=400)
    forms = token_forms(tokenizer)
    control = tokenizer.convert_tokens_to_ids(tokenizer.eos_token)
    assert forms[control] == NO_WORD
    [upper], [lower] = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("A", "a"))
    [sign] = tokenizer("?", add_special_tokens=False)["input_ids"]
    assert forms[upper] == forms[lower] != NO_WORD and forms[sign] == NO_WORD


def test_figures_are_of_the_last_turn_beside_the_two_before_and_a_suggestion_alone_has_them_too():
    forms = np.arange(20, dtype=np.int32)
    forms[19] = NO_WORD
    turns = turns_of([3, END, 4, END, 5, 6, END, 7, 19, END, 5, 7, 3, 9, END], END, forms)
    assert turns == [[3], [4], [5, 6], [7], [5, 7, 3, 9]]
    rarity = rarities([[5, 7, 3, 9], [5]], 20)
    found = dict(zip(FIGURES, figures_of_turns(turns, rarity), strict=True))
    assert [found[f"words in {where}"] for where in ("the question", "the answer", "earlier turns")] == [0.25] * 3
    assert found["rarest word in the question"] == 0
    assert found["rarest word in the answer alone"] == pytest.approx(np.log(2))
    alone = dict(zip(FIGURES, figures_of_turns(turns_of([5, END], END, forms), rarity), strict=True))
    assert alone["words"] == 1 and sum(alone.values()) == 1
    assert len(figures_of_turns(turns_of([], END, forms), rarity)) == len(FIGURES)


def run_on(tmp_path, folder, train, kept_apart) -> None:
    write_json_lines(tmp_path / "train.jsonl", train)
    write_json_lines(tmp_path / "kept.jsonl", kept_apart)
    parser = argparse.ArgumentParser()
    fit_wide.add_arguments(parser)
    files = [str(tmp_path / "train.jsonl"), "--kept_apart", str(tmp_path / "kept.jsonl")]
    fit_wide.run(parser.parse_args([*files, "--model", str(folder)]))


def test_clicks_at_random_leave_the_reward_model_as_it_is(tmp_path, write_small_garm, capsys):
    folder = write_small_garm("click_gaussian")
    before = (folder / "model.safetensors").read_bytes(), (folder / "config.json").read_bytes()
    run_on(tmp_path, folder, clicks_that_hang_on_both(400, strength=0), clicks_that_hang_on_both(300, 1, 0))
    assert "no crosses and no overlaps. On 600 suggestions that none has seen they gain" in " ".join(
        capsys.readouterr().out.split()
    )
    assert ((folder / "model.safetensors").read_bytes(), (folder / "config.json").read_bytes()) == before


def test_a_second_call_and_another_head_are_refused(tmp_path, write_small_garm):
    folder = write_small_garm("click_gaussian")
    run_on(tmp_path, folder, clicks_that_hang_on_both(600), clicks_that_hang_on_both(300, 1))
    assert json.loads((folder / "config.json").read_text())["reward_model"]["crosses"]["n_buckets"] == N_BUCKETS
    with pytest.raises(ValueError, match="has crosses.* already: train it again"):
        run_on(tmp_path, folder, clicks_that_hang_on_both(60), clicks_that_hang_on_both(60, 1))
    with pytest.raises(ValueError, match="crosses and overlaps are fitted only for click_gaussian"):
        fit([], [], write_small_garm("gaussian"))
