import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import prediction_log_pb2

from harmonize_tf import artifacts, blessing, degradation, radiometry, records, tiling
from harmonize_tf.errors import FlagError, ModelError
from harmonize_tf.manifest import FILE as MANIFEST_FILE
from serving import export, signatures, tensors, verify
from serving.local import LocalPredictor
from serving.servable import WARMUP_FILE, RequestError, Servable, warmup_logs


@pytest.fixture(scope="module")
def servable(exported):
    return Servable(exported.version)


def record_of(ms, pan, level="sr", bands=("blue", "green", "red", "nir")):
    capture = records.Capture(
        ms=ms, valid=np.ones(ms.shape[:2], np.uint8), scene_id="", product="", spacecraft="LANDSAT_8", pan=pan
    )
    return records.encode(
        records.Record("a", "test", "", "", level, bands, "EPSG:32633", (10.0, 0, 0, 0, -10.0, 0), capture, None)
    )


def forward(harmonizer):
    """Codes to codes by the trainer's own forward pass, written without serving's code.

    Of dynamic size, as served: with static shapes TensorFlow fuses and orders float32 operations in another way, and
    1 code in 10,000 then differs by 1.
    """
    specs = [tf.TensorSpec([None, None, None, bands], tf.uint16) for bands in (4, 1)]

    @tf.function(input_signature=specs)
    def run(ms, pan):
        valid = tf.reduce_all(ms != 0, axis=-1, keepdims=True)
        inputs = {
            "landsat_ms": radiometry.decode(ms),
            "landsat_valid": tf.cast(valid, tf.float32),
            "landsat_pan": radiometry.decode(pan),
            "landsat_pan_valid": tf.cast(pan != 0, tf.float32),
        }
        reflectance = harmonizer(inputs, training=False)
        return radiometry.encode(reflectance, tf.repeat(tf.repeat(valid, 3, axis=1), 3, axis=2))

    return run


SIZES = [(12, 10), (64, 64), (9, 23)]


@pytest.mark.parametrize(("h", "w"), SIZES)
def test_the_signatures_agree_bit_for_bit_with_the_forward_pass(exported, servable, windows, h, w):
    ms, pan = windows(n=2, h=h, w=w)
    direct = forward(exported.harmonizer)(ms, pan).numpy()
    served = servable.predict({"landsat_ms": ms, "landsat_pan": pan})["sentinel_ms"]
    np.testing.assert_array_equal(served, direct)
    examples = np.array([record_of(*pair) for pair in zip(ms, pan, strict=True)], object)
    from_records = servable.predict({"examples": examples}, "tf_example")["sentinel_ms"]
    np.testing.assert_array_equal(from_records, direct)
    assert len(np.unique(direct)) > 100


@pytest.mark.parametrize(("h", "w"), SIZES)
def test_reflectance_in_and_out_means_the_same_as_codes(servable, windows, h, w):
    codes = dict(zip(("landsat_ms", "landsat_pan"), windows(n=2, h=h, w=w), strict=True))
    served = servable.predict(codes)["sentinel_ms"]
    floats = {k: np.where(x == 0, np.float32("nan"), radiometry.decode(x)) for k, x in codes.items()}
    reflectance = servable.predict(floats, "reflectance")["sentinel_ms"]
    np.testing.assert_array_equal(np.isnan(reflectance), served == 0)
    known = served != 0
    within = np.clip(reflectance, 1e-4 - 0.1, 65535e-4 - 0.1)  # what there are codes for
    np.testing.assert_allclose(within[known], radiometry.decode(served)[known], atol=0.5e-4 + 1e-6)


