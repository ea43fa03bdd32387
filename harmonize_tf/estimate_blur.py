"""Measures on exported pairs how much blurrier than Sentinel-2 Landsat is, and how far and how much brighter or darker.

    harmonize estimate-blur --data=RUN/examples --out=RUN/blur.json

Blur is fitted twice. "pair_grid" is what shows in the records, where Landsat has been warped by cubic convolution: a
model has to assume it. "sensors" has the warp in the model and is what the sensors themselves do, with the true shift;
it holds where Landsat's scene is of the pair grid's own UTM zone and was not resampled before. Where that is not so,
its residual is no smaller than the other's. `harmonize_tf.blur` describes the file, `blur_fit` the method.
"""

import collections
import dataclasses
import json
import logging
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

import harmonize_tf
from harmonize_tf import blur, blur_fit, command, degradation, patches, radiometry, records, sensors
from harmonize_tf.blur_fit import Fit, ScenePair
from harmonize_tf.errors import DatasetError, FlagError, RecordError

CLEAR = 0.25  # share of a patch whose cells can be compared, below which it is left out
PAIRS = 8  # of scenes, from which on the spread is that over pairs
DRAWS = 100  # of patches, where there are fewer pairs
CERTAIN = 0.1  # pixels of 10 m: greatest standard error of a blur that tells anything

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "data", None, "Folder that `harmonize export` wrote, RUN/examples.", required=True, flag_values=FLAGS
)
flags.DEFINE_string("out", None, "JSON file to write, RUN/blur.json.", required=True, flag_values=FLAGS)
flags.DEFINE_enum("split", None, list(patches.SPLITS), "Read one split only. Default: all.", flag_values=FLAGS)
flags.DEFINE_integer("patches", 300, "Most patches to look at.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("seed", 0, "Of the patches drawn anew for the spread.", lower_bound=0, flag_values=FLAGS)

_log = logging.getLogger("harmonize")


@dataclasses.dataclass(frozen=True, eq=False)
class Looked:
    """A record that can be used.

    Attributes:
      record: both sides of it.
      cells: bool [h, w], the 30 m cells to compare.
    """

    record: records.Record
    cells: np.ndarray


def main(argv: Sequence[str] | None = None) -> None:
    """Estimates as the flags say, writes the file and prints a table.

    Raises:
      FlagError: flags are wrong or missing.
      DatasetError: there is no export, its records are of one sensor, or there is too little to see.
    """
    command.parse(FLAGS, argv)
    data, out = pathlib.Path(FLAGS.data), pathlib.Path(FLAGS.out)
    if out.is_dir():
        raise FlagError(f"expected the name of a file, such as {out / 'blur.json'}. Received: out={out}")
    info = _info(data)
    looked = list(_look(data, info["bands"], FLAGS.split, FLAGS.patches))
    values = {
        "package_version": harmonize_tf.__version__,
        "flags": {name: FLAGS[name].value for name in ("data", "split", "patches", "seed")},
        **{name: info[name] for name in ("plan_sha256", "level", "nir", "bands")},
        **estimate(looked, info["bands"], info["nir"], FLAGS.seed),
    }
    blur.write(out, values)
    print(table(values))
    _log.info("%s: of %d patches of %d pairs of scenes", out, values["patches"], values["scene_pairs"])


def estimate(looked: Sequence[Looked], bands: Sequence[str], nir: str, seed: int) -> dict[str, Any]:
    """The part of the file that the records decide.

    Args:
      looked: at least one.
      bands: of the records.
      nir: Sentinel-2's band behind "nir".
      seed: of the patches drawn anew.

    Raises:
      DatasetError: the patches are too flat to show any blur.
    """
    scenes = collections.defaultdict(list)
    for patch in looked:
        scenes[patch.record.landsat.scene_id, patch.record.sentinel.scene_id].append(patch)
    published = sensors.blur_sigma(bands, nir)
    starts = {"pair_grid": degradation.pair_grid_sigma(published), "sensors": published}
    fits: dict[tuple[str, str], Fit] = {}
    alone: dict[tuple[str, str], list[Fit]] = {}
    for index, band in enumerate(bands):
        pairs = [_scene_pair(found, index) for found in scenes.values()]
        for name, start in starts.items():
            warped = name == "sensors"
            fits[name, band] = _certain(blur_fit.fit(pairs, start[index], warped=warped), band)
            near = float(fits[name, band].sigma.mean())
            alone[name, band] = [blur_fit.fit([p], near, warped=warped) for p in pairs] if len(pairs) >= PAIRS else []
    cells = int(sum(patch.cells.sum() for patch in looked))
    samples_of, samples = _samples(fits, alone, [len(found) for found in scenes.values()], seed)
    return {
        "scene_pairs": len(scenes),
        "patches": len(looked),
        "samples_of": samples_of,
        **{n: {b: _measured(fits[n, b], samples[n, b]) | {"cells": cells} for b in bands} for n in starts},
    }


def table(values: Mapping[str, Any]) -> str:
    """The figures as text: blur in 10 m pixels, residuals in 1e-4 reflectance."""
    heads = ["", "pair grid x", "y", "sensors x", "y", "quartiles", "east m", "north m", "gain", "before", "after"]
    rows = [heads]
    for band in values["bands"]:
        grid, own = values["pair_grid"][band], values["sensors"][band]
        low, _, high = (np.mean(quartile) for quartile in grid["sigma_quartiles"])
        rows.append(
            [
                band, *(f"{s:.2f}" for s in (*grid["sigma"], *own["sigma"])), f"{low:.2f}-{high:.2f}",
                *(f"{s:.1f}" for s in own["shift_m"]["median"]), f"{own['gain']['median']:.3f}",
                f"{1e4 * grid['residual_before']:.0f}", f"{1e4 * grid['residual_after']:.0f}",
            ]
        )  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(x.rjust(w) for x, w in zip(row, widths, strict=True)) for row in rows)


