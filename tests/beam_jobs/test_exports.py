"""An export's folder, with shards of patches whose pixels nobody reads."""

import collections
import json
import pathlib

import pytest
from export_settings import change

from beam_jobs import exports, plan, settings, shards, tally
from beam_jobs.folder import Folder
from beam_jobs.shards import Harvest
from harmonize_tf.errors import FlagError
from harmonize_tf.sources.simulated import SimulatedSource

WANTED = change(split=(0.5, 0.25, 0.25), shard_examples=4, request_side=2)
IDENTITY = settings.identity(WANTED)
PLANNED = plan.make(SimulatedSource(size=15_360), WANTED)
TOTAL = len(list(PLANNED.patches))
ABOUT = {"level": "toa", "bands": ["blue", "green", "red", "nir"]}


@pytest.fixture
def out(tmp_path):
    return Folder(tmp_path / "examples")


def begun(folder):
    return exports.begin(folder, IDENTITY, ABOUT, PLANNED, "--a=b\n")


def find(folder, *, overwrite=False, identity=IDENTITY):
    return exports.find(folder, identity, overwrite=overwrite)


def make(folder, export, *, dead=None, reject=None, number=None):
    """Writes shards as a job would, with empty records; some squares, by their number, are dead or rejected."""
    squares = list(PLANNED.squares)
    dead, reject = dead or {}, reject or {}
    for task, shard in list(zip(export.tasks, PLANNED.shards, strict=True))[:number]:
        harvest = Harvest(requests=[tally.merged([])])
        for square in shard:
            place = squares.index(square)
            if place in dead:
                harvest.dead.append(square.plain() | {"kind": dead[place], "error": f"error {place}\nwith a trace"})
                continue
            for patch in square.patches:
                if place in reject:
                    harvest.rejected.append({"id": patch.id, "reason": reject[place]})
                else:
                    harvest.encoded.append((patch.split, patch.id, b"record"))
                    harvest.sums["count", patch.split] += 1
        shards.write(folder, task.shard, export.splits, harvest)


def finish(folder, export, max_dead=0.01):
    return exports.finish(folder, export, IDENTITY, shards.manifests(folder, export.tasks), max_dead)


def count(*numbers):
    """Patches of squares by their number."""
    squares = list(PLANNED.squares)
    return sum(len(squares[number].patches) for number in numbers)


def paths(folder):
    return sorted(pathlib.Path(str(folder)).parent.iterdir())


def test_an_export_that_was_begun_is_found_again_as_it_was(out):
    assert find(out) is None
    export = begun(out)
    assert set(out.sizes()) == {"job.json", "plan.jsonl", "flags.txt"}
    assert find(out) == export == find(out, overwrite=True)
    assert export.patches == TOTAL == 64
    assert export.splits == ("train", "val", "test")
    assert export.about["level"] == "toa" and out.read("flags.txt") == b"--a=b\n"
    assert out.read("plan.jsonl") == PLANNED.written()[0]


def test_splits_without_a_patch_are_no_part_of_it(out):
    planned = plan.make(SimulatedSource(), change(split=(0.5, 0.5, 0)))
    assert exports.begin(out, IDENTITY, ABOUT, planned, "").splits == ("train", "val")


@pytest.mark.parametrize(
    ("other", "told"),
    [
        (settings.identity(change(split=(0.5, 0.25, 0.25), shard_examples=4, request_side=2, seed=9)),
         "(seed=0 there, 9 now)"),
        (settings.identity(change(split=(0.5, 0.25, 0.25), shard_examples=5, request_side=2, pan=False)),
         "(pan=None there, False now; shard_examples=4 there, 5 now)"),
        (settings.identity(change(shard_examples=4, request_side=2)), "(split=0.5,0.25,0.25 there, 1,0,0 now)"),
        (IDENTITY | {"package_version": "9.9"}, "made by version {version}, now 9.9"),
    ],
)  # fmt: skip
def test_another_export_is_refused_with_the_difference_and_gives_way_to_overwrite(out, other, told):
    begun(out)
    with pytest.raises(FlagError) as raised:
        find(out, identity=other)
    assert told.format(version=IDENTITY["package_version"]) in str(raised.value)
    assert "use --overwrite, or another folder. Received: out=" in str(raised.value)
    assert find(out, identity=other, overwrite=True) is None


def test_scenes_that_changed_since_are_named(out, tmp_path):
    (tmp_path / "scenes.json").write_text("{}")
    wanted = change(scenes=(str(tmp_path / "scenes.json"),))
    exports.begin(out, settings.identity(wanted), ABOUT, PLANNED, "")
    (tmp_path / "scenes.json").write_text('{"seed": 1}')
    with pytest.raises(FlagError, match="what .*scenes.json holds has changed"):
        find(out, identity=settings.identity(wanted))


