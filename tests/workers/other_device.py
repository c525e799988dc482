"""Run a script on a device that is not the CPU, though it is made of host memory (`other_device.cpp`).

    other_device.py FOLDER SCRIPT [arguments of the script ...]

The device's library is compiled into FOLDER where it is not there yet.
"""

import os
import runpy
import subprocess
import sys
from pathlib import Path

import torch
from torch.utils import backend_registration
from torch.utils.cpp_extension import include_paths, library_paths

SOURCE = Path(__file__).with_suffix(".cpp")


def library(folder: Path) -> Path:
    compiled = folder / "other_device.so"
    if not compiled.exists():
        includes = [word for path in include_paths() for word in ("-isystem", path)]
        libraries = [f"-L{path}" for path in library_paths()]
        options = ["-std=c++20", "-shared", "-fPIC", "-w", *includes]
        subprocess.run(
            ["c++", *options, str(SOURCE), "-o", str(compiled), *libraries, "-ltorch_cpu", "-lc10"], check=True
        )
    return compiled


class OtherDevice(backend_registration._DummyBackendModule):
    """What torch and accelerate ask `torch.other` for."""

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]


def main() -> None:
    backend_registration._setup_privateuseone_for_python_backend("other", backend_module=OtherDevice())
    torch.ops.load_library(library(Path(sys.argv[1])))
    os.environ.pop("ACCELERATE_USE_CPU", None)
    os.environ["ACCELERATE_TORCH_DEVICE"] = "other"
    import transformers.training_args

    transformers.training_args.is_torch_bf16_gpu_available = lambda: True
    del sys.argv[:2]
    sys.path[0] = str(Path(sys.argv[0]).parent)
    runpy.run_path(sys.argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
