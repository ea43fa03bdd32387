"""What a job wrote into a bucket, to this machine.

    python -m beam_jobs.fetch gs://BUCKET/RUN/examples RUN/examples

The folder gets its name when all of it is there; one that has the name is replaced then, if it is what a job wrote. A
fetch that was broken off begins anew.
"""

import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from absl import flags
from tqdm import tqdm

from beam_jobs.folder import AT_ONCE, Folder
from harmonize_tf import command
from harmonize_tf.errors import FlagError

FLAGS = flags.FlagValues()
OF_JOBS = "dataset_info.json", "statistics.pbtxt", "_outcomes"  # of an export, of statistics, of scenes
CHUNK = 8 << 20  # bytes in memory, of each file that is under way


def main(argv: Sequence[str] | None = None) -> None:
    """Fetches a folder.

    Raises:
      HarmonizeError: there is nothing, or it cannot be read or written.
    """
    given = command.parse(FLAGS, argv)
    if len(given) != 2 or "://" in given[1]:
        raise FlagError(
            f"expected a bucket's folder and one of this machine, `harmonize fetch FROM TO`. Received: {given}"
        )
    source, target = Folder(given[0]), Folder(given[1])
    path = pathlib.Path(target.url)
    _check_replaceable(path)
    sizes = source.sizes()
    if not sizes:
        raise FlagError(f"there are no files; give the --out of the job that wrote them. Received: {source}")
    aside = Folder(path.with_name(f".{path.name}.fetching"))
    shutil.rmtree(aside.url, ignore_errors=True)  # of a fetch that was broken off: maybe another job's files
    with ThreadPoolExecutor(AT_ONCE) as pool:
        fetched = pool.map(lambda name: aside.write(name, _chunks(source, name, sizes[name])), sizes)
        for _ in tqdm(fetched, total=len(sizes), unit="file", desc="fetch", disable=None):
            pass
    aside.tidy()
    target.take_over(aside, "")
    print(f"{target}: {len(sizes)} files, {sum(sizes.values()) / 1e6:.0f} MB")


def _check_replaceable(path: pathlib.Path) -> None:
    """Refuses a place that holds anything but what a job or a fetch has written."""
    try:
        there = {child.name for child in path.iterdir()} if os.path.lexists(path) else set()
    except OSError as error:
        raise FlagError(f"expected a folder to write or replace ({error}). Received: {path}") from error
    if there and there.isdisjoint(OF_JOBS):
        raise FlagError(
            "the folder holds other files than a job's, which would be lost; name a new one, such as "
            f"{path / 'examples'}. Received: {path}"
        )


def _chunks(source: Folder, name: str, size: int) -> Iterator[bytes]:
    for start in range(0, size, CHUNK):
        yield source.read_range(name, start, min(start + CHUNK, size))


if __name__ == "__main__":
    command.run(main)
