import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from short_questions import FRAMES, QUESTIONS

from openrlhf_qs.form import text as room
from openrlhf_qs.form.keys import text_key
from openrlhf_qs.form.language import all_in_users_language, in_users_language, is_mostly_of, vocabularies
from openrlhf_qs.form.text import han_form, language, pieces, same_stem, scripts, spread, width, words

PUNCTUATION = st.text(alphabet=" abcXYZ0123'.,:;?!-_()/", max_size=30)


@settings(max_examples=300, deadline=None)
@given(PUNCTUATION)
def test_ascii_is_cut_as_icu_cuts_it(text):
    by_icu = [part for part in room._segments(text.casefold()) if any(map(str.isalnum, part))]
    assert list(words(text)) == by_icu


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("What's new in Rome?", ("what's", "new", "in", "rome")),
        ("怎么煮牛肉面？", ("怎么", "煮", "牛肉", "面")),
        ("पौधे को पानी", ("पौधे", "को", "पानी")),
        ("ＡＢＣ １２", ("abc", "12")),
        ("???", ()),
    ],
)
def test_words_are_cut_by_the_scripts_own_rules(text, cut):
    assert words(text) == cut


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=30))
def test_pieces_are_the_text(text):
    assert "".join(pieces(text)) == text


def test_traditional_and_simplified_characters_are_the_same_words_and_those_of_japanese_stay():
    assert words("烤麵包要發酵多久？") == words("烤面包要发酵多久？") == ("烤面包", "要", "发酵", "多久")
    assert words("図書館はどこ？")[0] == "図書館"


def test_a_chinese_character_takes_two_columns_and_a_vowel_sign_none():
    assert (width("ab"), width("怎么?"), width("की")) == (2, 5, 2)


def test_a_word_of_latin_letters_in_another_script_is_a_name():
    assert language("iPhone 电池怎么换？") == "zh" and list(scripts("iPhone电池")) == ["LATIN", "CJK"]


def test_chinese_characters_tell_which_of_the_two_forms_it_is():
    assert [han_form(text) for text in ("怎麼煮牛肉麵？", "这个电脑", "你好")] == ["traditional", "simplified", ""]


def test_forms_of_a_word_are_one():
    assert same_stem("zimmerpflanzen", "pflanze", "de") and same_stem("evde", "evimde", "tr")
    assert not same_stem("cuido", "cuesta", "es")


def test_blanks_stand_between_characters_that_are_syllables():
    assert spread("iphone电池") == "iphone 电 池" and spread("how long") == "how long"


def test_of_a_thousand_short_questions_the_language_is_right_where_it_is_decided():
    decided = [(code, language(text)) for code, texts in QUESTIONS.items() for text in texts]
    assert len(decided) == 1000
    said = [(code, found) for code, found in decided if found]
    right = sum(code == found for code, found in said)
    print(f"decided {len(said)}, right {right}")
    assert len(said) > 700 and right >= 0.97 * len(said)


@pytest.mark.parametrize(
    ("asked", "suggestion", "fits"),
    [
        ("怎么煮牛肉面？", "How often should I do it?", False),
        ("怎么煮牛肉面？", "牛肉要炖多久？", True),
        ("怎么煮牛肉面？", "牛肉要燉多久？", True),  # the question does not tell which form it is
        ("这个电脑怎么样？", "這個電腦貴嗎？", False),
        ("怎么用 Photoshop？", "Photoshop Lightroom?", True),
        ("Can you tell me where I can buy a used bicycle?", "Was kostet ein Fahrrad in München ungefähr?", False),
        ("How do I sort a list in Python?", "`sorted(list)`?", True),
        ("ok", "Wie lange dauert das?", True),
    ],
)
def test_only_what_is_surely_of_another_language_is_told(asked, suggestion, fits):
    assert in_users_language([{"role": "user", "content": asked}], suggestion) is fits


def test_one_key_whatever_the_blanks_the_vowel_signs_and_the_marks():
    assert text_key("价格 是多少") == text_key("价格是多少？")
    assert text_key("كَمِ السِّعْرُ؟") == text_key("كم السعر")
    assert text_key("how long") != text_key("howlong") and re.sub(" ", "", text_key("a b")) == "ab"


def test_the_words_of_users_tell_their_language_without_looking_further():
    german = [f"Wie backe ich das Brot Nummer {n} in der Küche?" for n in range(60)]
    english = [f"How do I bake the bread number {n} before I die?" for n in range(60)]
    found = vocabularies([(text,) for text in german + english + ["怎么煮牛肉面？"] * 60 + ["Comment cuire ?"] * 9])
    assert set(found) == {"de", "en"} and "der" in found["de"] and "bake" in found["en"]
    assert "in" in found["de"] and "in" not in found["en"]  # no user wrote it in English
    assert is_mostly_of("Wie backe ich Nudeln?", found["de"]) and not is_mostly_of("Wie backe ich?", found["en"])


@pytest.mark.parametrize(
    ("asked", "suggestions", "fits"),
    [
        ("Wie backe ich Sauerteig?", ["Why?", "How long?", "Any tips?"], [False] * 3),
        ("Wie backe ich Sauerteig?", ["Warum?", "Wie lange?", "Hefe?"], [True] * 3),
        ("How do I bake bread?", ["Warum?", "Wo?", "Wie lange?"], [False] * 3),
        ("Comment choisir un vélo ?", ["How much is it?", "Shimano Deore XT?", "Quel prix ?"], [False, True, True]),
        ("Wie lerne ich das?", ["Docker Compose?", "The Beatles?", "for i in range(10)"], [True] * 3),
        ("ノートパソコンの選び方は？", ["Why this one?", "iPad Pro?", "値段は？"], [False, True, True]),
        ("¿Cómo cuido una planta?", ["Can I freeze it?", "Tell me more", "¿Y luego?"], [False, True, True]),
    ],
)
def test_short_suggestions_are_told_by_their_common_words_alone_or_together(asked, suggestions, fits):
    assert all_in_users_language([{"role": "user", "content": asked}], suggestions) == fits


def test_short_questions_of_one_language_are_told_from_those_of_nine_others():
    # 9,000 suggestions in another language, of which 229 passed when letters alone decided; 1,000 in the user's own
    passed = refused = 0
    for code, (frames, subjects) in FRAMES.items():
        for n, subject in enumerate(subjects):
            asked = [{"role": "user", "content": frames[9].format(subject)}]
            refused += sum(not in_users_language(asked, frame.format(subject)) for frame in frames)
            for other, (of_other, theirs) in FRAMES.items():
                if other != code:
                    passed += sum(in_users_language(asked, frame.format(theirs[n])) for frame in of_other)
    assert passed <= 100 and refused <= 1, (passed, refused)
