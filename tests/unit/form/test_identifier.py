import numpy as np
import pytest
from py3langid.langid import MODEL_DIR, MODEL_FILE, LanguageIdentifier
from short_questions import QUESTIONS

from openrlhf_qs.form.identifier import load_identifier

LANGUAGES = {"en", "de", "fr", "es", "it", "tr", "ru", "hi", "zh", "ja", "sr", "pt", "nl", "uk"}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "openrlhf-qs" / "languages"


def test_languages_are_as_probable_as_py3langid_says(cache):
    theirs = LanguageIdentifier.from_model_file(MODEL_DIR / MODEL_FILE, norm_probs=True)
    theirs.set_languages(LANGUAGES)
    ours = load_identifier(LANGUAGES)
    texts = [text for some in QUESTIONS.values() for text in some[:20]] + ["", "123", "WAS KOSTET DAS?", "ѿ"]
    for text in texts:
        found, ranked = ours.likely(text, sure=1.0, possible=0.01), theirs.rank(text)[:5]
        expected = [(code, p) for n, (code, p) in enumerate(ranked) if n == 0 or p >= 0.01]
        assert [code for code, _ in found] == [code for code, _ in expected]
        np.testing.assert_allclose([p for _, p in found], [p for _, p in expected], rtol=1e-5)
        if ranked[0][1] > 0.9:
            assert [code for code, _ in ours.likely(text, sure=0.9, possible=0.1)] == [theirs.classify(text)[0]]


def test_the_model_is_unpacked_once(cache, monkeypatch):
    first = load_identifier(LANGUAGES).likely("Was kostet das?", 1.0, 0.01)
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr("openrlhf_qs.form.identifier._unpacked", lambda languages: pytest.fail("unpacked again"))
    assert load_identifier(LANGUAGES).likely("Was kostet das?", 1.0, 0.01) == first


def test_where_nothing_can_be_kept_or_what_is_kept_is_broken_the_model_is_unpacked(cache):
    cache.parent.mkdir(parents=True)
    cache.write_text("a file, where the folder should be")
    assert load_identifier(LANGUAGES).likely("Was kostet das?", 0.5, 0.1)[0][0] == "de"
    cache.unlink()
    load_identifier(LANGUAGES)
    (next(cache.iterdir()) / "row.npy").write_bytes(b"broken")
    assert load_identifier(LANGUAGES).likely("Was kostet das?", 0.5, 0.1)[0][0] == "de"
