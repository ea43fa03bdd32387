"""What numbers a network computes with. Weights, losses, base and consistency are float32 always."""

import pathlib
import re

import tensorflow as tf

PRECISIONS = ("float32", "bfloat16", "float16")
CPUINFO = pathlib.Path("/proc/cpuinfo")
CPU_FLAGS = ("amx_bf16", "avx512_bf16")  # instructions for products of bfloat16, as Linux names them
GPU_CAPABILITY = (8, 0)  # from Ampere on, CUDA's GPUs compute with bfloat16


def fastest() -> tuple[str, str]:
    """The fastest precision that this machine's hardware computes with and that needs no loss scaling, and why."""
    if gpus := tf.config.list_physical_devices("GPU"):
        details = [tf.config.experimental.get_device_details(gpu) for gpu in gpus]
        if all(d.get("compute_capability", (0, 0)) >= GPU_CAPABILITY for d in details):
            return "bfloat16", f"{len(gpus)} GPUs of compute capability {GPU_CAPABILITY[0]}.{GPU_CAPABILITY[1]} or more"
        return "float32", f"a GPU of compute capability below {GPU_CAPABILITY[0]}.{GPU_CAPABILITY[1]}"
    flags = re.search(r"^flags\s*:(.*)$", CPUINFO.read_text(), re.MULTILINE) if CPUINFO.is_file() else None
    found = [flag for flag in CPU_FLAGS if flags and flag in flags[1].split()]
    return ("bfloat16", f"the CPU has {found[0]}") if found else ("float32", f"the CPU has no {' or '.join(CPU_FLAGS)}")


def policy(precision: str) -> str:
    """Keras's name for a precision of a network: it computes in that type, its weights are float32."""
    return precision if precision == "float32" else f"mixed_{precision}"