@pytest.mark.parametrize("content", [b'{"patches": []}\n', b"", None])
def test_a_plan_that_was_changed_is_refused_and_gives_way_to_overwrite(out, content):
    begun(out)
    out.delete(["plan.jsonl"])
    if content is not None:
        out.write("plan.jsonl", content)
    with pytest.raises(FlagError, match=r"the plan was changed.*--overwrite, or another folder.*plan.jsonl"):
        find(out)
    assert find(out, overwrite=True) is None


def test_a_job_file_that_was_cut_off_is_told(out):
    begun(out)
    out.write("job.json", out.read("job.json")[:40])
    with pytest.raises(FlagError, match="is damaged.*delete it or choose another --out. Received: .*job.json"):
        find(out)


def test_an_export_of_an_older_version_is_told(out):
    out.write("dataset_info.json", b"{}")
    out.write("train/00000-of-00001.tfrecord.gz", b"")
    assert exports.workplace(out, overwrite=False) is out
    with pytest.raises(FlagError, match="an export of an older version; use --overwrite"):
        find(out)


def test_beginning_anew_leaves_nothing_of_what_was_there(out):
    make(out, begun(out), dead={1: "transient"})
    out.write("rejected.jsonl", b"")
    other = plan.make(SimulatedSource(), change(split=(1, 0, 0)))
    exports.begin(out, settings.identity(change()), ABOUT, other, "")
    assert set(out.sizes()) == {"job.json", "plan.jsonl", "flags.txt"}
    assert out.read("plan.jsonl") == other.written()[0]


def test_a_job_that_is_killed_while_it_begins_begins_again(out, monkeypatch):
    write = Folder.write

    def killed(self, name, content):
        if name == "job.json":
            raise KeyboardInterrupt
        write(self, name, content)

    monkeypatch.setattr(Folder, "write", killed)
    with pytest.raises(KeyboardInterrupt):
        begun(out)
    monkeypatch.undo()
    assert exports.workplace(out, overwrite=False) is out and find(out) is None


def test_a_job_that_is_killed_while_it_clears_the_folder_does_not_take_the_rest_for_an_export(out, monkeypatch):
    make(out, begun(out))
    delete = Folder.delete

    def killed(self, names):
        names = list(names)
        delete(self, names[:1])
        if len(names) > 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Folder, "delete", killed)
    with pytest.raises(KeyboardInterrupt):
        begun(out)
    monkeypatch.undo()
    assert find(out) is None


@pytest.mark.parametrize("name", ["notes.txt", "train/notes.txt", "train/deep/a.tfrecord.gz", "training/flags.txt"])
def test_what_is_not_an_export_is_never_written_into(out, name):
    out.write(name, b"mine")
    for overwrite in (False, True):
        with pytest.raises(FlagError, match=f"choose another --out. Received: out=.*, with .*{name}"):
            exports.workplace(out, overwrite=overwrite)
    assert set(out.sizes()) == {name}


