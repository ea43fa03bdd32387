"""Manifests for the real imagery beside the checkout; its README and meta.json files say where the numbers are from."""

import json
import math
import pathlib
from typing import Any

L2 = {"scale": 2.75e-5, "offset": -0.2}
SIX = ["blue", "green", "red", "nir", "swir1", "swir2"]


def level_1(sun_elevation: float) -> dict[str, float]:
    sine = math.sin(math.radians(sun_elevation))
    return {"scale": 2e-5 / sine, "offset": -0.1 / sine}


def _landsat(name: str, level: str, time: str, elevation: float, files: list, quality: list = (), n: int = 8) -> dict:
    scene = {"id": name, "sensor": "landsat", "level": level, "spacecraft": f"LANDSAT_{n}", "time": time}
    return scene | {"sun": {"zenith": 90 - elevation, "azimuth": 0.0}, "files": files, "quality": list(quality)}


def _sentinel(name: str, level: str, time: str, files: list, spacecraft: str = "SENTINEL_2A") -> dict:
    return {"id": name, "sensor": "sentinel", "level": level, "spacecraft": spacecraft, "time": time, "files": files}


def scenes(data: pathlib.Path) -> dict[str, Any]:
    """Every real scene's manifest by name."""
    landsat, sentinel, pairs = data / "scenes" / "landsat8", data / "scenes" / "sentinel2", data / "pairs"

    def file(path: pathlib.Path, bands: list, scale: float, offset: float = 0.0, **more: Any) -> dict:
        return {"path": str(path), "bands": bands, "scale": scale, "offset": offset, **more}

    alabama = landsat / "alabama_020039_20150804"
    toa = level_1(64.74360932)
    found = {
        "alabama": _landsat(
            "LC80200392015216LGN00",
            "toa",
            "2015-08-04T16:19:21Z",
            64.74360932,
            [
                file(alabama / "ms_30m.tif", [None, *SIX, None, None, None], **toa),
                file(alabama / "pan_15m.tif", ["pan"], **toa),
            ],
            [{"path": str(alabama / "bqa_30m.tif"), "kind": "bqa"}],
        ),
        "t33uuu": _sentinel(
            "T33UUU",
            "toa",
            "2017-02-16T10:21:01Z",
            [
                file(sentinel / "t33uuu_20170216" / "ms_10m.tif", SIX[:4], 1e-4),
                file(sentinel / "t33uuu_20170216" / "ms_20m.tif", [None] * 4 + SIX[4:], 1e-4),
            ],
        ),
        "t32tmt": _sentinel(
            "T32TMT",
            "sr",
            "2019-05-30T10:30:29Z",
            [
                file(
                    sentinel / "t32tmt_20190530" / "ms_10m.tif",
                    [*SIX[:3], None, None, None, "nir", None, *SIX[4:]],
                    1e-4,
                )
            ],
        ),
        "manaus": _landsat(
            "LC09_231062",
            "sr",
            "2023-07-23T14:12:31Z",
            53.394,
            [file(landsat / "manaus_231062_20230723_L9" / "ms_30m.tif", SIX, **L2)],
            n=9,
        ),
    }
    for date, elevation in (("20230213", 53.571), ("20230418", 64.662), ("20230520", 63.367)):
        folder = landsat / f"tirunelveli_143054_{date}"
        ms = file(folder / "ms_30m.tif", [*SIX, None], **L2)
        pan = file(folder / "pan_15m.tif", ["pan"], **level_1(elevation))
        quality = [{"path": str(folder / "ms_30m.tif"), "band": 7, "kind": "qa_pixel"}]
        day = f"{date[:4]}-{date[4:6]}-{date[6:]}T05:00:00Z"
        found[f"tirunelveli_{date}"] = _landsat(f"TIRU_{date}", "sr", day, elevation, [ms, pan], quality)
    for date in ("20190114", "20190130"):
        ms = file(landsat / f"brumadinho_218074_{date}" / "ms_30m.tif", SIX, **L2)
        found[f"brumadinho_{date}"] = _landsat(f"BRUM_{date}", "sr", f"2019-01-{date[-2:]}", 59.0, [ms])
    for date, elevation in (("20190809", 42.61713919), ("20190825", 46.93822012)):
        ms = file(landsat / f"pantanal_227074_{date}" / "ms_30m.tif", SIX, **level_1(elevation))
        found[f"pantanal_{date}"] = _landsat(f"PANT_{date}", "toa", f"2019-08-{date[-2:]}", elevation, [ms])
    return found | {
        f"{name}_{sensor}": {
            "id": f"{name}_{sensor}",
            "sensor": sensor,
            "level": level,
            "spacecraft": "LANDSAT_8" if sensor == "landsat" else "SENTINEL_2B",
            "files": [file(pairs / folder / f"{tif}.tif", ["red", "green", "blue"], scale, nodata=None)],
        }
        for name, folder, level, scale in (
            ("oli2msi", "oli2msi_china_20190923", "toa", 1.0),
            ("l8s2ps", "l8s2ps_scene1_shandong", "uncalibrated", 1 / 255),
        )
        for sensor, tif in (("landsat", "landsat8"), ("sentinel", "sentinel2"))
    }


def manifest(data: pathlib.Path, folder: pathlib.Path, *names: str) -> pathlib.Path:
    """Writes a manifest of some of the scenes into a folder; a pair when its two scenes are named."""
    declared = [scenes(data)[name] for name in names]
    sensors = [scene["sensor"] for scene in declared]
    pairs = {"pairs": [[scene["id"] for scene in declared]]} if sensors == ["landsat", "sentinel"] else {}
    path = folder / "manifest.json"
    path.write_text(json.dumps({"version": 1, "scenes": declared, **pairs}))
    return path
