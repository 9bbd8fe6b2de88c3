import math

import pytest
import torch

from openrlhf_qs.clicks.click_log import read_click_log
from openrlhf_qs.garm.impressions import ImpressionDataset
from openrlhf_qs.garm.reward_model import suggestion_ids
from openrlhf_qs.sft.small_policy import train_tokenizer

CONTEXT = [{"role": "user", "content": "How do I bake bread?"}, {"role": "assistant", "content": "Mix, wait, bake."}]
A, B, C = "How long does dough rise?", "Which flour is best?", "Why do cats purr?"


def row(suggestions, *pairs, impression="i1", context=CONTEXT, **values):
    return {
        "impression_id": impression,
        "conversation": context,
        "suggestions": suggestions,
        "pairs": [[*pair, *(1.0,) * (4 - len(pair))] for pair in pairs],
        **values,
    }


@pytest.fixture
def tokenizer(tiny_log):
    return train_tokenizer(read_click_log(tiny_log), vocab_size=400)


def dataset(tokenizer, rows, share_prefix=True, **options):
    return ImpressionDataset(rows, tokenizer, 512, share_prefix, **options)


def suggestions_in(batch, tokenizer):
    """The last turn of each suggestion in the order of the model's outputs."""
    ids, mask = batch[0].squeeze(1), batch[1].squeeze(1)
    found = []
    for row, segments in zip(ids, mask, strict=True):
        for k in range(2, int(segments.max()) + 1) if segments.max() > 1 else [1]:
            text = tokenizer.decode(row[(segments == 1) | (segments == k)] if k > 1 else row[segments == 1])
            found.append(text.rpartition("user\n")[2].removesuffix("<|im_end|>"))
    return found


@pytest.mark.parametrize("share_prefix", [True, False])
@pytest.mark.parametrize("whole_lists", [True, False])
def test_pairs_and_lists_point_at_their_suggestions_wherever_these_are_laid_out(tokenizer, share_prefix, whole_lists):
    other = [{"role": "user", "content": "Tell me about cats."}]
    shown = {"clicks": [1, 0, 0], "examination": [1.0, 0.75, 0.5]}
    rows = [
        row([A, B, C], (0, 1, 0.5), (0, 2, 0.25, 0.75), **shown),
        row([C, B], (0, 1), impression="i2", context=other, clicks=[0, 0]),
    ]
    made = dataset(tokenizer, rows, share_prefix, whole_lists=whole_lists)
    assert len(made) == 2
    input_ids, mask, batch, _, _ = made.collate_fn([made[1], made[0]])
    found = suggestions_in((input_ids, mask), tokenizer)
    assert sorted(found) == sorted([C, B, A, B, C])
    assert [(found[chosen], found[rejected]) for chosen, rejected in batch.pairs.tolist()] == [(C, B), (A, B), (A, C)]
    assert batch.pair_impression.tolist() == [0, 1, 1]
    assert batch.weight.tolist() == [1.0, 0.5, 0.25] and batch.label.tolist() == [1.0, 1.0, 0.75]
    in_lists = [
        [found[place] for place in places[there]] for places, there in zip(batch.place, batch.shown, strict=True)
    ]
    assert in_lists == [[C, B], [A, B, C]]
    assert batch.clicks.tolist() == [[0, 0, 0], [1, 0, 0]] and batch.examination.tolist() == [[1] * 3, [1, 0.75, 0.5]]
    n_rows = 2 if share_prefix else 5
    assert input_ids.shape == mask.shape and input_ids.shape[0] == n_rows


def test_an_item_is_a_conversation_with_all_that_was_shown_under_it_up_to_a_limit(tokenizer):
    other = [{"role": "user", "content": "Tell me about cats."}]
    rows = [row([A, B, C], (0, 1), (0, 2), impression=f"i{n}", context=(CONTEXT, other)[n % 2]) for n in range(20)]
    made = dataset(tokenizer, rows)
    assert [len(item) for item in made] == [8, 2, 8, 2] and made.n_impressions == 20
    assert made.pairs_per_impression == 2
    input_ids, _, batch, _, _ = made.collate_fn([made[0], made[2]])
    assert len(input_ids) == 2 and batch.place.shape == (16, 3)  # two conversations are read, each once


def test_the_order_of_the_rows_changes_nothing_but_the_order_of_the_items(tokenizer):
    contexts = [[{"role": "user", "content": f"Question {n}"}] for n in range(20)]
    rows = [row([A, B, C], (0, 1), (0, 2), impression=f"i{n}", context=one) for n, one in enumerate(contexts)]
    shuffled = rows[::2] + rows[1::2]
    made, again = dataset(tokenizer, rows), dataset(tokenizer, shuffled)
    assert again.items == made.items[::2] + made.items[1::2]


def test_headlines_without_a_conversation_are_items_of_their_own(tokenizer):
    assert len(dataset(tokenizer, [row([A, B], (0, 1), context=[]), row([A, C], (0, 1), context=[])])) == 2


def test_two_rows_of_one_impression_id_stay_two_impressions(tokenizer):
    assert dataset(tokenizer, [row([A, B], (0, 1)), row([A, C], (0, 1))]).n_impressions == 2


