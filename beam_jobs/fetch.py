"""What a job wrote into a bucket, to this machine.

    python -m beam_jobs.fetch gs://BUCKET/RUN/examples RUN/examples

The folder gets its name when all of it is there; one that has the name is replaced then. A fetch that was broken off
begins anew.
"""

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
    sizes = source.sizes()
    if not sizes:
        raise FlagError(f"there are no files; give the --out of the job that wrote them. Received: {source}")
    path = pathlib.Path(target.url)
    aside = Folder(path.with_name(f".{path.name}.fetching"))
    shutil.rmtree(aside.url, ignore_errors=True)  # of a fetch that was broken off: maybe another job's files
    with ThreadPoolExecutor(AT_ONCE) as pool:
        fetched = pool.map(lambda name: aside.write(name, _chunks(source, name, sizes[name])), sizes)
        for _ in tqdm(fetched, total=len(sizes), unit="file", desc="fetch", disable=None):
            pass
    aside.tidy()
    target.take_over(aside, "")
    print(f"{target}: {len(sizes)} files, {sum(sizes.values()) / 1e6:.0f} MB")


def _chunks(source: Folder, name: str, size: int) -> Iterator[bytes]:
    for start in range(0, size, CHUNK):
        yield source.read_range(name, start, min(start + CHUNK, size))


if __name__ == "__main__":
    command.run(main)
