import math

import pytest
import torch

from openrlhf_qs.clicks.click_log import read_click_log
from openrlhf_qs.garm.impressions import ImpressionDataset
from openrlhf_qs.garm.reward_model import suggestion_ids
from openrlhf_qs.sft.small_policy import train_tokenizer

CONTEXT = [{"role": "user", "content": "How do I bake bread?"}, {"role": "assistant", "content": "Mix, wait, bake."}]
A, B, C = "How long does dough rise?", "Which flour is best?", "Why do cats purr?"


def pair(chosen, rejected, impression="i1", context=CONTEXT, **values):
    sides = {
        name: [*context, {"role": "user", "content": text}]
        for name, text in (("chosen", chosen), ("rejected", rejected))
    }
    return {"impression_id": impression, **sides, "weight": 1.0, **values}


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
def test_pairs_point_at_their_suggestions_wherever_these_are_laid_out(tokenizer, share_prefix):
    other = [{"role": "user", "content": "Tell me about cats."}]
    rows = [
        pair(A, B, weight=0.5),
        pair(A, C, weight=0.25, label=0.75),
        pair(C, B, impression="i2", context=other),
    ]
    made = dataset(tokenizer, rows, share_prefix)
    assert len(made) == 2
    batch = made.collate_fn([made[1], made[0]])
    shown = suggestions_in(batch, tokenizer)
    assert sorted(shown) == sorted([C, B, A, B, C])
    pairs, values = batch[2].squeeze(1), batch[3].squeeze(1)
    assert [(shown[chosen], shown[rejected]) for chosen, rejected in pairs.tolist()] == [(C, B), (A, B), (A, C)]
    assert values.tolist() == [[1.0, 1.0], [0.5, 1.0], [0.25, 0.75]]
    n_rows = 2 if share_prefix else 5
    assert batch[0].shape == batch[1].shape and batch[0].shape[0] == n_rows


def test_the_tokens_are_those_that_a_scorer_reads(tokenizer):
    made = dataset(tokenizer, [pair(A, B)])
    assert made[0].texts == suggestion_ids(tokenizer, [CONTEXT, CONTEXT], [A, B], 512)


def test_a_row_without_an_impression_is_an_impression_of_its_own(tokenizer):
    rows = [pair(A, B), pair(A, C)]
    for row in rows:
        del row["impression_id"], row["weight"]
    made = dataset(tokenizer, rows)
    assert len(made) == 2 and made[0].values == [(1.0, 1.0)]


@pytest.mark.parametrize(
    "bad, message",
    [
        (pair(A, B, label=math.nan), "pair 2: label nan; give the probability"),
        (pair(A, B, label=1.5), "pair 2: label 1.5"),
        (pair(A, B, weight=math.nan), "pair 2: weight nan"),
        (pair(A, B, weight=-1.0), "pair 2: weight -1.0"),
        (pair(" ", B), "pair 2: chosen has no text"),
        (pair(A, A), "pair 2: chosen and rejected are the same"),
    ],
)
def test_a_bad_pair_is_named_by_its_row_or_skipped_and_counted(tokenizer, bad, message):
    rows = [pair(A, B), bad, pair(A, C, impression="i3")]
    with pytest.raises(ValueError, match=message):
        dataset(tokenizer, rows)
    made = dataset(tokenizer, rows, on_error="skip")
    assert len(made) == 2 and sum(made.skipped.values()) == 1


def test_where_all_pairs_are_alike_there_is_nothing_to_skip_to(tokenizer):
    with pytest.raises(ValueError, match="chosen and rejected are the same"):
        dataset(tokenizer, [pair(A, A), pair(B, B)], on_error="skip")


def test_no_rows_are_no_error_for_the_host_evaluates_on_a_hundredth_of_them(tokenizer):
    assert len(dataset(tokenizer, [])) == 0


def test_an_impression_counts_the_same_in_every_batch(tokenizer):
    rows = [pair(A, B, weight=0.75), pair(A, C, weight=0.75), pair(C, B, impression="i2", weight=1.5)]
    made = dataset(tokenizer, rows)
    weights = [made.collate_fn([one])[3].squeeze(1)[:, 0] for one in (made[0], made[1])]
    # each impression's weights add up to 1.5, and the mean over a batch's pairs is 1.5 / (3 pairs / 2 impressions)
    assert [one.mean().item() for one in weights] == [1.0, 1.0]
    assert made.collate_fn([made[0], made[1]])[3].squeeze(1)[:, 0].tolist() == [0.75, 0.75, 1.5]


def test_pairs_of_a_conversation_over_the_limit_still_share_it(tokenizer):
    context = [{"role": "user", "content": "How do I bake bread? " * 40}]
    made = ImpressionDataset([pair(A, B, context=context)], tokenizer, 200, share_prefix=True)
    lengths = [len(text) for text in made[0].texts]
    input_ids = made.collate_fn([made[0]])[0]
    assert max(lengths) <= 200 and len(set(lengths)) > 1 and input_ids.shape[-1] < sum(lengths)


def test_a_suggestion_over_the_limit_is_refused_before_training(tokenizer):
    with pytest.raises(ValueError, match="raise max_len"):
        ImpressionDataset([pair(A * 40, B)], tokenizer, 64, True)


def test_a_batch_has_the_five_places_of_the_host_trainer(tokenizer):
    batch = dataset(tokenizer, [pair(A, B)]).collate_fn([dataset(tokenizer, [pair(A, B)])[0]])
    assert len(batch) == 5 and all(isinstance(one, torch.Tensor) and one.shape[1] == 1 for one in batch[:4])
