"""Measures models on a split, in one pass: every figure of `harmonize_tf.metrics`, for the set and for parts of it."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from harmonize_tf import dataset, degradation, sensors
from harmonize_tf.dataset import DatasetInfo
from harmonize_tf.metrics import fidelity, hallucination, intervals, opensr, sharpness, strata
from harmonize_tf.metrics.calibration import Calibration, CalibrationMeter
from harmonize_tf.metrics.consistency import Consistency, ConsistencyMeter
from harmonize_tf.metrics.distribution import Distribution, DistributionMeter
from harmonize_tf.metrics.fidelity import Fidelity
from harmonize_tf.metrics.reference import Reference
from harmonize_tf.metrics.scatter import Scatter
from harmonize_tf.metrics.sharpness import Sharpness
from harmonize_tf.metrics.strata import Kind
from harmonize_tf.metrics.sums import Figured, Sums, Tally
from harmonize_tf.models.baselines import BASELINES

PER_BAND = ("rmse", "bias", "edge", "ratio", "coherence")
"""Figures that have an interval for each band; all that are one number have one too."""


@dataclasses.dataclass(frozen=True)
class Patch:
    """One patch's own figures.

    Attributes:
      number: its place in the split.
      id: its record's.
      clear: share of its pixels that count.
      rmse: root mean square error of all bands, reflectance; NaN where nothing counts.
    """

    number: int
    id: str
    clear: float
    rmse: float


@dataclasses.dataclass(frozen=True, eq=False)
class Figures:
    """What is measured of a model.

    Attributes:
      fidelity: nearness to the reference.
      sharpness: detail beyond 30 m.
      distribution: distance of all outputs to all references, whose pairs are not looked at.
      consistency: with the input, band-pass adjusted.
      resampled: the same as opensr-test defines it: "reflectance", "spectral" (degrees), "spatial" (30 m pixels).
      correctness: shares of "improvement", "omission" and "hallucination" in the detail, as opensr-test defines them.
      intervals: of figures, by their names (those of bands by figure and band); none where blocks are few.
      strata: figures by kind of stratum, stratum and name.
      against: by the name of a baseline: "rmse_ratio", and its interval.
      blocks: number of geographic blocks.
      patches: of each patch, in reading order.
      spectrum: frequencies (cycles per 10 m pixel), power of the reference, and of the output.
      scatter: values of the output by values of the reference.
      calibration: of the error that a model tells; None where it tells none.
    """

    fidelity: Fidelity
    sharpness: Sharpness
    distribution: Distribution
    consistency: Consistency
    resampled: Mapping[str, float]
    correctness: Mapping[str, float]
    intervals: Mapping[str, Any]
    strata: Mapping[str, Mapping[str, Mapping[str, float]]]
    against: Mapping[str, Mapping[str, Any]]
    blocks: int
    patches: Sequence[Patch]
    spectrum: tuple[np.ndarray, np.ndarray, np.ndarray]
    scatter: Scatter
    calibration: Calibration | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON: those of fidelity, and the others under their names."""
        told = {"calibration": self.calibration.to_dict()} if self.calibration else {}
        return (
            self.fidelity.to_dict()
            | told
            | {
                "sharpness": self.sharpness.to_dict(),
                "distribution": self.distribution.to_dict(),
                "consistency": self.consistency.to_dict() | dict(self.resampled),
                "correctness": dict(self.correctness),
                "intervals": self.intervals,
                "strata": self.strata,
                "against": self.against,
            }
        )


