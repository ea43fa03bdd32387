r"""Statistics, schema, anomalies and an overview of an export.

    harmonize statistics --data=runs/one/examples --out=runs/one/statistics
    harmonize statistics --data=runs/two/examples --out=runs/two/statistics --baseline=runs/one/statistics
    python -m beam_jobs.compute_statistics --data=gs://BUCKET/RUN/examples --out=gs://BUCKET/RUN/statistics \
      --runner=DataflowRunner --project=PROJECT --region=europe-west1 --temp_location=gs://BUCKET/tmp \
      --max_num_workers=10 --setup_file=./setup.py

Exit status 0: the export is as it should be. 3: all was done, and anomalies.json lists what is not. 2: a flag or an
input is wrong, and nothing was written. Flags that are not listed here go to Beam. docs/statistics.md tells more.
"""

import functools
import io
import json
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import apache_beam as beam
from absl import flags
from apache_beam.options.pipeline_options import PipelineOptions

import harmonize_tf
from beam_jobs import exports, options, progress
from beam_jobs.folder import STAGING, Folder, StorageError
from harmonize_tf import artifacts, command, patches, records
from harmonize_tf.errors import DatasetError, FlagError, RecordError
from harmonize_tf.statistics import anomalies, comparison, overview, places, protos, schema
from harmonize_tf.statistics.anomalies import Anomaly
from harmonize_tf.statistics.groups import ALL, Group, groups
from harmonize_tf.statistics.measure import measure
from harmonize_tf.statistics.places import Counts, Place
from harmonize_tf.statistics.totals import Totals

FLAGS = flags.FlagValues()
_DATA = flags.DEFINE_string("data", None, "Folder of a finished export, such as RUN/examples.", flag_values=FLAGS)
_OUT = flags.DEFINE_string("out", None, "Folder to write, RUN/statistics; what it has is replaced.", flag_values=FLAGS)
_SCHEMA = flags.DEFINE_string("schema", None, "A schema.pbtxt to hold the records against.", flag_values=FLAGS)
_BASELINE = flags.DEFINE_string(
    "baseline", None, "An earlier export's statistics to compare with, such as RUN0/statistics.", flag_values=FLAGS
)

STATISTICS, SCHEMA, OVERVIEW, ANOMALIES = "statistics.pbtxt", "schema.pbtxt", "overview.html", "anomalies.json"
TOTALS = f"{STAGING}/totals.json.gz"  # from the workers to whoever started the job
ANOMALOUS = 3  # exit status

_log = logging.getLogger("harmonize")


def main(argv: Sequence[str] | None = None) -> None:
    """Computes statistics.

    Raises:
      FlagError: a flag is wrong, or nothing can be written.
      DatasetError: there is no finished export, no schema or no statistics where they should be.
      RecordError: a file of records is damaged.
      SystemExit: with status 3, where anomalies were found.
    """
    rest = command.parse(FLAGS, argv, known_only=True)
    beam_options = options.pipeline_options(rest, os.cpu_count() or 1, FLAGS)
    data, out = _folders(beam_options)
    info, shards = _export(data)
    against = _against()
    out.check_writable()
    _add_up(data, out, shards, sum(info["counts"].values()), beam_options)
    totals, found = _added_up(out)
    if not totals.sums:
        raise DatasetError(f"expected records, and the files hold none; run `harmonize export` again. Received: {data}")
    figures = groups(totals, places.numbers(found))
    wrong = [*anomalies.find(figures, places.leaks(found), info), *_compared(figures, against)]
    about = _about(data, info)
    out.delete([ANOMALIES])  # written last: a folder without it is not finished
    out.write("flags.txt", options.as_text(FLAGS, rest).encode())
    out.write(STATISTICS, protos.to_text(protos.statistics(figures)))
    out.write(SCHEMA, protos.to_text(schema.infer(figures[ALL])))
    page = overview.page(about, figures, places.blocks(found), totals.thumbnails, wrong)
    out.write(OVERVIEW, page.encode())
    out.write(ANOMALIES, artifacts.to_json(about | {"anomalies": [vars(one) for one in wrong]}).encode())
    out.tidy()
    for one in wrong:
        _log.warning("%s: %s", one.kind, one.sentence)
    _log.info("%s: %s", out, _told(figures, wrong))
    if wrong:
        raise SystemExit(ANOMALOUS)


