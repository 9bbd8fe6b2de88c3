import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from openrlhf_qs.form import response as room
from openrlhf_qs.form.response import N_SUGGESTIONS, format_response, parse_response, suggestion_problem


def is_read_as_it_is(text: str) -> bool:
    """One line of text with nothing around it and no markup in it."""
    parsed = parse_response(f"1. {text}", 1)
    return parsed.well_formed and parsed.suggestions == (text.strip(),)


LINES = st.text(min_size=1, max_size=60).filter(is_read_as_it_is)


@example(["A", "A", "A\x1e\x85"])  # line breaks to Python, and space around a text
@given(st.lists(LINES, min_size=N_SUGGESTIONS, max_size=N_SUGGESTIONS))
def test_suggestions_come_back_as_they_were_but_for_space_around_them(suggestions):
    parsed = parse_response(format_response(suggestions))
    assert parsed.problem == ""
    assert parsed.suggestions == tuple(suggestion.strip() for suggestion in suggestions)


@settings(max_examples=2000, deadline=None)
@given(st.text() | st.text(alphabet="123.) \n\tab٣é", max_size=40))
def test_any_text_can_be_read(text):
    parsed = parse_response(text)
    assert len(parsed.suggestions) <= N_SUGGESTIONS
    assert all(any(character.isalpha() for character in suggestion) for suggestion in parsed.suggestions)
    assert parsed.well_formed == (parsed.problem == "")
    if parsed.well_formed:
        assert len(parsed.suggestions) == N_SUGGESTIONS


@given(st.text(max_size=60))
def test_what_is_well_formed_says_the_same_when_it_is_written_again(text):
    parsed = parse_response(text)
    if parsed.well_formed:
        assert parse_response(format_response(parsed.suggestions)) == parsed


@pytest.mark.parametrize(
    "text",
    [
        "1. a\n2. b\n3. c",
        "\n1) a\n\n  2)b\n3.\tc \n",
        "1. a\r\n2. b\r\n3. c\r\n",
        "<think>\n\n</think>\n\n1. a\n2. b\n3. c",
        "<think>\n1. Hm\n</think>\n1. a\n2. b\n3. c",
    ],
    ids=["plain", "brackets, blanks and blank lines", "windows", "no thought", "a thought"],
)
def test_harmless_differences_are_well_formed(text):
    assert parse_response(text).suggestions == ("a", "b", "c")
    assert parse_response(text).well_formed


@pytest.mark.parametrize(
    ("text", "suggestions", "problem"),
    [
        ("", (), "numbers [] instead of 1 to 3"),
        ("1. 2. 3.", (), "no letter in number 1: '2. 3.'"),
        ("1.\n2.\n3.", (), "no letter in number 1: ''"),
        ("1. a\n2. ???\n3. c", ("a", "c"), "no letter in number 2: '???'"),
        ("1. a\n2. b & &amp;\n3. c", ("a", "b & &amp;", "c"), "markup in number 2: 'b & &amp;'"),
        ("1. a\n1. b\n1. c", ("a", "b", "c"), "numbers [1, 1, 1] instead of 1 to 3"),
        ("2. a\n3. b\n4. c", ("a", "b", "c"), "numbers [2, 3, 4] instead of 1 to 3"),
        ("3. a\n2. b\n1. c", ("a", "b", "c"), "numbers [3, 2, 1] instead of 1 to 3"),
        ("1. a\n2. b", ("a", "b"), "numbers [1, 2] instead of 1 to 3"),
        ("1. a\n2. b\n3. c\n4. d", ("a", "b", "c"), "numbers [1, 2, 3, 4] instead of 1 to 3"),
        ("١. a\n٢. b\n٣. c", (), "a line without a number: '١. a'"),
        ("1. a\n  1. b\n  2. c\n2. d\n3. e", ("a", "b", "c"), "numbers [1, 1, 2, 2, 3] instead of 1 to 3"),
        ("1. a\n   - b\n2. c\n3. d", ("a", "c", "d"), "a line without a number: '- b'"),
        ("Sure!\n1. a\n2. b\n3. c", ("a", "b", "c"), "a line without a number: 'Sure!'"),
        ("1. a 2. b 3. c", ("a 2. b 3. c",), "numbers [1] instead of 1 to 3"),
        ("a\nb\nc", (), "a line without a number: 'a'"),
        ("<think>\n1. a\n2. b\n3. c", (), "numbers [] instead of 1 to 3"),
        ("1. a\n<think></think>\n2. b\n3. c", ("b", "c"), "numbers [2, 3] instead of 1 to 3"),
        ("0. a\n1. b\n2. c", ("b", "c"), "a line without a number: '0. a'"),
    ],
)
def test_what_is_malformed_is_named_and_the_rest_is_kept(text, suggestions, problem):
    parsed = parse_response(text)
    assert parsed.problem == problem
    assert parsed.suggestions == suggestions
    assert not parsed.well_formed


