"""Whether a trained model may be served: what `harmonize evaluate` decided and why, and `harmonize push` asks for.

blessing.json lies beside the evaluation. A verdict is about a file, known by its SHA-256: a model that was trained
again has none, wherever it lies.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import harmonize_tf
from harmonize_tf.errors import ModelError

FILE = "blessing.json"


@dataclasses.dataclass(frozen=True)
class Rule:
    """One rule and what came of it.

    Attributes:
      sentence: the rule with its numbers.
      kept: whether it is kept; None: it could not be asked, and decides nothing.
    """

    sentence: str
    kept: bool | None


@dataclasses.dataclass(frozen=True)
class Verdict:
    """About one model.

    Attributes:
      name: the model's in the evaluation.
      path: its file.
      sha256: fingerprint of the file.
      blessed: whether no rule is broken.
      rules: all that were asked.
      figures: what it reached, by the figure's path in metrics.json, for those that come after it.
    """

    name: str
    path: str
    sha256: str
    blessed: bool
    rules: tuple[Rule, ...]
    figures: Mapping[str, float]

    @property
    def reason(self) -> str:
        """The broken rules, or that there are none."""
        broken = [rule.sentence for rule in self.rules if rule.kept is False]
        return "; ".join(broken) or "every rule is kept"


@dataclasses.dataclass(frozen=True)
class Blessing:
    """What an evaluation decided.

    Attributes:
      plan_sha256: fingerprint of the records' plan.
      split: of the records.
      verdicts: about each model.
      last_blessed: about the model that was blessed before these, with `records` telling where it was measured.
      thresholds: the file with the rules.
      package_version: of harmonize_tf.
    """

    plan_sha256: str
    split: str
    verdicts: tuple[Verdict, ...]
    last_blessed: "LastBlessed | None"
    thresholds: str
    package_version: str = harmonize_tf.__version__

    @classmethod
    def load(cls, path: str | os.PathLike) -> "Blessing":
        """Reads it.

        Raises:
          ModelError: it is missing or damaged.
        """
        try:
            values = json.loads(pathlib.Path(path).read_bytes())
            last = values["last_blessed"]
            return cls(
                plan_sha256=str(values["plan_sha256"]),
                split=str(values["split"]),
                verdicts=tuple(map(_verdict, values["verdicts"])),
                last_blessed=last and LastBlessed(_verdict(last["verdict"]), last["plan_sha256"], last["split"]),
                thresholds=str(values["thresholds"]),
                package_version=str(values["package_version"]),
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(
                f"expected the {FILE} that `harmonize evaluate` writes, evaluate the model again ({error!r}). "
                f"Received: {path}"
            ) from error

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return dataclasses.asdict(self)

    def about(self, sha256: str) -> Verdict | None:
        """The verdict about a file, if it was judged."""
        return next((verdict for verdict in self.verdicts if verdict.sha256 == sha256), None)

    def last_before(self, sha256: str) -> "LastBlessed | None":
        """The model that was blessed last when a file comes to be judged; of several at once, the first.

        A file that was judged here is judged anew: what was blessed before it is what was blessed before these.
        """
        if not self.about(sha256):
            for verdict in self.verdicts:
                if verdict.blessed:
                    return LastBlessed(verdict, self.plan_sha256, self.split)
        return self.last_blessed


@dataclasses.dataclass(frozen=True)
class LastBlessed:
    """A model that was blessed before, and the records that it was measured on."""

    verdict: Verdict
    plan_sha256: str
    split: str


def _verdict(values: Mapping[str, Any]) -> Verdict:
    rules = tuple(Rule(str(rule["sentence"]), rule["kept"]) for rule in values["rules"])
    return Verdict(
        name=str(values["name"]),
        path=str(values["path"]),
        sha256=str(values["sha256"]),
        blessed=values["blessed"] is True,
        rules=rules,
        figures=dict(values["figures"]),
    )
