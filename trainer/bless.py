"""Judges evaluated models by thresholds: against a baseline, against the last blessed model, and in themselves."""

import dataclasses
import pathlib
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any

from harmonize_tf.blessing import Blessing, LastBlessed, Rule, Verdict
from harmonize_tf.errors import FlagError
from harmonize_tf.models.baselines import BASELINES

DEFAULT = pathlib.Path(__file__).with_name("thresholds.toml")
LAST = "last_blessed"
BOUNDS = {"at_most": "at most", "at_least": "at least"}


@dataclasses.dataclass(frozen=True)
class Threshold:
    """One line of the file.

    Attributes:
      figure: its path in a model's entry of metrics.json, parts joined by dots.
      against: a baseline or `LAST`, over whose figure it is divided; "": nothing.
      bound: "at_most" or "at_least".
      limit: the number.
    """

    figure: str
    against: str
    bound: str
    limit: float

    def kept_by(self, value: float) -> bool:
        """Whether a value keeps it."""
        return value <= self.limit if self.bound == "at_most" else value >= self.limit


def load(path: str | pathlib.Path) -> list[Threshold]:
    """Reads a file of thresholds.

    Raises:
      FlagError: it is missing, no TOML, or says what no rule can say.
    """
    try:
        values = tomllib.loads(pathlib.Path(path).read_text())
    except (OSError, ValueError) as error:
        raise FlagError(
            f"expected a TOML file like trainer/thresholds.toml ({error}). Received: thresholds={path}"
        ) from error
    return list(_thresholds(values, path))


def _thresholds(values: Mapping[str, Any], path: str | pathlib.Path) -> Iterator[Threshold]:
    against = values.get("against", {})
    sections = {"": values.get("absolute", {}), **(against if isinstance(against, dict) else {"": None})}
    unknown = sorted({*values} - {"absolute", "against"}) + sorted({*sections} - {"", LAST, *BASELINES})
    if unknown:
        raise FlagError(
            f"expected the sections absolute, against.{LAST} and against.BASELINE, of {', '.join(BASELINES)}. "
            f"Received: thresholds={path} with {', '.join(unknown)}"
        )
    for section, rules in sections.items():
        for figure, bounds in rules.items() if isinstance(rules, dict) else [("", None)]:
            if not (isinstance(bounds, dict) and bounds and all(_is_bound(*item) for item in bounds.items())):
                raise FlagError(
                    'a rule is a figure and its limits, such as "rmse_all" = { at_most = 1.0 }, with at_most, at_least '
                    f"or both. Received: thresholds={path} with {figure} = {bounds}"
                )
            for bound, limit in bounds.items():
                yield Threshold(figure, section, bound, float(limit))


def _is_bound(bound: str, limit: Any) -> bool:
    return bound in BOUNDS and isinstance(limit, int | float) and not isinstance(limit, bool)


def judge(
    values: Mapping[str, Any], thresholds: list[Threshold], path: str | pathlib.Path, before: Blessing | None
) -> Blessing:
    """Judges every trained model of an evaluation.

    Args:
      values: what metrics.json holds.
      thresholds: the rules.
      path: of their file.
      before: what was decided before, whose blessed model is the one to compare with.

    Raises:
      FlagError: a rule names a figure that there is none of.
    """
    records = {"plan_sha256": values["plan_sha256"], "split": values["flags"]["split"]}
    verdicts, compared = [], None
    for name, file in values["model_files"].items():
        last = before.last_before(file["sha256"]) if before else None
        compared = compared or last
        rules = tuple(_rule(threshold, name, values, last) for threshold in thresholds)
        verdicts.append(
            Verdict(
                name=name,
                path=file["path"],
                sha256=file["sha256"],
                blessed=all(rule.kept is not False for rule in rules),
                rules=rules,
                figures=flat(values["models"][name]),
            )
        )
    if before and not verdicts:
        compared = before.last_before("")
    return Blessing(verdicts=tuple(verdicts), last_blessed=compared, thresholds=str(path), **records)


def _rule(threshold: Threshold, name: str, values: Mapping[str, Any], last: LastBlessed | None) -> Rule:
    """Asks one rule of one model."""
    entries, figure = values["models"], threshold.figure
    mine = flat(entries[name])
    if figure not in mine:
        raise FlagError(
            f"a rule is about a figure of metrics.json, one of {', '.join(sorted(mine))}. Received: {figure}"
        )
    wanted = f"{BOUNDS[threshold.bound]} {threshold.limit:g} wanted"
    if not threshold.against:
        return _asked(threshold, mine[figure], f"{figure} is {_text(mine[figure])}, {wanted}")
    if threshold.against != LAST:
        other, whose = flat(entries[threshold.against])[figure], f"the {threshold.against} baseline's"
        found = entries[name]["against"].get(threshold.against, {})
        if figure == "rmse_all" and threshold.bound == "at_most" and "interval" in found:
            low, high = found["interval"]
            told = f"{figure} is {_text(found['rmse_ratio'])} of {whose} (interval {_text(low)} to {_text(high)})"
            return _asked(threshold, high, f"{told}, the upper end {wanted}")
    else:
        if last is None:
            return Rule(f"{figure} against the last blessed model: there is none yet", None)
        other, whose = _figure_of(last, figure, values), f"that of the last blessed model, {last.verdict.name}"
        if other is None:
            return Rule(
                f"{figure} against the last blessed model: it was measured on other records; give it with --model too, "
                f"it was {last.verdict.path}",
                None,
            )
    value = mine[figure] / other if other else float("nan")
    told = f"{figure} is {_text(mine[figure])}, {_text(value)} of {whose}, {_text(other)}"
    return _asked(threshold, value, f"{told}; {wanted}")


def _asked(threshold: Threshold, value: float, sentence: str) -> Rule:
    return Rule(sentence, threshold.kept_by(value))  # what is no number keeps no rule


def _figure_of(last: LastBlessed, figure: str, values: Mapping[str, Any]) -> float | None:
    """As measured now, or then where the records are the same."""
    for name, file in values["model_files"].items():
        if file["sha256"] == last.verdict.sha256:
            return flat(values["models"][name])[figure]
    same = (last.plan_sha256, last.split) == (values["plan_sha256"], values["flags"]["split"])
    return last.verdict.figures.get(figure) if same else None


def flat(entry: Mapping[str, Any], above: str = "") -> dict[str, float]:
    """Every number of a model's entry by its path, less those of intervals and parts of the set."""
    found = {}
    for name, value in entry.items():
        if isinstance(value, Mapping) and name not in ("intervals", "strata", "against"):
            found |= flat(value, f"{above}{name}.")
        elif isinstance(value, int | float):
            found[above + name] = float(value)
    return found


def _text(value: float) -> str:
    return f"{value:.4g}"