@pytest.mark.parametrize(
    "text, reason",
    [
        ("How long?", ""),
        ("איך אופים לחם?", ""),
        ("🍞 bread?", ""),
        ("", "no letter"),
        ("🍞🍞", "no letter"),
        ("1 + 1 = ?", "no letter"),
        ("One?\nTwo?", "line break"),
        ("One?\u2028Two?", "line break"),
        ("half \ud83c", "broken character"),
        ("**How long?**", ""),
        ('"How long?"', ""),
        ("How **long**?", "markup"),
        ("Salt &amp; bread?", "markup"),
    ],
)
def test_what_cannot_be_a_suggestion_has_a_reason(text, reason):
    assert suggestion_problem(text) == reason
    of_response = parse_response(f"1. {text}", n=1)
    assert of_response.well_formed == (not reason), "a response that has it is read by the same notion"


TEXTS = st.lists(LINES.map(str.strip), min_size=3, max_size=3)
OTHER_DIGITS = {script: [chr(zero + n) for n in range(10)] for script, zero in {
    "arabic": 0x660, "persian": 0x6F0, "devanagari": 0x966, "thai": 0xE50, "fullwidth": 0xFF10, "bold": 0x1D7CE
}.items()}  # fmt: skip
WORDS = st.sampled_from(["One", "first", "Erstens", "uno", "第一", "I", "a", "-", "*", "•", "#1"])
no_number = LINES.map(str.strip).filter(lambda line: not line[:1].isdecimal())
thousands = settings(max_examples=1000, deadline=None)


@thousands
@given(st.lists(LINES.map(str.strip), max_size=8))
def test_of_fewer_or_more_than_three_the_first_three_count(texts):
    parsed = parse_response(format_response(texts))
    assert parsed.suggestions == tuple(texts[:N_SUGGESTIONS])
    assert parsed.well_formed == (len(texts) == N_SUGGESTIONS)


@thousands
@given(TEXTS, st.sampled_from(sorted(OTHER_DIGITS)), st.sampled_from(".)"))
def test_digits_of_other_scripts_number_nothing(texts, script, mark):
    lines = [f"{OTHER_DIGITS[script][n]}{mark} {text}" for n, text in enumerate(texts[:3], start=1)]
    parsed = parse_response("\n".join(lines))
    assert parsed.suggestions == () and parsed.problem.startswith("a line without a number")


@thousands
@given(TEXTS, st.lists(WORDS, min_size=3, max_size=3), st.sampled_from([".", ")", ":", ""]))
def test_words_and_bullets_number_nothing(texts, words, mark):
    text = "\n".join(f"{word}{mark} {text}" for word, text in zip(words, texts, strict=False))
    assert parse_response(text).suggestions == () and not parse_response(text).well_formed


@thousands
@given(TEXTS, st.lists(st.integers(0, 6), min_size=3, max_size=3))
def test_the_items_of_a_nested_list_are_suggestions_of_a_malformed_response(texts, depths):
    outer = format_response(texts[:3]).splitlines()
    inner = [f"{' ' * depth}{letter}. x" for depth, letter in zip(depths, "123", strict=True)]
    parsed = parse_response("\n".join([outer[0], *inner, *outer[1:]]))
    assert parsed.suggestions == (texts[0], "x", "x") and not parsed.well_formed


@thousands
@given(TEXTS, no_number, st.integers(0, 3))
def test_a_line_that_is_no_suggestion_makes_a_response_malformed_wherever_it_stands(texts, line, place):
    lines = format_response(texts[:3]).splitlines()
    parsed = parse_response("\n".join([*lines[:place], line, *lines[place:]]))
    assert parsed.suggestions == tuple(texts[:3]) and not parsed.well_formed


@thousands
@given(st.lists(st.tuples(st.integers(0, 200), st.sampled_from([".", ")", ". ", ").", " "]), st.text(max_size=6))))
def test_any_list_can_be_read(items):
    parsed = parse_response("\n".join(f"{number}{mark}{text}" for number, mark, text in items))
    assert len(parsed.suggestions) <= N_SUGGESTIONS and parsed.well_formed == (parsed.problem == "")


def test_a_long_line_is_quoted_in_part():
    assert parse_response("x" * 200).problem == f"a line without a number: {'x' * 40!r}"


@pytest.mark.parametrize("suggestion", ["", "  ", "a\nb", "a\x0bb", "a\u2028b", "\n"])
def test_a_suggestion_without_text_or_of_two_lines_cannot_be_written(suggestion):
    with pytest.raises(ValueError, match="is empty or has a line break"):
        format_response(["fine", suggestion])


def test_suggestions_are_numbered_from_one():
    assert format_response(["How?", " Why? "]) == "1. How?\n2. Why?"


SIGNS = st.text(st.sampled_from("*_~=`<>[](){}&;\\#|-+•—· \t\n\"'“”「」1.:/aAbж\u200b\ufe0f\x0b\u2028"), max_size=16)


@thousands
@given(SIGNS, SIGNS)
def test_the_quick_looks_pass_over_nothing_that_the_whole_ones_find(one, other):
    for text in (one, other, f"a {one}", f"{one} b", f"<b>{one}</b>"):
        assert room._bare(text) == room._AROUND.sub("", text)
        if room._MARKUP.search(text):
            assert text[:1] in room._ITEM_SIGNS or room._SIGN_OF_MARKUP.search(text)
        if room._OPENING.search(text) or room._CLOSING.search(text) or room._FRAMED.fullmatch(text):
            assert text[:1] in "Aa" or room._SIGN_OF_MORE.search(text)
        if text and (room._TAGGED.fullmatch(text) or any(room._inside(text, *pair) for pair in room._PAIRS)):
            assert text[-1] in room._ENDS