def test_the_codes_degraded_are_the_measurement_where_they_are_not_clipped(exported, local, windows):
    """The guarantee of consistency outlives rounding to codes, half of 1e-4 reflectance.

    Values outside what there are codes for, -0.1 to 6.45, are clipped, which voids it there: none are here.
    """
    ms, pan = windows(h=40, w=36)
    ms = np.where(ms == 0, ms, 2000 + ms // 5)
    out = local.predict(ms, pan)["sentinel_ms"][0]
    valid = (ms[0] != 0).all(-1)
    fine = valid.repeat(3, 0).repeat(3, 1)
    assert 1 < out[fine].min() and out[fine].max() < 65535
    low, _ = degradation.degrade(radiometry.decode(out), fine, local.manifest.sigma)
    measured = local.manifest.bandpass.apply(radiometry.decode(ms[0]))
    np.testing.assert_allclose(low[valid], measured[valid], atol=1e-3)
    free = exported.harmonizer.__class__.from_config(exported.harmonizer.get_config() | {"consistency": "none"})
    free.set_weights(exported.harmonizer.get_weights())
    low, _ = degradation.degrade(radiometry.decode(forward(free)(ms, pan).numpy()[0]), fine, local.manifest.sigma)
    assert np.abs(low - measured)[valid].max() > 1e-2


def test_quality_tells_where_the_codes_degraded_are_the_measurement(local, servable, windows):
    """Where values are clipped they are not: the one thing that breaks the guarantee."""
    ms, pan = windows(h=40, w=36)
    ms = np.where(ms == 0, ms, 2000 + ms // 5)
    ms[:, 20:, 18:] = np.random.default_rng(3).integers(1, 400, (1, 20, 18, 4))  # darker than there are codes for
    answer = local.predict(ms, pan)
    valid = (ms[0] != 0).all(-1)
    fine = valid.repeat(3, 0).repeat(3, 1)
    low, _ = degradation.degrade(radiometry.decode(answer["sentinel_ms"][0]), fine, local.manifest.sigma)
    error = np.abs(low - local.manifest.bandpass.apply(radiometry.decode(ms[0]))).max(-1)
    assert error[valid].max() > 1.1e-3  # some are clipped, or the test shows nothing
    sure = np.abs(error - 1e-3) > 1e-6
    expected = np.where(valid, 1 + 2 * (error <= 1e-3), 0).repeat(3, 0).repeat(3, 1)
    bits = answer["quality"][0, ..., 0]
    where = sure.repeat(3, 0).repeat(3, 1)
    np.testing.assert_array_equal(bits[where], expected[where])
    assert set(np.unique(bits)) == {0, 1, 3}
    floats = {k: np.where(x == 0, np.float32("nan"), radiometry.decode(x)) for k, x in _named(ms, pan).items()}
    unclipped = servable.predict(floats, "reflectance")["quality"][0, ..., 0]
    np.testing.assert_array_equal(unclipped, np.where(fine, 3, 0))


def _named(ms, pan):
    return {"landsat_ms": ms, "landsat_pan": pan}


def test_a_model_without_consistency_says_so_in_its_quality(make_harmonizer, windows):
    free = make_harmonizer(consistency="none")
    functions = signatures.build(free, export.describe(free, "free", {}))
    bits = functions["serving_default"](*map(tf.constant, windows(nodata=False)))["quality"].numpy()
    assert (bits & 1).all() and (bits & 2 == 0).mean() > 0.5


def test_no_data_marks_its_own_pixels_and_no_others(servable, windows):
    ms, pan = windows(nodata=False)
    ms[0, 4, 6, 2] = 0
    pan[0, 20, 3] = 0  # a gap in the panchromatic band is none in the product
    out = servable.predict({"landsat_ms": ms, "landsat_pan": pan})["sentinel_ms"]
    missing = np.zeros((36, 30), bool)
    missing[12:15, 18:21] = True
    np.testing.assert_array_equal((out[0] == 0).all(-1), missing)
    np.testing.assert_array_equal((out[0] == 0).any(-1), missing)


def test_data_never_becomes_no_data_however_dark(servable):
    ms, pan = np.ones((1, 6, 6, 4), np.uint16), np.ones((1, 12, 12, 1), np.uint16)
    assert servable.predict({"landsat_ms": ms, "landsat_pan": pan})["sentinel_ms"].min() >= 1


def test_the_manifest_travels_in_the_files_and_as_a_signature(exported, servable):
    manifest = LocalPredictor(exported.directory).manifest
    assert manifest.name == "subpixel"
    assert manifest.bands == exported.harmonizer.bands and manifest.bandpass == exported.harmonizer.bandpass
    assert (manifest.consistency, manifest.nir) == ("exact", "B8")
    answer = servable.predict({"query": np.zeros(3, np.uint8)}, "manifest")["manifest"]
    assert [row.tobytes().decode() for row in answer] == [manifest.to_json()] * 3


def test_records_of_other_bands_or_level_are_refused(servable, windows):
    ms, pan = windows()
    for changes, text in (({"level": "toa"}, "level sr"), ({"bands": ("nir", "red", "green", "blue")}, "bands blue")):
        examples = np.array([record_of(ms[0], pan[0], **changes)], object)
        with pytest.raises(RequestError, match=f"expected records of {text}"):
            servable.predict({"examples": examples}, "tf_example")
    with pytest.raises(RequestError):
        servable.predict({"examples": np.array([b"junk"], object)}, "tf_example")


@pytest.mark.parametrize("shape", [(1, 24, 19, 1), (1, 12, 10, 1), (2, 24, 20, 1)])
def test_a_panchromatic_band_of_another_size_is_refused_by_the_graph(servable, windows, shape):
    with pytest.raises(RequestError, match="landsat_pan must be"):
        servable.predict({"landsat_ms": windows()[0], "landsat_pan": np.ones(shape, np.uint16)})


def test_empty_batches_and_windows_are_answered(servable):
    for n, h, w in ((0, 6, 6), (1, 0, 6)):
        inputs = {
            "landsat_ms": np.ones((n, h, w, 4), np.uint16),
            "landsat_pan": np.ones((n, 2 * h, 2 * w, 1), np.uint16),
        }
        try:
            assert servable.predict_unchecked(inputs, "serving_default")["sentinel_ms"].shape == (n, 3 * h, 3 * w, 4)
        except RequestError:
            pass  # an error is fine, ending the process is not


def test_the_warm_up_file_has_one_request_a_signature(exported, servable):
    logs = list(warmup_logs(exported.version))
    assert [log.request.model_spec.signature_name for log in logs] == sorted(servable.signatures, key=order)
    assert logs[0].request.inputs["landsat_ms"].tensor_shape.dim[1].size == 16


def order(name):
    return ["serving_default", "reflectance", "tf_example", "manifest"].index(name)


def test_no_output_is_a_string_and_every_one_has_an_answer_recorded(in_bfloat16):
    """Strings in `tensor_content` end in an error in TensorFlow's own clients."""
    served = Servable(in_bfloat16).signatures
    for log in warmup_logs(in_bfloat16):
        outputs = served[log.request.model_spec.signature_name].outputs
        assert all(tf.as_dtype(info.dtype) != tf.string for info in outputs.values())
        assert outputs.keys() == log.response.outputs.keys()


def test_versions_rise_even_within_a_second_and_beyond_the_clock(make_harmonizer, tmp_path, monkeypatch):
    monkeypatch.setattr(export, "_verify", lambda path: None)
    harmonizer = make_harmonizer(uses_pan=False)
    (tmp_path / "m" / "4000000000").mkdir(parents=True)
    paths = [export.export_harmonizer(harmonizer, tmp_path / "m", warmup_size=6) for _ in range(2)]
    assert [path.name for path in paths] == ["4000000001", "4000000002"]
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["4000000000", "4000000001", "4000000002"]


def test_a_failed_verification_leaves_nothing_behind(make_harmonizer, tmp_path, monkeypatch):
    def fail(path):
        assert path.is_dir() and not path.name.isdecimal()
        raise ModelError("no")

    monkeypatch.setattr(export, "_verify", fail)
    with pytest.raises(ModelError):
        export.export_harmonizer(make_harmonizer(uses_pan=False), tmp_path / "serving" / "m", warmup_size=6)
    assert list(tmp_path.iterdir()) == []


def rewritten(version, path, change):
    """A copy of a version whose warm-up records are changed."""
    shutil.copytree(version, path)
    logs = list(warmup_logs(version))
    change(logs)
    with tf.io.TFRecordWriter(str(path / WARMUP_FILE)) as writer:
        for log in logs:
            writer.write(prediction_log_pb2.PredictionLog(predict_log=log).SerializeToString())
    return path


def add(difference):
    """Changes one code of the answer that a version's file records."""

    def change(logs):
        codes = tensors.decode(logs[0].response.outputs["sentinel_ms"]).copy()
        codes[0, -1, -1, 0] += np.uint16(difference)
        logs[0].response.outputs["sentinel_ms"].tensor_content = codes.tobytes()

    return change


def test_verification_finds_answers_that_differ_by_more_than_rounding(exported, tmp_path):
    verify.verify(rewritten(exported.version, tmp_path / "1", add(1)))
    with pytest.raises(ModelError, match="answers differently.*serving_default.sentinel_ms"):
        verify.verify(rewritten(exported.version, tmp_path / "2", add(2)))


def rename_first(logs):
    logs[0].request.model_spec.signature_name = "nope"


def test_verification_wants_a_record_for_each_signature_and_undamaged_variables(exported, tmp_path):
    with pytest.raises(ModelError, match="none for manifest"):
        verify.verify(rewritten(exported.version, tmp_path / "1", lambda logs: logs.pop()))
    failing = rewritten(exported.version, tmp_path / "3", rename_first)
    with pytest.raises(ModelError, match='cannot be loaded .Serving signature key "nope" not found'):
        verify.verify(failing)
    path = shutil.copytree(exported.version, tmp_path / "2")
    (path / "variables" / "variables.data-00000-of-00001").write_bytes(b"short")
    with pytest.raises(ModelError, match=f"cannot be loaded.*{path}"):
        verify.verify(path)


def test_verification_asks_a_server_and_wants_that_version_of_it(exported, server, tmp_path, capsys):
    asked = [f"--target={server.address}", "--model_name=subpixel"]
    verify.main([str(exported.directory), *asked])
    assert f"{exported.version}: answers as it should" in capsys.readouterr().out
    other = shutil.copytree(exported.version, tmp_path / "1")
    with pytest.raises(ModelError, match=f"serve version 1 .*Received: version={exported.version.name}"):
        verify.main([str(other), *asked])
    wrong = rewritten(exported.version, tmp_path / exported.version.name, add(2))
    with pytest.raises(ModelError, match="answers differently"):
        verify.main([str(wrong), *asked])


def test_verification_takes_the_exported_version(exported):
    verify.main([str(exported.version)])


def unguarded(path, guard, manifest):
    """A SavedModel that starts with a convolution, with or without a check of the rank before it."""
    kernel = tf.Variable(tf.ones([3, 3, 4, 4]))

    @tf.function(input_signature=[tf.TensorSpec([None, None, None, 4], tf.float32, "x")])
    def run(x):
        x = tf.ensure_shape(x, [None, None, None, 4]) if guard else x
        return {"y": tf.nn.conv2d(x, kernel, 1, "SAME")}

    module = tf.Module()
    module.kernel = kernel
    tf.saved_model.save(module, str(path), {"serving_default": run})
    (path / "assets.extra").mkdir()
    shutil.copy(manifest, path / MANIFEST_FILE)
    x = np.ones((1, 8, 8, 4), np.float32)
    record = export._warmup_record("m", "serving_default", {"x": x}, {"y": run(tf.constant(x))["y"].numpy()})
    with tf.io.TFRecordWriter(str(path / "assets.extra" / "tf_serving_warmup_requests")) as writer:
        writer.write(record)


def test_verification_survives_only_models_that_check_the_rank(exported, tmp_path):
    unguarded(tmp_path / "guarded", True, exported.version / MANIFEST_FILE)
    verify.verify(tmp_path / "guarded")
    unguarded(tmp_path / "unguarded", False, exported.version / MANIFEST_FILE)
    with pytest.raises(ModelError, match="fails its verification"):
        export._verify(tmp_path / "unguarded")


def test_a_model_that_needs_a_compiler_is_not_exported(make_harmonizer, tmp_path, monkeypatch):
    """In this process XLA is there and the model answers; a stock tensorflow_model_server refuses each request."""
    model = make_harmonizer(uses_pan=False)
    plain = type(model).call
    monkeypatch.setattr(type(model), "call", tf.function(plain, jit_compile=True, autograph=False))
    # In this process, as the one that verifies would import the model; nothing of it is in the SavedModel.
    monkeypatch.setattr(export, "_verify", verify.verify)
    with pytest.raises(ModelError, match="jit_compile=True.*XLA compilation disabled.*Received: \\w"):
        export.export_harmonizer(model, tmp_path / "m", warmup_size=6)
    assert not (tmp_path / "m").exists()


def test_a_model_trained_in_fewer_bits_is_served_in_float32_unless_told(
    make_harmonizer, tmp_path, windows, monkeypatch
):
    """`model.export` of such a model would answer in float16."""
    monkeypatch.setattr(export, "_verify", lambda path: None)
    path = export.export_harmonizer(make_harmonizer(dtype="mixed_float16"), tmp_path / "m", warmup_size=6)
    predictor = LocalPredictor(path)
    assert predictor.manifest.precision == "float32"
    ms, pan = windows()
    np.testing.assert_array_equal(
        predictor.predict(ms, pan)["sentinel_ms"], forward(make_harmonizer())(ms, pan).numpy()
    )


@pytest.fixture(scope="module")
def in_bfloat16(make_harmonizer, tmp_path_factory):
    directory = tmp_path_factory.mktemp("serving") / "m"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(export, "_verify", verify.verify)  # sooner than in a process of its own
        return export.export_harmonizer(make_harmonizer(uncertainty=True), directory, precision="bfloat16")


def test_in_bfloat16_the_network_alone_computes_in_it_and_the_manifest_says_so(in_bfloat16, make_harmonizer, windows):
    predictor = LocalPredictor(in_bfloat16)
    assert predictor.manifest.precision == "bfloat16"
    signatures_there = Servable(in_bfloat16).signatures
    for name in ("serving_default", "reflectance", "tf_example"):
        types = {alias: tf.as_dtype(info.dtype) for alias, info in signatures_there[name].outputs.items()}
        numbers = tf.float32 if name == "reflectance" else tf.uint16
        assert types == {"sentinel_ms": numbers, "uncertainty": numbers, "quality": tf.uint8}
    ms, pan = windows(h=40, w=36)
    ms = np.where(ms == 0, ms, 2000 + ms // 5)
    codes = predictor.predict(ms, pan)
    exact = forward(make_harmonizer(uncertainty=True))(ms, pan).numpy()
    apart = np.abs(codes["sentinel_ms"].astype(int) - exact)
    assert 0 < apart.max() < 30 and apart.mean() < 2
    # Radiometry and consistency are float32 ones: what 8 bits would do to them is more than the tolerance.
    np.testing.assert_array_equal(codes["quality"][0, ..., 0], 3 * (ms[0] != 0).all(-1).repeat(3, 0).repeat(3, 1))


# A convolution may sum in another order for an image of another size. Where bfloat16 then rounds to the other side, it
# grows to 2 codes: in 1 value of 1500 of trained models of the kind "resnet", T33UUU.
@pytest.mark.parametrize(
    ("generator", "precision", "codes"),
    [("subpixel", "float32", 1), ("subpixel", "bfloat16", 1), ("resnet", "float32", 1), ("resnet", "bfloat16", 2)],
)
def test_windows_with_a_halo_equal_the_whole_in_every_precision(make_harmonizer, generator, precision, codes):
    model = make_harmonizer(generator=generator, filters=16).in_precision(precision)
    run = signatures.build(model, export.describe(model, "m", {}))["serving_default"]
    draw = np.random.default_rng(4)
    rows, columns = 76, 92
    ms = draw.integers(2000, 3000, (1, rows, columns, 4), np.uint16)
    ms[:, 30:33, 20:60] = 0
    pan = draw.integers(2000, 3000, (1, 2 * rows, 2 * columns, 1), np.uint16)
    whole = run(ms, pan)["sentinel_ms"].numpy()[0].astype(int)
    most = 0
    for window in tiling.windows((rows, columns), 40, model.halo, model.multiple):
        answer = run(_padded(ms, window, 1), _padded(pan, window, 2))["sentinel_ms"].numpy()[0]
        most = max(most, np.abs(answer[window.cut(3)] - whole[window.core.slices(3)]).max())
    assert most <= codes


def _padded(image, window, factor):
    """The padded window of [1, h, w, B], no data outside."""
    box, bands = window.padded, image.shape[-1]
    out = np.zeros((1, box.rows * factor, box.columns * factor, bands), image.dtype)
    top, left = box.row * factor, box.column * factor
    inside = image[0, max(top, 0) : top + out.shape[1], max(left, 0) : left + out.shape[2]]
    out[0, max(-top, 0) :, max(-left, 0) :][: inside.shape[0], : inside.shape[1]] = inside
    return out


def test_bfloat16_is_told_where_the_hardware_has_none_of_it(in_bfloat16, monkeypatch, caplog):
    monkeypatch.setattr("serving.local.fastest", lambda: ("float32", "the CPU has no such instructions"))
    LocalPredictor(in_bfloat16)
    assert "computes in bfloat16, which is slow here: the CPU has no such instructions" in caplog.text


def test_push_in_auto_takes_what_is_fastest_here(make_harmonizer, tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(export, "export_harmonizer", lambda *_, precision, **__: taken.append(precision))
    monkeypatch.setattr(export, "fastest", lambda: ("bfloat16", "a test"))
    make_harmonizer(uses_pan=False).save(tmp_path / "model.keras")
    push = [f"--model={tmp_path / 'model.keras'}", f"--serving_dir={tmp_path / 'm'}", "--allow_unblessed"]
    for flags in (["--precision=auto"], [], ["--precision=bfloat16"]):
        export.main([*push, *flags])
    assert taken == ["bfloat16", "float32", "bfloat16"]


def test_only_harmonizers_with_known_bands_in_order_are_exported(make_harmonizer, tmp_path):
    with pytest.raises(ModelError, match="only a Harmonizer.*Sequential"):
        export.export_harmonizer(keras.Sequential(), tmp_path / "m")
    with pytest.raises(ModelError, match="bands=red,green,blue,nir"):
        export.export_harmonizer(make_harmonizer(bands=("red", "green", "blue", "nir")), tmp_path / "m")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize("changes", [{"level": "toa"}, {"uses_pan": False}, {"consistency": "none"}, {"nir": "B8A"}])
def test_a_version_with_other_input_does_not_follow_in_the_same_folder(exported, make_harmonizer, changes):
    (field,) = changes
    with pytest.raises(ModelError, match=f"{field} is .* Received: {field}={changes[field]}.*folder of its own"):
        export.export_harmonizer(make_harmonizer(**changes), exported.directory)
    assert len(list(exported.directory.iterdir())) == 1


def bless(folder, model, blessed=True):
    """What an evaluation leaves that judged a model."""
    rule = blessing.Rule("rmse_all is 0.9 of the bandpass baseline's, at most 1 wanted", blessed)
    verdict = blessing.Verdict("subpixel", str(model), artifacts.sha256(model), blessed, (rule,), {})
    folder.mkdir()
    decided = blessing.Blessing("0" * 64, "test", (verdict,), None, "thresholds.toml")
    artifacts.write(folder / blessing.FILE, artifacts.to_json(decided.to_dict()))
    return folder / blessing.FILE


def test_push_refuses_a_model_that_is_not_blessed_unless_told(make_harmonizer, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(export, "_verify", lambda path: None)
    model, out = tmp_path / "training" / "model.keras", tmp_path / "serving"
    model.parent.mkdir()
    make_harmonizer(uses_pan=False).save(model)
    push = [f"--model={model}", f"--serving_dir={out}", "--warmup_size=6"]
    with pytest.raises(ModelError, match="evaluation/blessing.json is not there.*--allow_unblessed. Received: model="):
        export.main(push)
    elsewhere = bless(tmp_path / "evaluation", model, blessed=False).rename(tmp_path / "other.json")
    with pytest.raises(ModelError, match="other.json says: rmse_all is 0.9 of the bandpass baseline's"):
        export.main([*push, f"--blessing={elsewhere}"])
    assert not out.exists()
    export.main([*push, "--allow_unblessed"])
    assert "pushed though it is not blessed" in caplog.text
    assert LocalPredictor(out).manifest.provenance["blessed"].startswith("no: ")


def test_a_blessing_is_of_one_file_and_no_other(make_harmonizer, tmp_path):
    model = tmp_path / "training" / "model.keras"
    model.parent.mkdir()
    make_harmonizer(uses_pan=False).save(model)
    bless(tmp_path / "evaluation", model)
    make_harmonizer(uses_pan=False, filters=5).save(model)  # trained again, into the same place
    with pytest.raises(ModelError, match="blessing.json judges other files"):
        export.main([f"--model={model}", f"--serving_dir={tmp_path / 'serving'}"])


def test_push_exports_a_trained_model_with_its_flags(make_harmonizer, tmp_path, capsys, windows):
    harmonizer = make_harmonizer(uses_pan=False, scale=2)
    model = tmp_path / "training" / "model.keras"
    model.parent.mkdir()
    harmonizer.save(model)
    (model.parent / "flags.txt").write_text("--model=subpixel\n")
    bless(tmp_path / "evaluation", model)
    export.main([f"--model={model}", f"--serving_dir={tmp_path / 'x2'}", "--warmup_size=6"])
    predictor = LocalPredictor(tmp_path / "x2")
    assert str(predictor.path) in capsys.readouterr().out
    assert predictor.manifest.provenance["flags"] == "--model=subpixel\n"
    assert predictor.manifest.provenance["blessed"].endswith("every rule is kept")
    assert predictor.manifest.multiple == 2 and predictor.version.isdecimal()
    ms, _ = windows()
    np.testing.assert_array_equal(
        predictor.predict(ms)["sentinel_ms"], LocalPredictor(predictor.path).predict(ms)["sentinel_ms"]
    )


def test_push_tells_what_is_wrong_with_its_flags(tmp_path):
    with pytest.raises(FlagError, match="serving_dir=None"):
        export.main(["--model=x"])
    (tmp_path / "model.keras").write_bytes(b"no model")
    for path in (tmp_path / "model.keras", tmp_path / "missing.keras"):
        with pytest.raises(ModelError, match=f"model={path}"):
            export.main([f"--model={path}", f"--serving_dir={tmp_path / 's'}"])
    assert not (tmp_path / "s").exists()


def test_push_tells_where_nothing_can_be_written(make_harmonizer, tmp_path):
    make_harmonizer(uses_pan=False).save(tmp_path / "model.keras")
    (tmp_path / "file").write_text("kept")
    flags = "--warmup_size=6", "--allow_unblessed"
    for place in (tmp_path / "file", tmp_path / "file" / "m", "/proc/zz"):
        with pytest.raises(FlagError, match=f"cannot be written there.*serving_dir={place}\\. Give a folder") as raised:
            export.main([f"--model={tmp_path / 'model.keras'}", f"--serving_dir={place}", *flags])
        assert len(str(raised.value).splitlines()) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["file", "model.keras"]
    assert (tmp_path / "file").read_text() == "kept"


def test_a_folder_without_a_model_is_told(tmp_path):
    with pytest.raises(ModelError, match="harmonize push"):
        LocalPredictor(tmp_path)
    (tmp_path / "saved_model.pb").write_bytes(b"")
    with pytest.raises(ModelError, match="harmonize.json"):
        LocalPredictor(tmp_path)


def test_the_local_predictor_refuses_windows_of_other_bands(exported, windows):
    ms, pan = windows()
    with pytest.raises(ModelError, match="bands blue"):
        LocalPredictor(exported.version).predict(ms[..., :3], pan)


def test_sample_inputs_are_the_same_on_each_call(exported):
    manifest = LocalPredictor(exported.directory).manifest
    first, second = (signatures.sample_inputs(manifest, 8) for _ in range(2))
    for name in first:
        for alias in first[name]:
            np.testing.assert_array_equal(first[name][alias], second[name][alias])


def test_a_model_whose_pixels_depend_on_the_whole_image_is_not_served(make_harmonizer, tmp_path):
    with pytest.raises(ModelError, match="no window of a scene would equal the whole. Received: norm=instance"):
        export.export_harmonizer(make_harmonizer(generator="resnet", norm="instance"), tmp_path / "m", provenance={})
    assert not (tmp_path / "m").exists()


def test_a_model_that_tells_its_uncertainty_serves_it(make_harmonizer, tmp_path, windows):
    model = make_harmonizer(uncertainty=True)
    model.spread.head.bias.assign([-3.0, -2.0, -2.0, -1.0])
    export.export_harmonizer(model, tmp_path / "model", provenance={}, warmup_size=16)
    predictor = LocalPredictor(tmp_path / "model")
    ms, pan = windows(1, 12, 16)
    answer = predictor.predict(ms, pan)
    told = answer["uncertainty"]
    assert predictor.manifest.product_bands[4:] == tuple(f"{b}_uncertainty" for b in predictor.manifest.bands)
    assert told.shape == (1, 36, 48, 4) and told.dtype == np.uint16
    np.testing.assert_array_equal(told == 0, answer["sentinel_ms"] == 0)
    valid = np.all(ms != 0, -1, keepdims=True)
    inputs = {"landsat_ms": radiometry.decode(ms), "landsat_valid": valid.astype(np.float32)}
    inputs |= {"landsat_pan": radiometry.decode(pan), "landsat_pan_valid": (pan != 0).astype(np.float32)}
    _, sigma = model.judged({name: tf.constant(x) for name, x in inputs.items()})
    there = told > 0
    np.testing.assert_allclose(radiometry.decode(told)[there], sigma.numpy()[there], atol=0.6e-4)