def measure(models: Mapping[str, keras.Model], info: DatasetInfo, split: str, batch: int) -> dict[str, Figures]:
    """The figures of each model on a split, which is read once; what is of the reference alone is computed once."""
    patches = dataset.described(info, split, batch=batch, pan=info.pan)
    spec = [patches.element_spec[0]]
    # One that tells how wrong it may be gives two arrays.
    answering = {name: model.judged if _tells(model) else model for name, model in models.items()}
    calls = {name: tf.function(function, input_signature=spec) for name, function in answering.items()}
    look, meters = DistributionMeter(info.bands), {}
    for name, model in models.items():
        meters[name] = _Meters(model, info, look)
    total = -(-info.counts[split] // batch)
    # Products of small matrices: a second BLAS thread waits more than it helps, and takes a core from the models.
    with threadpool_limits(1, "blas"):
        _add(tqdm(patches, "evaluate", total, disable=None), calls, info, look, meters)
        draws = {name: meter.draws() for name, meter in meters.items()}
        return {name: meter.result(name, meters, draws) for name, meter in meters.items()}


def _add(
    patches: Iterable[tuple[Any, Any, Any]],
    calls: Mapping[str, Callable],
    info: DatasetInfo,
    look: DistributionMeter,
    meters: Mapping[str, "_Meters"],
) -> None:
    """Adds every patch to every model's meters."""
    for inputs, targets, facts in patches:
        answers = {name: [x.numpy() for x in tf.nest.flatten(call(inputs))] for name, call in calls.items()}
        measurement, measured = info.bandpass.apply(inputs["landsat_ms"]).numpy(), inputs["landsat_valid"].numpy()
        truth, mask = targets["sentinel_ms"].numpy(), targets["mask"].numpy()
        facts = {name: x.numpy() for name, x in facts.items()}
        for n in range(len(truth)):
            reference = Reference(truth[n], mask[n, ..., 0], info.bands, measurement[n], measured[n, ..., 0])
            about = {name: x[n].decode() if isinstance(x[n], bytes) else float(x[n]) for name, x in facts.items()}
            look.update_reference(truth[n], reference.mask)
            for name, meter in meters.items():
                meter.update(reference, [x[n] for x in answers[name]], about)


def _tells(model: keras.Model) -> bool:
    return getattr(model, "spread", None) is not None


class _Meters:
    """Those of one model."""

    def __init__(self, model: keras.Model, info: DatasetInfo, look: DistributionMeter) -> None:
        # A model is held to the blur that it assumes; baselines assume none, and the published one serves.
        assumed = degradation.pair_grid_sigma(sensors.blur_sigma(info.bands, info.nir))
        self._bands, self._tally, self._patches = info.bands, Tally(), []
        self._distribution = DistributionMeter(info.bands, reference=look)
        self._consistency = ConsistencyMeter(info.bands, getattr(model, "sigma", assumed))
        self._calibration = CalibrationMeter(info.bands) if _tells(model) else None
        seen = info.statistics["sentinel"]
        ends = [(m - 4 * s, m + 4 * s) for m, s in zip(seen.mean, np.maximum(seen.std, 1e-3), strict=True)]
        self._scatter = Scatter(*zip(*ends, strict=True))

    def update(self, reference: Reference, answer: Sequence[np.ndarray], about: Mapping[str, Any]) -> None:
        """Adds a patch's output [3h, 3w, band], and its error if the model tells it; `about` tells of the pair."""
        output = answer[0]
        sums = fidelity.sums(reference, output) | sharpness.sums(reference, output)
        sums |= hallucination.sums(reference, output) | opensr.sums(reference, output)
        sums |= strata.sums(reference, output)
        clear = float(reference.mask.mean())
        kind = Kind.of(clear, about["dt_s"], about["landsat"], about["sentinel"])
        self._tally.add((about["block"], kind), sums)
        rmse = float(np.sqrt((sums["squared"] / sums["pixels"]).mean())) if sums["pixels"] else float("nan")
        self._patches.append(Patch(len(self._patches), about["id"], clear, rmse))
        self._distribution.update_prediction(output, reference.mask)
        self._consistency.update(output, reference.measurement, reference.measured)
        self._scatter.add(reference.pixels, output[reference.mask])
        if self._calibration:
            self._calibration.update(reference.image, *answer, reference.mask)

    def draws(self) -> Figured | None:
        """Figures of sets of blocks, for intervals."""
        return intervals.drawn(self._tally.by(lambda group: group[0]), _figures)

    def result(self, name: str, all_meters: Mapping[str, "_Meters"], draws: Mapping[str, Figured | None]) -> Figures:
        """The figures; those of the others are for comparing."""
        total = self._tally.total()
        found = _figures(total)
        return Figures(
            fidelity=Fidelity.of(self._bands, total),
            sharpness=Sharpness.of(self._bands, total),
            distribution=self._distribution.result(),
            consistency=self._consistency.result(),
            resampled={key: float(found[key]) for key in ("reflectance", "spectral", "spatial")},
            correctness={key: float(found[key]) for key in hallucination.NAMES},
            intervals=self._intervals(draws[name]),
            strata=self._strata(),
            against={
                base: _ratio(found, _figures(all_meters[base]._tally.total()), draws[name], draws[base])
                for base in BASELINES
                if base in all_meters and base != name
            },
            blocks=len(self._tally.by(lambda group: group[0])),
            patches=self._patches,
            spectrum=sharpness.spectrum(total),
            scatter=self._scatter,
            calibration=self._calibration and self._calibration.result(),
        )

    def _intervals(self, draws: Figured | None) -> dict[str, Any]:
        if draws is None:
            return {}
        ends = {name: np.stack(intervals.interval(x), -1).tolist() for name, x in draws.items()}
        plain = {name: x for name, x in ends.items() if draws[name].ndim == 1}
        return plain | {name: dict(zip(self._bands, ends[name], strict=True)) for name in PER_BAND}

    def _strata(self) -> dict[str, dict[str, dict[str, float]]]:
        total = self._tally.total()
        found = strata.figures(total)
        ground = {
            kind: {
                "pixels": int(total["ground_pixels"][n]),
                "rmse_all": float(found["ground_rmse"][n]),
                "bias_all": float(found["ground_bias"][n]),
            }
            for n, kind in enumerate(strata.GROUND)
            if total["ground_pixels"][n]
        }
        orders = {"cloud": strata.CLOUD, "gap": strata.GAP, "spacecraft": None}
        tables = {"ground": ground}
        for field, order in orders.items():
            parts = self._tally.by(lambda group, field=field: getattr(group[1], field))
            tables[field] = {kind: _summary(parts[kind]) for kind in order or parts if kind in parts}
        return tables


def _figures(total: Sums) -> Figured:
    families = (fidelity, sharpness, hallucination, opensr)
    return {name: x for family in families for name, x in family.figures(total).items()}


def _summary(part: Sums) -> dict[str, float]:
    found = fidelity.figures(part)
    names = ("rmse_all", "bias_all", "psnr", "ssim", "sam")
    return {"pixels": int(part["pixels"])} | {name: float(found[name]) for name in names}


def _ratio(mine: Figured, other: Figured, draws: Figured | None, others: Figured | None) -> dict[str, Any]:
    """RMSE over a baseline's, of the set and of the same sets of blocks."""
    with np.errstate(divide="ignore", invalid="ignore"):
        found = {"rmse_ratio": float(mine["rmse_all"] / other["rmse_all"])}
        if draws is None:
            return found
        ends = intervals.interval(draws["rmse_all"] / others["rmse_all"])
    return found | {"interval": [float(end) for end in ends]}