def add_to(pipeline: beam.Pipeline, data: Folder, out: Folder, shards: Sequence[tuple[str, str]]) -> None:
    """Adds the whole job to a pipeline."""
    measured = (
        pipeline
        | "Shards" >> beam.Create(shards)
        | "Reshuffle" >> beam.Reshuffle()
        | "Measure" >> beam.ParDo(Measure(data)).with_outputs("places", main="totals")
    )
    found = (
        measured.places
        | "AddUpPlaces" >> beam.CombinePerKey(AddUp(dict, places.add))
        | "BlocksAndLeaks" >> beam.FlatMapTuple(_told_places)
    )
    (
        measured.totals
        | "AddUp" >> beam.CombineGlobally(AddUp(Totals, Totals.merge))
        | "Write" >> beam.Map(_write_totals, beam.pvalue.AsIter(found), out)
    )


class Measure(beam.DoFn):
    """A shard's name and split to its `Totals`, and to its places by `places.bucket` (output "places")."""

    def __init__(self, data: Folder) -> None:
        self._data = data

    def process(self, shard: tuple[str, str]) -> Iterator[Any]:
        """Reads one file, which it holds in memory; what is wrong with it goes into the totals."""
        split, name = shard
        totals, found = Totals(), defaultdict[int, dict[Place, Counts]](dict)
        try:
            for number, serialized in enumerate(_records(self._data, name), 1):
                record = records.decode(serialized)
                measure(record, split, totals)
                for place in places.of(record):
                    places.add(found[places.bucket(place)], {place: places.counts(split)})
                if number % 16 == 0:
                    progress.advance(16)
            progress.advance(int(totals.sums.get(("records", split), [0])[0]) % 16)
        except (RecordError, StorageError, FileNotFoundError) as error:
            totals = Totals()
            totals.unreadable[name] = str(error)
        yield totals
        for bucket, some in found.items():
            yield beam.pvalue.TaggedOutput("places", (bucket, some))


class AddUp(beam.CombineFn):
    """Everything to its sum.

    Args:
      nothing: makes a sum of nothing.
      add: adds to its first argument what is in the second.
    """

    def __init__(self, nothing: Callable[[], Any], add: Callable[[Any, Any], None]) -> None:
        self._nothing, self._add = nothing, add

    def create_accumulator(self) -> Any:
        """Nothing yet."""
        return self._nothing()

    def add_input(self, accumulator: Any, element: Any) -> Any:
        """Adds one."""
        self._add(accumulator, element)
        return accumulator

    def merge_accumulators(self, accumulators: Iterable[Any]) -> Any:
        """Adds several."""
        return functools.reduce(self.add_input, accumulators, self._nothing())

    def extract_output(self, accumulator: Any) -> Any:
        """The sum."""
        return accumulator


def _records(folder: Folder, name: str) -> Iterator[bytes]:
    """Serialized records of a file.

    Raises:
      RecordError: it is damaged; the message names it.
    """
    try:
        yield from records.read_shard(io.BytesIO(folder.read(name)))
    except RecordError as error:
        raise RecordError(f"{str(error).rpartition(' Received:')[0]} Received: {folder}/{name}") from error


def _told_places(_: int, found: dict[Place, Counts]) -> Iterator[tuple[Place, Counts]]:
    """Those of a bucket that are told of."""
    return (item for item in found.items() if places.is_told(*item))


def _write_totals(totals: Totals, found: Iterable[tuple[Place, Counts]], out: Folder) -> None:
    """Hands over what was added up."""
    out.write(TOTALS, totals.to_bytes())
    out.write(f"{TOTALS}.places", json.dumps(sorted(found)).encode())


def _add_up(
    data: Folder, out: Folder, shards: Sequence[tuple[str, str]], expected: int, beam_options: PipelineOptions
) -> None:
    """Runs the pipeline."""
    try:
        with progress.show("statistics", max(expected, 1), "patches"), options.pipeline(beam_options) as pipeline:
            add_to(pipeline, data, out, shards)
    except RuntimeError as error:  # Beam has logged where, and what it was
        raise FlagError(
            f"the job ended early ({str(error).splitlines()[-1]}); mend that and run the same command again. "
            f"Received: data={data}"
        ) from error


