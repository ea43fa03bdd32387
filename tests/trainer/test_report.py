"""The page that an evaluation leaves, read as a browser would."""

import html.parser
import re

import numpy as np
import pytest
import tiny_examples

from harmonize_tf.models.baselines import BASELINES
from trainer import evaluate, panels, report
from trainer.measure import Patch


class Page(html.parser.HTMLParser):
    """Tags that are open, sources of images, texts of tables."""

    VOID = {"meta", "img", "br"}

    def __init__(self, text):
        super().__init__()
        self.open, self.sources, self.tables, self.cell = [], [], {}, None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in self.VOID:
            self.open.append(tag)
        for name in ("src", "href", "xlink:href"):
            if name in attributes:
                self.sources.append(attributes[name])
        if tag == "table":
            self.tables[attributes["aria-label"]] = []
        if tag == "tr":
            list(self.tables.values())[-1].append([])
        if tag in ("td", "th"):
            list(self.tables.values())[-1][-1].append({"class": attributes.get("class", ""), "text": ""})

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "table" in self.open and ("td" in self.open or "th" in self.open):
            list(self.tables.values())[-1][-1][-1]["text"] += data.strip() + " "


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")

    def change(record):
        if record.id == "patch2":
            record.sentinel.valid[:20] = 0
        return record

    tiny_examples.write(run / "<i>examples", train=1, val=1, test=4, change=change)
    evaluate.main([f"--data={run / '<i>examples'}", f"--out={run / 'evaluation'}", "--batch=2"])
    text = (run / "evaluation" / report.FILE).read_text()
    return run / "evaluation", text, Page(text)


def test_the_page_is_whole_and_needs_nothing_else(page):
    _, text, parsed = page
    assert parsed.open == []
    assert all(source.startswith(("data:image/", "#")) for source in parsed.sources), parsed.sources
    assert not re.search(r"<(script|link|iframe)|@import|url\((?!#)", text)
    assert "prefers-color-scheme: dark" in text and "@media print" in text and 'name="viewport"' in text


def test_every_baseline_is_in_the_first_table_with_intervals_and_the_best_marked(page):
    rows = page[2].tables["Every model and every baseline"]
    assert [row[0]["text"].strip() for row in rows[1:]] == list(BASELINES)
    rmse = [row[1] for row in rows[1:]]
    assert all(re.fullmatch(r"[\d.]+ [\d.]+ to [\d.]+ ", cell["text"]) for cell in rmse)
    values = [float(cell["text"].split()[0]) for cell in rmse]
    assert [cell["class"] == "best" for cell in rmse] == [value == min(values) for value in values]
    against = page[2].tables["Against the baselines"]
    assert against[1][1]["text"].strip() == "–" and against[2][1]["text"].startswith("-")


def test_tables_of_bands_and_strata_are_there(page):
    tables = page[2].tables
    header = [cell["text"].split()[0] for cell in tables["RMSE by band"][0][1:]]
    assert header == list(tiny_examples.BANDS)
    assert [row[0]["text"].strip() for row in tables["Not counted"][1:]] == ["clear", "to 50 %"]
    assert "Between the passes" not in tables  # nothing is known of it
    assert "Ground" in tables and "Spacecraft" in tables


def test_patches_are_shown_in_both_colours_with_errors_and_hallucinations(page):
    _, text, parsed = page
    pictures = [source for source in parsed.sources if source.startswith("data:image/webp")]
    # Landsat, bandpass, pansharpen and Sentinel-2 in two colours, two errors, two maps of detail, three patches.
    assert len(pictures) == 3 * (4 * 2 + 2 + 2)
    for title in ("Best: RMSE", "Median: RMSE", "Worst: RMSE"):
        assert title in text
    assert 'alt="Colour infrared: Sentinel-2"' in text and 'alt="Detail: pansharpen"' in text


def test_charts_take_the_colour_of_the_page_and_lie_beside_it_as_files(page):
    folder, text, _ = page
    assert text.count("<svg ") == 3 and "currentColor" in text and "#010203" not in text
    files = sorted(path.name for path in (folder / "figures").iterdir())
    assert files == ["scatter_bandpass.svg", "scatter_pansharpen.svg", "spectra.svg"]


def test_data_flags_and_version_are_told(page):
    _, text, _ = page
    assert "split test" in text and "0" * 64 in text and "--split=test" in text


def test_paths_and_names_are_no_markup(page):
    assert "<i>" not in page[1] and "&lt;i&gt;examples" in page[1]


def test_of_few_patches_each_is_shown_once_and_cloudy_ones_only_if_there_is_no_other():
    clear = [Patch(n, str(n), 1.0, rmse) for n, rmse in enumerate((0.3, 0.1, 0.2, np.nan))]
    assert {title: patch.number for title, patch in panels.chosen(clear).items()} == {
        "best": 1,
        "median": 2,
        "worst": 0,
    }
    assert list(panels.chosen(clear[:1])) == ["median"] and panels.chosen([]) == {}
    cloudy = Patch(9, "9", 0.1, 0.9)
    assert cloudy not in panels.chosen([*clear, cloudy]).values()
    assert list(panels.chosen([cloudy]).values()) == [cloudy]


def test_a_figure_that_is_not_known_is_a_dash_and_wins_nothing():
    column = report.Column("PSNR", "psnr", "dB", "more", digits=2)
    assert np.isnan(column.value({"psnr": None})) and np.isnan(column.value({}))
    assert report._cell(column, float("nan"), None, False) == report.Cell("–")
    assert report._best(column, [float("nan"), 40.004, 40.001, 39.0]) == [40.004, 40.001]


def test_the_first_sentence_says_on_which_side_of_the_baseline_a_model_is(page):
    entry = {"rmse_all": 0.01, "correctness": {"improvement": 0.5, "omission": 0.3, "hallucination": 0.2}}
    worse = {"bandpass": {"rmse_ratio": 1.031, "interval": [1.024, 1.038]}}
    text = report._summary("m", {"models": {"m": entry | {"against": worse}}})
    assert (
        "RMSE 100.0 x 1e-4 reflectance, +3.1 % against the band-pass baseline's (95 % interval +2.4 to +3.8 %)" in text
    )
    alone = report._summary("m", {"models": {"m": entry | {"against": {"bandpass": {"rmse_ratio": 0.9}}}}})
    assert "-10.0 % against the band-pass baseline's. Of its detail 50 % is right, 30 % left out" in alone
    assert "pansharpen: RMSE" in page[1]
