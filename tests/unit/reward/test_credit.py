"""Which suggestion earned the reward."""

import torch

from openrlhf_qs.reward.credit import NO_SUGGESTION, centred_credit, group_norm_scales, suggestion_of_tokens


def test_tokens_belong_to_the_line_that_they_stand_in():
    pieces = ["1", ". What", "?", "\n", "2.", " Why?\n", "3. How?", ""]
    assert suggestion_of_tokens(pieces, 3) == [0, 0, 0, 0, 1, 1, 2, 2]


def test_a_token_that_ends_one_line_and_begins_the_next_belongs_to_the_first():
    assert suggestion_of_tokens(["1. a", "?\n2", ". b\n", "3. c"], 3) == [0, 0, 1, 2]


def test_blank_lines_are_no_suggestions():
    assert suggestion_of_tokens(["\n", "1. a", "\n\n", " \n", "2. b\n", "3. c", "\n", ""], 3) == [
        0,
        0,
        0,
        1,
        1,
        2,
        2,
        2,
    ]


def test_where_there_are_not_three_lines_no_token_has_a_suggestion():
    for pieces in (["1. a\n", "2. b"], ["<think>", "\n", "1. a\n", "2. b\n", "3. c"], [""], []):
        assert suggestion_of_tokens(pieces, 3) == [NO_SUGGESTION] * len(pieces)


def test_a_suggestion_is_compared_with_those_in_its_place():
    credit = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 1.0]])
    total, nobody = credit.sum(1), torch.zeros(2, dtype=torch.bool)
    # means of the places: 0.5, 0, 1.5
    expected = torch.tensor([[0.5, 0.0, 0.5], [-0.5, 0.0, -0.5]])
    torch.testing.assert_close(centred_credit(credit, total, nobody, torch.zeros(2, dtype=torch.long)), expected)


def test_what_has_no_credit_by_suggestion_has_its_total_in_every_place():
    credit = torch.tensor([[1.0, 0.0, 2.0], [0.0, 0.0, 1.0], [9.0, 9.0, 9.0]])
    total, whole = torch.tensor([3.0, 1.0, -4.0]), torch.tensor([False, False, True])
    # the mean of all totals is 0: -4 for the third; the two others share 2 - 0, the mean of theirs above it
    expected = torch.tensor([[2.5, 2.0, 2.5], [1.5, 2.0, 1.5], [-4.0, -4.0, -4.0]])
    torch.testing.assert_close(centred_credit(credit, total, whole, torch.zeros(3, dtype=torch.long)), expected)


def test_credits_of_a_group_add_up_to_nothing():
    generator = torch.Generator().manual_seed(0)
    credit, group = torch.randn(12, 3, generator=generator), torch.arange(12) // 4
    whole = torch.rand(12, generator=generator) < 0.3
    found = centred_credit(credit, credit.sum(1), whole, group)
    sums = torch.zeros(3, 3).index_add_(0, group, found)
    torch.testing.assert_close(sums, torch.zeros(3, 3), atol=1e-5, rtol=0)


def test_a_group_without_a_credit_by_suggestion_has_plain_advantages():
    total, whole = torch.tensor([3.0, 1.0]), torch.ones(2, dtype=torch.bool)
    found = centred_credit(torch.zeros(2, 3), total, whole, torch.zeros(2, dtype=torch.long))
    torch.testing.assert_close(found, torch.tensor([[1.0] * 3, [-1.0] * 3]))


def test_credits_that_cancel_out_do_not_explode_where_totals_hardly_differ():
    group = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    credit = torch.tensor([[0.08, -0.08], [-0.08, 0.08], [0.08, -0.079], [-0.08, 0.079]]).repeat(2, 1)
    credit[4:] = torch.tensor([[0.3, 0.0], [0.1, 0.0], [-0.1, 0.0], [-0.3, 0.0]])  # of one suggestion alone
    total = credit.sum(1, keepdim=True)
    of_total, of_credit = group_norm_scales(total, credit, group)
    assert (total * of_total).abs().max() < 2 < 20 < (credit * of_total)[:4].abs().min()
    assert (credit * of_credit).abs().max() < 2
    torch.testing.assert_close(of_total[4:], of_credit[4:])  # whose deviation is that of the totals


def test_equal_totals_give_no_credit():
    credit = torch.tensor([[0.1, -0.1], [-0.1, 0.1]])
    for scale in group_norm_scales(torch.zeros(2, 1), credit, torch.tensor([0, 0])):
        assert scale.tolist() == [[0.0], [0.0]]