def test_members_of_an_ensemble_keep_their_weights_over_epochs_and_differ(tokenizer):
    rows = [row([A, B], (0, 1), impression=f"i{n}", context=[]) for n in range(1000)]
    made = dataset(tokenizer, rows)
    weights = made.collate_fn(made.items)[2].member_weights(3)
    again = dataset(tokenizer, rows[::-1])
    assert again.collate_fn(again.items)[2].member_weights(3).flip(0).tolist() == weights.tolist()
    # exponential: mean 1, deviation 1; three members of 1,000 impressions without correlation, to five standard errors
    assert (weights.mean(0) - 1).abs().max() < 0.16 and (weights.std(0) - 1).abs().max() < 0.25
    assert (torch.corrcoef(weights.T) - torch.eye(3)).abs().max() < 0.16
    with torch.no_grad():
        assert (made.collate_fn(made.items)[2].member_weights(3) == 1).all()
    assert (made.collate_fn(made.items)[2].member_weights(1) == 1).all()


def test_what_no_pair_needs_is_read_for_whole_lists_only(tokenizer):
    rows = [
        row([A, B, C], (2, 0), clicks=[0, 1, 1], examination=[1.0, 0.75, 0.5]),
        row([A, B], impression="i2", clicks=[1, 0]),
    ]
    made = dataset(tokenizer, rows)
    [[only]] = made
    assert only.clicks == [0, 1] and only.examination == [1.0, 0.5]
    assert only.texts == suggestion_ids(tokenizer, [CONTEXT] * 2, [A, C], 512) and only.pairs == [(1, 0)]
    whole = dataset(tokenizer, rows, whole_lists=True)
    [[first, second]] = whole
    assert [len(impression.texts) for impression in (first, second)] == [3, 2]
    assert second.clicks == [1, 0] and second.examination == [1, 1] and second.pairs == []
    assert whole.pairs_per_impression == 1
    assert whole.collate_fn([[second]])[2].pairs.shape == (0, 2)  # a batch without any pair


def test_the_tokens_are_those_that_a_scorer_reads(tokenizer):
    made = dataset(tokenizer, [row([A, B], (0, 1))])
    assert made[0][0].texts == suggestion_ids(tokenizer, [CONTEXT, CONTEXT], [A, B], 512)


def test_a_bad_pair_is_named_by_its_row(tokenizer):
    rows = [row([A, B], (0, 1)), row([A, B, C], (0, 1), (0, 2, 1.0, math.nan)), row([A, C], (0, 1, -1.0))]
    with pytest.raises(ValueError, match="row 2: pair 2: label nan; .*\nrow 3: pair 1: weight -1.0; give"):
        dataset(tokenizer, rows)


def test_a_bad_row_is_named(tokenizer):
    rows = [row([A, B], (0, 1)), row([A, " "], (0, 1))]
    with pytest.raises(ValueError, match="row 2: suggestion ' ' has no text"):
        dataset(tokenizer, rows)


def test_an_objective_of_clicks_refuses_rows_without_them(tokenizer):
    with pytest.raises(ValueError, match="rows without clicks"):
        dataset(tokenizer, [row([A, B], (0, 1))], whole_lists=True)


def test_no_rows_are_no_error_for_the_host_evaluates_on_a_hundredth_of_them(tokenizer):
    assert len(dataset(tokenizer, [])) == 0


def test_an_impression_counts_the_same_in_every_batch(tokenizer):
    other = [{"role": "user", "content": "Tell me about cats."}]
    rows = [row([A, B, C], (0, 1, 0.75), (0, 2, 0.75)), row([C, B], (0, 1, 1.5), impression="i2", context=other)]
    made = dataset(tokenizer, rows)
    weights = [made.collate_fn([one])[2].weight for one in (made[0], made[1])]
    # each impression's weights add up to 1.5, and the mean over a batch's pairs is 1.5 / (3 pairs / 2 impressions)
    assert [one.mean().item() for one in weights] == [1.0, 1.0]
    assert made.collate_fn([made[0], made[1]])[2].weight.tolist() == [0.75, 0.75, 1.5]


def test_suggestions_of_a_conversation_over_the_limit_still_share_it(tokenizer):
    context = [{"role": "user", "content": "How do I bake bread? " * 40}]
    made = ImpressionDataset([row([A, B], (0, 1), context=context)], tokenizer, 200, share_prefix=True)
    lengths = [len(text) for text in made[0][0].texts]
    input_ids = made.collate_fn([made[0]])[0]
    assert max(lengths) <= 200 and len(set(lengths)) > 1 and input_ids.shape[-1] < sum(lengths)


def test_a_suggestion_over_the_limit_is_refused_before_training(tokenizer):
    with pytest.raises(ValueError, match="raise max_len"):
        ImpressionDataset([row([A * 40, B], (0, 1))], tokenizer, 64, True)


def test_a_batch_goes_through_the_five_places_of_the_host_trainer(tokenizer):
    made = dataset(tokenizer, [row([A, B], (0, 1))])
    *four, margin = made.collate_fn([made[0]])
    moved = [one.squeeze(1).to("cpu") for one in four]  # as the trainer does
    assert margin is None and moved[0].shape == moved[1].shape and moved[2].pairs.tolist() == [[0, 1]]
