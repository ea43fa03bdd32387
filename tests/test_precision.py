import pathlib

import pytest
import tensorflow as tf

from harmonize_tf import precision


@pytest.mark.parametrize(
    "flags, expected",
    [
        ("fpu avx512f avx512_bf16 sse", "bfloat16"),
        ("fpu amx_tile amx_bf16", "bfloat16"),
        ("fpu avx2 avx512f avx512_bf16x", "float32"),
    ],
)
def test_auto_takes_bfloat16_where_the_cpu_multiplies_it(tmp_path, monkeypatch, flags, expected):
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nmodel name\t: avx512_bf16\nflags\t\t: {flags}\nbugs\t: none\n")
    monkeypatch.setattr(precision, "CPUINFO", tmp_path / "cpuinfo")
    found, reason = precision.fastest()
    assert found == expected and "CPU" in reason
    monkeypatch.setattr(precision, "CPUINFO", pathlib.Path("/nowhere"))
    assert precision.fastest()[0] == "float32"


@pytest.mark.parametrize("capability, expected", [((8, 0), "bfloat16"), ((9, 0), "bfloat16"), ((7, 5), "float32")])
def test_auto_takes_bfloat16_where_every_gpu_multiplies_it(monkeypatch, capability, expected):
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["a", "b"])
    details = {"a": {"compute_capability": (9, 0)}, "b": {"compute_capability": capability}}
    monkeypatch.setattr(tf.config.experimental, "get_device_details", details.get)
    assert precision.fastest()[0] == expected