def _added_up(out: Folder) -> tuple[Totals, dict[Place, Counts]]:
    """What the workers have handed over."""
    totals = Totals.from_bytes(out.read(TOTALS))
    found = {tuple(place): tuple(counts) for place, counts in json.loads(out.read(f"{TOTALS}.places"))}
    out.tidy()
    if totals.unreadable:
        name = min(totals.unreadable)
        more = f" ({len(totals.unreadable)} files cannot be read)" if len(totals.unreadable) > 1 else ""
        raise RecordError(totals.unreadable[name] + more)
    return totals, found


def _folders(beam_options: PipelineOptions) -> tuple[Folder, Folder]:
    """Of the export and of its statistics."""
    options.check_given(_DATA, _OUT)
    if _SCHEMA.value and _BASELINE.value:
        raise FlagError(
            "give --schema or --baseline, one of them; run the command twice for both. "
            f"Received: schema={_SCHEMA.value}, baseline={_BASELINE.value}"
        )
    data, out = Folder(_DATA.value), Folder(_OUT.value)
    if f"{out}/".startswith(f"{data}/"):
        raise FlagError(f"an export's folder holds nothing else; give another --out beside it. Received: out={out}")
    if _BASELINE.value and Folder(_BASELINE.value).url == out.url:
        raise FlagError(f"the baseline would be overwritten; give another --out. Received: out={out}")
    for flag in (_DATA, _OUT):
        options.check_reachable(flag.name, flag.value, beam_options)
    return data, out


def _export(data: Folder) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """What dataset_info.json says, and the split and name of every file of records."""
    if not data.exists(exports.INFO):
        raise DatasetError(
            f"expected the folder of a finished `harmonize export`, with {exports.INFO} in it. Received: data={data}"
        )
    try:
        info = json.loads(data.read(exports.INFO))
        known = {name: info[name] for name in ("schema", "level", "bands", "counts", "source", "plan_sha256", "nir")}
        known["counts"] = {split: int(count) for split, count in known["counts"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(
            f"expected the JSON that `harmonize export` writes, run it again ({error!r}). "
            f"Received: {data}/{exports.INFO}"
        ) from error
    if known["schema"] != records.SCHEMA:
        raise DatasetError(
            f"expected records of schema {records.SCHEMA}; export them again with this version of harmonize_tf. "
            f"Received: schema={known['schema']} in {data}/{exports.INFO}"
        )
    files = [(split, name) for split in patches.SPLITS for name in data.sizes(split) if name.endswith(".tfrecord.gz")]
    if not files:
        raise DatasetError(f"expected *.tfrecord.gz in train, val or test; export again. Received: data={data}")
    return known, files


def _against() -> bytes | comparison.Earlier | None:
    """What the records are held against, read before anything is computed."""
    path = _SCHEMA.value or (_BASELINE.value and f"{_BASELINE.value.rstrip('/')}/{STATISTICS}")
    if not path:
        return None
    parent, _, name = path.rpartition("/")
    try:
        content = Folder(parent or ".").read(name)
    except (FileNotFoundError, IsADirectoryError, StorageError, ValueError) as error:
        flag = "schema" if _SCHEMA.value else "baseline"
        raise DatasetError(
            f"there is no such file; run `harmonize statistics` for what it should come from. Received: {flag}={path}"
        ) from error
    return content if _SCHEMA.value else protos.earlier(content, path)


def _compared(figures: Mapping[str, Group], against: bytes | comparison.Earlier | None) -> list[Anomaly]:
    """What is wrong in comparison: split with split, and with what the flags name."""
    found = list(comparison.skew(figures))
    if isinstance(against, bytes):
        found += schema.violations(figures[ALL], against, _SCHEMA.value)
    elif against is not None:
        found += comparison.drift(figures[ALL], against)
    return found


def _about(data: Folder, info: Mapping[str, Any]) -> dict[str, Any]:
    """What made the statistics."""
    names = ("level", "bands", "nir", "source", "plan_sha256", "counts")
    against = {"schema_file": _SCHEMA.value, "baseline": _BASELINE.value}
    return {"data": str(data), "package_version": harmonize_tf.__version__, **{n: info[n] for n in names}, **against}


def _told(figures: Mapping[str, Group], wrong: Sequence[Anomaly]) -> str:
    counted = ", ".join(f"{group.patches} {name}" for name, group in figures.items() if name != ALL)
    return f"{counted}; " + (f"{len(wrong)} anomalies, see {ANOMALIES} and {OVERVIEW}" if wrong else "no anomalies")


if __name__ == "__main__":
    command.run(main)
