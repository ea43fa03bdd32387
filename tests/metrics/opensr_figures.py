"""Prints what opensr-test says of triplets, as JSON: run by the test of parity, in an interpreter that has the package.

    python tests/metrics/opensr_figures.py INPUTS.npz

INPUTS holds lr_NAME [band, h, w], sr_NAME and hr_NAME [band, 3h, 3w] for each triplet. `pip install opensr-test==1.3.3`
brings torch along, gigabytes of it. Of satalign phase correlation alone is used: where torchvision is lacking, or does
not fit torch, its matching of key points is left out.
"""

import importlib.metadata
import json
import logging
import sys
import types

import numpy as np
import torch

BORDER = 15  # 16 as by default is no multiple of 3: 5 cells and 16 pixels were cut, and the images no longer fit

try:
    import torchvision  # noqa: F401
except Exception:  # RuntimeError where it does not fit torch
    sys.modules["satalign.lgm"] = types.SimpleNamespace(LGM=None)

import opensr_test  # noqa: E402


def main() -> None:
    logging.disable()
    arrays = np.load(sys.argv[1])
    found = {"version": importlib.metadata.version("opensr_test"), "torch": torch.__version__}
    for name in sorted(key.removeprefix("lr_") for key in arrays if key.startswith("lr_")):
        lr, sr, hr = (torch.from_numpy(arrays[f"{kind}_{name}"]).double() for kind in ("lr", "sr", "hr"))
        found[name] = opensr_test.Metrics(border_mask=BORDER).compute(lr=lr, sr=sr, hr=hr)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
