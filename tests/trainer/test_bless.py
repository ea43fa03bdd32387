import pytest

from harmonize_tf.errors import FlagError
from trainer import bless

RECORDS = {"plan_sha256": "p", "split": "test"}


def values_of(rmse=0.8, hallucination=0.2, sha="new", plan="p", interval=(0.75, 0.85), **files):
    """A metrics.json in miniature: one trained model, "m", whose RMSE is given over the baseline's."""
    entry = {"rmse_all": rmse * 0.01, "correctness": {"hallucination": hallucination}}
    base = {"rmse_all": 0.01, "correctness": {"hallucination": 0.1}, "against": {}}
    against = {"bandpass": {"rmse_ratio": rmse} | ({"interval": list(interval)} if interval else {})}
    found = {
        "plan_sha256": plan,
        "flags": {"split": "test"},
        "models": {"bandpass": base, "m": entry | {"against": against, "intervals": {}, "strata": {}}},
        "model_files": {"m": {"path": "m.keras", "sha256": sha}},
    }
    for name, file_sha in files.items():
        found["models"][name] = dict(found["models"]["m"], rmse_all=0.009)
        found["model_files"][name] = {"path": f"{name}.keras", "sha256": file_sha}
    return found


def judged(tmp_path, text, values, before=None):
    path = tmp_path / "thresholds.toml"
    path.write_text(text)
    return bless.judge(values, bless.load(path), path, before)


def only(blessing):
    (verdict,) = blessing.verdicts
    return verdict


AGAINST_BASELINE = '[against.bandpass]\n"rmse_all" = { at_most = 1.0 }'
AGAINST_LAST = '[against.last_blessed]\n"rmse_all" = { at_most = 1.02 }'
ABSOLUTE = '[absolute]\n"correctness.hallucination" = { at_most = 0.4, at_least = 0.1 }'


def test_a_model_is_blessed_when_it_keeps_every_rule_and_each_is_told_with_its_numbers(tmp_path):
    verdict = only(judged(tmp_path, f"{ABSOLUTE}\n{AGAINST_BASELINE}", values_of()))
    assert verdict.blessed and verdict.reason == "every rule is kept" and verdict.sha256 == "new"
    assert [rule.sentence for rule in verdict.rules] == [
        "correctness.hallucination is 0.2, at most 0.4 wanted",
        "correctness.hallucination is 0.2, at least 0.1 wanted",
        "rmse_all is 0.8 of the bandpass baseline's (interval 0.75 to 0.85), the upper end at most 1 wanted",
    ]


@pytest.mark.parametrize(
    "changes, text",
    [
        ({"hallucination": 0.5}, "correctness.hallucination is 0.5, at most 0.4 wanted"),
        ({"hallucination": 0.05}, "at least 0.1 wanted"),
        ({"rmse": 1.2, "interval": None}, "rmse_all is 0.012, 1.2 of the bandpass baseline's, 0.01; at most 1 wanted"),
        ({"rmse": 0.98, "interval": (0.9, 1.05)}, "interval 0.9 to 1.05"),  # better, but that may be chance
        ({"hallucination": float("nan")}, "is nan"),
    ],
)
def test_a_broken_rule_is_the_reason_why_a_model_is_not_blessed(tmp_path, changes, text):
    verdict = only(judged(tmp_path, f"{ABSOLUTE}\n{AGAINST_BASELINE}", values_of(**changes)))
    assert not verdict.blessed and text in verdict.reason


def test_a_model_is_compared_with_the_last_one_that_was_blessed(tmp_path):
    first = judged(tmp_path, AGAINST_LAST, values_of(0.8, sha="first"))
    assert only(first).blessed and only(first).rules[0].kept is None  # there was none to compare with
    worse = judged(tmp_path, AGAINST_LAST, values_of(0.85, sha="second"), first)
    assert not only(worse).blessed
    assert "rmse_all is 0.0085, 1.062 of that of the last blessed model, m, 0.008" in only(worse).reason
    better = judged(tmp_path, AGAINST_LAST, values_of(0.81, sha="third"), worse)  # the second never was blessed
    assert only(better).blessed and better.last_blessed.verdict.sha256 == "first"
    assert judged(tmp_path, AGAINST_LAST, values_of(0.79, sha="4"), better).last_blessed.verdict.sha256 == "third"


def test_a_model_that_is_judged_again_is_not_compared_with_itself(tmp_path):
    first = judged(tmp_path, AGAINST_LAST, values_of(0.8, sha="first"))
    second = judged(tmp_path, AGAINST_LAST, values_of(0.79, sha="second"), first)
    again = judged(tmp_path, AGAINST_LAST, values_of(0.79, sha="second"), second)
    assert again.last_blessed.verdict.sha256 == "first" and again.verdicts == second.verdicts


def test_figures_of_other_records_are_not_compared_unless_both_are_measured_now(tmp_path):
    first = judged(tmp_path, AGAINST_LAST, values_of(0.5, sha="first", plan="other"))
    apart = only(judged(tmp_path, AGAINST_LAST, values_of(sha="new"), first))
    assert apart.blessed and apart.rules[0].kept is None and "measured on other records" in apart.rules[0].sentence
    together = judged(tmp_path, AGAINST_LAST, values_of(0.8, sha="new", old="first"), first)
    assert together.verdicts[0].rules[0].sentence.startswith("rmse_all is 0.008, 0.8889 of that of the last blessed")


@pytest.mark.parametrize(
    "text, message",
    [
        ("[absolut]", "expected the sections absolute.*with absolut"),
        ("[against.nothing]", "of nearest, bicubic.*with nothing"),
        ('[absolute]\n"rmse_all" = 3', r"rmse_all = 3"),
        ('[absolute]\n"rmse_all" = { most = 3 }', "with at_most, at_least or both"),
        ('[absolute]\n"rmse_all" = { at_most = "3" }', "a rule is a figure and its limits"),
        ("[absolute", "expected a TOML file"),
        ('[absolute]\n"rmse" = { at_most = 3 }', "one of correctness.hallucination, rmse_all. Received: rmse"),
    ],
)
def test_thresholds_that_say_nothing_are_refused(tmp_path, text, message):
    with pytest.raises(FlagError, match=message):
        judged(tmp_path, text, values_of())


def test_a_missing_file_of_thresholds_is_told(tmp_path):
    with pytest.raises(FlagError, match="Received: thresholds="):
        bless.load(tmp_path / "none.toml")


def test_the_defaults_can_be_read():
    assert {threshold.against for threshold in bless.load(bless.DEFAULT)} == {"", "bandpass", bless.LAST}
