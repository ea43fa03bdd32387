import pytest

from harmonize_tf import artifacts
from harmonize_tf.blessing import Blessing, LastBlessed, Rule, Verdict
from harmonize_tf.errors import ModelError


def verdict(sha, blessed=True):
    rules = (Rule("rmse_all is 1, at most 2 wanted", True), Rule("ssim is 0.1, at least 0.5 wanted", blessed or False))
    return Verdict("m", "m.keras", sha, blessed, rules, {"rmse_all": 1.0})


def test_what_was_written_is_read_back(tmp_path):
    blessing = Blessing("p", "test", (verdict("a"), verdict("b", False)), LastBlessed(verdict("c"), "q", "val"), "t")
    artifacts.write(tmp_path / "blessing.json", artifacts.to_json(blessing.to_dict()))
    assert Blessing.load(tmp_path / "blessing.json") == blessing


def test_a_verdict_is_about_one_file_and_gives_the_broken_rules_as_its_reason():
    blessing = Blessing("p", "test", (verdict("a"), verdict("b", False)), None, "t")
    assert blessing.about("a").reason == "every rule is kept"
    assert blessing.about("b").reason == "ssim is 0.1, at least 0.5 wanted"
    assert blessing.about("c") is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"verdicts": 3}'])
def test_a_damaged_file_is_told(tmp_path, text):
    (tmp_path / "blessing.json").write_text(text)
    with pytest.raises(ModelError, match="evaluate the model again.*Received: .*blessing.json"):
        Blessing.load(tmp_path / "blessing.json")
