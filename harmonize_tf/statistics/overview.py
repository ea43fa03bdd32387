"""overview.html: all of it on one page that needs nothing but itself."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from harmonize_tf import pages, patches, sensors
from harmonize_tf.statistics import figures
from harmonize_tf.statistics.anomalies import Anomaly
from harmonize_tf.statistics.groups import ALL, Fit, Group
from harmonize_tf.statistics.places import Block
from harmonize_tf.statistics.totals import Thumbnail

TEMPLATE = pathlib.Path(__file__).with_name("overview.html.jinja")
QUANTILES = (0.01, 0.5, 0.99)


def page(
    about: Mapping[str, Any],
    groups: Mapping[str, Group],
    blocks: Sequence[Block],
    thumbnails: Mapping[str, Sequence[Thumbnail]],
    anomalies: Sequence[Anomaly],
) -> str:
    """The page.

    Args:
      about: data, package_version, level, bands, nir, source, baseline and schema_file.
      groups: from `groups.groups`.
      blocks: for the map.
      thumbnails: patches to look at, by split.
      anomalies: what is wrong.
    """
    splits = [split for split in patches.SPLITS if split in groups]
    return pages.render(
        TEMPLATE,
        about=about,
        groups=groups,
        splits=splits,
        anomalies=anomalies,
        months=_months(groups, splits),
        maps=figures.maps(blocks),
        thumbnails=_thumbnails(groups[ALL], [one for split in splits for one in thumbnails.get(split, ())]),
        charts=_charts(groups, splits),
        tables=[(name, _rows(group)) for name, group in groups.items()],
        figures=_figures(groups[ALL]),
        fits=[(fit, _published(fit, about)) for fit in groups[ALL].fits],
    )


def _months(groups: Mapping[str, Group], splits: Sequence[str]) -> list[tuple[str, list[int], list[float]]]:
    """Month, patches of each split, and their percentages of the fullest month."""
    months = groups[ALL].months
    fullest = max(months.values())
    counted = {month: [groups[split].months.get(month, 0) for split in splits] for month in sorted(months)}
    return [(month, counts, [100 * count / fullest for count in counts]) for month, counts in counted.items()]


def _thumbnails(group: Group, kept: Sequence[Thumbnail]) -> list[dict[str, Any]]:
    """One stretch for both sensors, so that what differs is seen to differ."""
    stretched = figures.stretch(group.bands, "sentinel") or figures.stretch(group.bands, "landsat")
    if stretched is None:
        return []
    found = []
    for one in kept:
        pictures = {sensor: figures.picture(one, sensor, stretched) for sensor in ("landsat", "sentinel")}
        shown = {sensor: image for sensor, image in pictures.items() if image is not None}
        found.append({"id": one.id, "split": one.split, "pictures": shown})
    return found


def _charts(groups: Mapping[str, Group], splits: Sequence[str]) -> list[dict[str, Any]]:
    """Of every band: sensor beside sensor, and split beside split."""
    whole = groups[ALL].bands
    charts = []
    for band in dict.fromkeys(feature.split("/")[1] for feature in whole):
        seen = {sensor: whole[f"{sensor}/{band}"] for sensor in ("landsat", "sentinel") if f"{sensor}/{band}" in whole}
        sensor = "sentinel" if "sentinel" in seen else "landsat"
        feature = f"{sensor}/{band}"
        by_split = {split: groups[split].bands[feature] for split in splits if feature in groups[split].bands}
        charts.append(
            {
                "band": band,
                "sensor": sensor,
                "sensors": figures.histogram(seen, f"{band}: reflectance by sensor"),
                "splits": figures.histogram(by_split, f"{feature}: reflectance by split"),
            }
        )
    return charts


def _rows(group: Group) -> list[dict[str, Any]]:
    """A line for each band."""
    rows = []
    for feature in group.features:
        pixels, missing = group.pixels(feature)
        row = {"feature": feature, "valid": group.valid[feature.split("/")[0]], "missing": missing / max(pixels, 1)}
        if (band := group.bands.get(feature)) is not None:
            row |= {"mean": band.mean, "std": band.std, "low": band.low, "high": band.high}
            row |= {"quantiles": [float(band.quantile(share)) for share in QUANTILES]}
            row |= {"saturated": group.saturated(feature)}
        rows.append(row)
    return rows


def _figures(group: Group) -> list[dict[str, Any]]:
    """What is known of patches as a whole."""
    return [
        {
            "name": name,
            "unit": values.axis.unit,
            "count": values.count,
            "median": values.median,
            "range": (float(values.quantile(0.05)), float(values.quantile(0.95))),
            "chart": figures.histogram({"figure": values}, name),
        }
        for name, values in group.figures.items()
    ]


def _published(fit: Fit, about: Mapping[str, Any]) -> str:
    """HLS's slope and offset beside a fit, with what they are good for."""
    found = sensors.HLS_BANDPASS.get(fit.sentinel, {}).get(fit.band)
    if found is None:
        return "none"
    narrow = " (of B8A)" if fit.band == "nir" and about["nir"] != "B8A" else ""
    surface = "" if about["level"] == "sr" else ", for sr"
    return f"{found[0]:.4f}, {found[1]:+.4f}{narrow}{surface}"