def _info(data: pathlib.Path) -> Mapping[str, Any]:
    """What dataset_info.json says; `dataset.DatasetInfo` would bring TensorFlow along."""
    path = data / "dataset_info.json"
    try:
        info = json.loads(path.read_text())
        if info["schema"] != records.SCHEMA:
            raise DatasetError(
                f"expected records of schema {records.SCHEMA}; export them again with this version of harmonize_tf. "
                f"Received: schema={info['schema']} in {path}"
            )
        return {name: info[name] for name in ("bands", "level", "nir", "plan_sha256")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(
            f"expected the folder of a finished `harmonize export`, with dataset_info.json in it ({error!r}). "
            f"Received: data={data}"
        ) from error


def _look(data: pathlib.Path, bands: Sequence[str], split: str | None, most: int) -> Iterator[Looked]:
    """Patches in which there is enough to compare; each shard is a sample of all the ground, so the first ones will do.

    Raises:
      DatasetError: there are none.
      RecordError: a record is damaged.
    """
    read = paired = usable = 0
    for path in sorted(data.glob(f"{split or '*'}/*-of-*.tfrecord.gz"), key=lambda p: (p.name, p.parent.name)):
        for serialized in records.read_shard(path):
            record = records.decode(serialized)
            read += 1
            if record.landsat is None or record.sentinel is None:
                continue
            paired += 1
            _check(record, bands, path)
            cells = blur_fit.usable(record.landsat.valid > 0, record.sentinel.valid > 0)
            if cells.mean() < CLEAR:
                continue
            usable += 1
            yield Looked(record, cells)
            if usable == most:
                return
    if not usable:
        what = "no record" if not read else "records of one sensor only" if not paired else "too little clear ground"
        raise DatasetError(
            f"expected pairs of which at least {CLEAR:.0%} can be compared, but there is {what}; export pairs of "
            f"scenes, with a higher --min_valid, or read another split. Received: data={data}, split={split or 'all'}, "
            f"{read} records, {paired} of them pairs"
        )


def _check(record: records.Record, bands: Sequence[str], path: pathlib.Path) -> None:
    cells, shapes = len(record.landsat.ms), (record.landsat.ms.shape, record.sentinel.ms.shape)
    sizes = tuple((n, n, len(bands)) for n in (cells, degradation.FACTOR * cells))
    if shapes != sizes or list(record.bands) != list(bands):
        raise RecordError(
            f"{path}: expected square patches with Sentinel-2's pixels three to one, and bands {','.join(bands)}; "
            f"export them again. Received: landsat {shapes[0]}, sentinel {shapes[1]}, bands={','.join(record.bands)}"
        )


def _scene_pair(found: Sequence[Looked], band: int) -> ScenePair:
    """One band of the patches of a pair of scenes."""
    landsat = np.stack([radiometry.decode(p.record.landsat.ms[..., band]) for p in found])
    sentinel = np.stack([radiometry.decode(p.record.sentinel.ms[..., band]) for p in found])
    for image, patch in zip(sentinel, found, strict=True):
        clear = patch.record.sentinel.valid > 0
        image[~clear] = image[clear].mean()
    shifts = np.array([p.record.shift_m for p in found])
    shifts = shifts[np.isfinite(shifts).all(1)]
    start = np.median(shifts, 0) if len(shifts) else np.zeros(2)
    return ScenePair(landsat, sentinel, np.stack([p.cells for p in found]), (float(start[0]), float(start[1])))


def _certain(fit: Fit, band: str) -> Fit:
    if not fit.error.max() < CERTAIN:
        raise DatasetError(
            f"{band} is too flat, or too different between the sensors, to show how blurred it is: expected a standard "
            f"error below {CERTAIN} pixels of 10 m; take more patches, or ground with fields and streets. "
            f"Received: sigma={fit.sigma.round(2).tolist()} +- {fit.error.round(2).tolist()}"
        )
    return fit


def _samples(
    fits: Mapping[Any, Fit], alone: Mapping[Any, Sequence[Fit]], sizes: Sequence[int], seed: int
) -> tuple[str, dict[Any, np.ndarray]]:
    """What the samples are of, and [sample, 2] for each fit: the same pairs, or the same draws, in all.

    Args:
      fits: of all pairs together.
      alone: of each pair by itself; none where pairs are few.
      sizes: patches of each pair.
      seed: of the draws.
    """
    certain = np.all([[fit.error.max() < CERTAIN for fit in found] for found in alone.values()], axis=0)
    if certain.sum() >= PAIRS:
        return "scene pairs", {key: np.array([fit.sigma for fit in found])[certain] for key, found in alone.items()}
    rng = np.random.default_rng(seed)
    draws = np.concatenate([rng.multinomial(n, np.full(n, 1 / n), DRAWS) for n in sizes], axis=1)
    return "patches drawn anew", {key: fit.resampled(draws) for key, fit in fits.items()}


def _measured(fit: Fit, samples: np.ndarray) -> dict[str, Any]:
    return {
        "sigma": _rounded(fit.sigma),
        "sigma_error": _rounded(fit.error),
        "sigma_samples": _rounded(samples),
        "sigma_quartiles": _quartiles(samples),
        **{
            name: {"median": _rounded(np.median(found, 0)), "quartiles": _quartiles(found)}
            for name, found in (("shift_m", fit.shift_m), ("gain", fit.gain), ("offset", fit.offset))
        },
        "residual_before": _rounded(fit.before),
        "residual_after": _rounded(fit.after),
        "counted": _rounded(fit.counted),
    }


def _quartiles(found: np.ndarray) -> list:
    return _rounded(np.percentile(found, (25, 50, 75), axis=0))


def _rounded(value: Any) -> Any:
    return np.round(value, 6).tolist()


if __name__ == "__main__":
    command.run(main)