def test_a_file_is_not_an_export_either(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(FlagError, match="choose another --out"):
        exports.workplace(Folder(tmp_path / "notes.txt"), overwrite=False)


def test_a_finished_export_is_overwritten_from_beside_it_and_an_unfinished_one_where_it_is(out):
    assert exports.workplace(out, overwrite=True) is out
    export = begun(out)
    assert exports.workplace(out, overwrite=True) is out
    make(out, export)
    finish(out, export)
    assert exports.workplace(out, overwrite=False) is out
    assert str(exports.workplace(out, overwrite=True)) == f"{out}.new"


def test_somebody_elses_folder_beside_the_export_is_never_written_into(out):
    export = begun(out)
    make(out, export)
    finish(out, export)
    beside = Folder(f"{out}.new")
    beside.write("notes.txt", b"mine")
    with pytest.raises(FlagError, match=r"Received: out=.*examples.new, with notes.txt"):
        exports.workplace(out, overwrite=True)
    assert beside.read("notes.txt") == b"mine"


def test_shards_that_are_there_are_not_made_again(out):
    export = begun(out)
    assert exports.unfinished(export, {}, False) == list(export.tasks)
    make(out, export, dead={0: "transient", len(PLANNED.shards[0]): "permanent"})
    made = shards.manifests(out, export.tasks)
    assert exports.unfinished(export, made, False) == [export.tasks[0]]
    assert exports.unfinished(export, made, True) == list(export.tasks[:2])
    del made[export.tasks[2].shard]
    assert exports.unfinished(export, made, False) == [export.tasks[0], export.tasks[2]]


def test_what_is_finished_says_what_it_is_made_of(out):
    export = begun(out)
    make(out, export, reject={1: "shift", 2: "valid"})
    info = finish(out, export)
    assert json.loads(out.read("dataset_info.json")) == info
    splits = collections.Counter(patch.split for patch in PLANNED.patches)
    assert info["rejected"] == {"shift": count(1), "valid": count(2)}
    assert sum(info["counts"].values()) == splits.total() - count(1, 2)
    assert info["dead"] == {"transient": 0, "permanent": 0}
    assert info["flags"] == json.loads(json.dumps(IDENTITY["flags"])) and info["level"] == "toa"
    assert info["schema"] == 1 and info["patch_m"] == 1920 and info["package_version"]
    lines = [json.loads(line)["id"] for line in out.read("rejected.jsonl").splitlines()]
    assert len(lines) == len(set(lines)) == count(1, 2) and out.read("dead.jsonl") == b""


def test_the_information_comes_last(out, monkeypatch):
    export = begun(out)
    make(out, export)
    order, write = [], Folder.write
    monkeypatch.setattr(Folder, "write", lambda self, name, content: (order.append(name), write(self, name, content)))
    finish(out, export)
    assert order == ["rejected.jsonl", "dead.jsonl", "dataset_info.json"]


def test_the_same_shards_in_whatever_order_finish_alike(out):
    export = begun(out)
    make(out, export, reject={1: "shift"}, dead={2: "permanent"})
    made = shards.manifests(out, export.tasks)
    written = set()
    for order in (made, dict(reversed(made.items()))):
        exports.finish(out, export, IDENTITY, order, 1.0)
        written.add(b"".join(out.read(n) for n in ("dataset_info.json", "rejected.jsonl", "dead.jsonl")))
    assert len(written) == 1


def test_shards_that_are_missing_are_told(out):
    export = begun(out)
    make(out, export, number=2)
    total = len(export.tasks)
    with pytest.raises(FlagError, match=f"{total - 2} of {total} shards are not there yet; run the same command again"):
        finish(out, export)
    assert not out.exists("dataset_info.json")


def test_too_many_dead_patches_are_told_with_their_number_the_remedies_and_the_first_error(out):
    export = begun(out)
    make(out, export, dead={0: "transient", 1: "permanent"})
    lost = count(0, 1)
    with pytest.raises(FlagError) as raised:
        finish(out, export)
    told = str(raised.value)
    for part in (
        f"{lost} of {TOTAL} patches could not be fetched, as dead.jsonl lists",
        f"run the same command again for the {count(0)} that failed for passing reasons",
        f"mend what is wrong with {count(1)} and add --retry_dead",
        "do without them by --max_dead_fraction. The first one: error",
        "Received: max_dead_fraction=0.01, out=",
    ):
        assert part in told
    assert "\n" not in told
    assert not out.exists("dataset_info.json")
    letters = [json.loads(line) for line in out.read("dead.jsonl").splitlines()]
    assert sorted(line["kind"] for line in letters) == ["permanent", "transient"]
    assert sum(len(line["patches"]) for line in letters) == lost


@pytest.mark.parametrize(("kind", "absent"), [("transient", "--retry_dead"), ("permanent", "run the same command")])
def test_only_remedies_that_help_are_told(out, kind, absent):
    export = begun(out)
    make(out, export, dead={0: kind})
    with pytest.raises(FlagError) as raised:
        finish(out, export)
    assert absent not in str(raised.value)
    assert ", or do without them by --max_dead_fraction" in str(raised.value)


def test_as_many_may_be_dead_as_was_said_and_no_more(out):
    export = begun(out)
    make(out, export, dead={0: "permanent"})
    share = count(0) / TOTAL
    with pytest.raises(FlagError, match="could not be fetched"):
        finish(out, export, share - 1e-9)
    assert finish(out, export, share)["dead"] == {"transient": 0, "permanent": count(0)}


def test_a_split_of_which_nothing_is_left_is_told_with_the_reasons(out):
    export = begun(out)
    everything = range(len(list(PLANNED.squares)))
    make(out, export, reject=dict.fromkeys(everything, "shift"))
    with pytest.raises(FlagError, match=f"no patch fell into train and val and test.*{TOTAL} by shift: .*--max_shift"):
        finish(out, export)
    assert not out.exists("dataset_info.json")
    assert len(out.read("rejected.jsonl").splitlines()) == TOTAL
    assert set(shards.manifests(out, export.tasks)) == {task.shard for task in export.tasks}


def test_finishing_tidies_up(out):
    export = begun(out)
    make(out, export)
    out.write("_staging/left", b"half")
    finish(out, export)
    assert [path.name for path in paths(out)] == ["examples"]
    assert not (pathlib.Path(str(out)) / "_staging").exists()
