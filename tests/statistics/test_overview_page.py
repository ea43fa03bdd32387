"""The overview as a browser would take it: whole, valid, and without anything from elsewhere."""

import base64
import html.parser
import io
import re
import xml.etree.ElementTree as ElementTree

import ground_pairs
import numpy as np
import pytest
from PIL import Image

from harmonize_tf.statistics import figures, overview, places
from harmonize_tf.statistics.anomalies import Anomaly
from harmonize_tf.statistics.distribution import CODES, Distribution
from harmonize_tf.statistics.places import Block
from harmonize_tf.statistics.totals import Thumbnail

ABOUT = {"data": "/runs/<one>/examples", "package_version": "0", "level": "toa", "bands": ["blue"], "nir": "B8",
         "source": "random", "plan_sha256": "0" * 64, "baseline": None, "schema_file": None}  # fmt: skip
WRONG = [Anomaly("dead band", "all", "sentinel/red", "sentinel/red is <constant>.")]


def page(anomalies=(), by_split=None):
    by_split = by_split or ground_pairs.splits(3, 2, 1)
    groups, found, totals = ground_pairs.described(by_split)
    return overview.page(ABOUT, groups, places.blocks(found), totals.thumbnails, anomalies)


@pytest.fixture(scope="module")
def clean():
    return page()


class Tags(html.parser.HTMLParser):
    """Every opened tag with its attributes, and those that are left open."""

    def __init__(self, text):
        super().__init__()
        self.found, self.open = [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def test_the_page_needs_nothing_but_itself(clean):
    tags = Tags(clean)
    assert not tags.open
    assert not {tag for tag, _ in tags.found} & {"script", "link", "iframe", "object"}
    for _, attributes in tags.found:
        assert attributes.get("src", "data:").startswith("data:") and "href" not in attributes
    assert not re.search(r"url\(|@import|https?://", clean)


def test_it_is_made_for_phones_dark_rooms_and_paper(clean):
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in clean
    assert "@media (prefers-color-scheme: dark)" in clean and "@media print" in clean
    tables = re.findall(r"<table>", clean)
    assert tables and clean.count('<div class="scroll"><table>') == len(tables)


def test_names_and_sentences_are_escaped():
    text = page(WRONG)
    assert "sentinel/red is &lt;constant&gt;." in text and "/runs/&lt;one&gt;/examples" in text
    assert "1 anomaly" in text and "No anomalies" not in text


def test_every_picture_is_whole(clean):
    drawings = re.findall(r"<svg.*?</svg>", clean, re.DOTALL)
    assert len(drawings) > 10
    for drawing in drawings:
        ElementTree.fromstring(drawing)
    images = re.findall(r'src="data:image/png;base64,([^"]+)"', clean)
    assert len(images) == 2 * 6  # both sides of every patch
    assert {Image.open(io.BytesIO(base64.b64decode(image))).mode for image in images} == {"RGBA"}


def test_hls_stands_beside_what_was_fitted(clean):
    rows = re.findall(r"<tr><td>(\w+)</td><td>LANDSAT_8</td>.*?<td>([^<]*)</td></tr>", clean)
    assert rows[0] == ("blue", "0.9778, -0.0040, for sr")
    assert rows[3] == ("nir", "0.9983, -0.0001 (of B8A), for sr")


def test_a_page_of_one_sensor_can_be_made():
    import dataclasses

    by_split = ground_pairs.changed(ground_pairs.splits(2, 0, 0), lambda r: dataclasses.replace(r, sentinel=None))
    assert "Landsat against Sentinel-2" not in page(by_split={"train": by_split["train"]})


def test_a_histogram_is_as_high_as_its_values_are_frequent():
    values = Distribution(CODES, np.bincount([2000] * 30 + [2100] * 10 + [2200] * 20))
    heights = [float(y) for y in re.findall(r"V([\d.]+)", figures.histogram({"landsat": values}, "t"))]
    bottom, top = max(heights), min(heights)
    drawn = sorted({round((bottom - y) / (bottom - top), 2) for y in heights})
    assert drawn == [0, 0.33, 0.67, 1]


def test_the_map_shows_each_block_where_it_lies_and_frames_leaks():
    blocks = [Block("EPSG:32633", 5, 7, (4, 0, 0)), Block("EPSG:32633", 6, 6, (0, 2, 1))]
    ((crs, count, drawing),) = figures.maps(blocks)
    rectangles = [one.attrib for one in ElementTree.fromstring(drawing)]
    assert (crs, count) == ("EPSG:32633", 2)
    assert [(one["class"], one["x"], one["y"]) for one in rectangles] == [
        ("train", "0.05", "0.05"),
        ("val leak", "1.05", "1.05"),
    ]


def test_a_large_map_stays_small():
    blocks = [Block("EPSG:32633", column, row, (1, 0, 0)) for column in range(200) for row in range(100)]
    ((_, count, drawing),) = figures.maps(blocks)
    assert count == 20_000 and drawing.count("<rect") <= figures.MAP_SIDE**2


def test_a_thumbnail_is_transparent_where_there_is_no_data():
    codes = np.full((4, 4, 3), 2000, np.uint16)
    codes[0] = 0
    stretch = figures.Stretch(np.float32([0, 0, 0]), np.float32([0.5, 0.5, 0.5]))
    url = figures.picture(Thumbnail("train", "x", {"landsat": codes}), "landsat", stretch)
    pixels = np.array(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))))
    assert (pixels[0, :, 3] == 0).all() and (pixels[1:, :, 3] == 255).all()
    assert (pixels[1:, :, :3] == round(0.1 / 0.5 * 255)).all()
    assert figures.picture(Thumbnail("train", "x", {}), "landsat", stretch) is None
