"""What this machine and environment are, and whether our packages are the ones that Python finds.

The names of the six rooms are common words: a package of the same name that stands earlier on the path would be
imported in our place and fail far from the cause. The check therefore imports none of them.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

ROOMS = ("benchmarks", "configs", "corpora", "distill", "students", "teachers")
HOUSE = Path(__file__).resolve().parent.parent
PACKAGES = (
    *("torch", "transformers", "accelerate", "tokenizers", "safetensors", "peft", "scipy", "numpy", "wandb"),
    *("pydantic", "typer", "rich", "PyYAML", "xxhash", "zstandard", "filelock", "Jinja2", "matplotlib"),
)
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES", "WANDB_MODE")


def misplaced_rooms() -> list[str]:
    """One line for each of our package names that Python would import from somewhere else."""
    lines = []
    for name in ROOMS:
        found, expected = _resolved(name), HOUSE / name
        if found != expected:
            lines.append(
                f"package {name}: resolves to {found or 'nothing'}, expected {expected}; another package of this name "
                "stands before ours: uninstall it, take it off PYTHONPATH, or use an environment of your own"
            )
    return lines


def _resolved(name: str) -> Path | None:
    """The folder of the package that `import name` would find."""
    try:
        spec = find_spec(name)
    except ValueError:  # a module that was put into sys.modules by hand
        return None
    if spec is None or not (spec.has_location or spec.submodule_search_locations):
        return None
    folder = Path(spec.origin).parent if spec.origin else Path(next(iter(spec.submodule_search_locations or ())))
    return folder.resolve()


def facts() -> Iterator[tuple[str, str]]:
    """(name, value) of everything that explains why a run is slow, or fails here and nowhere else."""
    yield "cuvee", version()
    yield "python", f"{platform.python_version()} ({sys.executable})"
    yield "system", f"{platform.system()} {platform.release()} {platform.machine()}"
    for package in PACKAGES:
        yield package, _version_of(package)
    yield from _processor()
    yield from _accelerators()
    yield "memory", f"{_memory_bytes() / 2**30:.1f} GiB"
    disk = shutil.disk_usage(Path.cwd())
    yield "disk", f"{disk.free / 2**30:.1f} of {disk.total / 2**30:.1f} GiB free in {Path.cwd()}"
    accelerate = sorted(name for name in os.environ if name.startswith("ACCELERATE_"))
    set_here = [f"{name}={os.environ[name]}" for name in (*LAUNCHER, *accelerate) if name in os.environ]
    yield "launcher", " ".join(set_here) or "none: one process"
    yield "rooms", f"all {len(ROOMS)} in {HOUSE}"


def version() -> str:
    """Version of this distribution."""
    return _version_of("cuvee")


def _version_of(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> Iterator[tuple[str, str]]:
    import torch

    # older releases of torch cannot say
    able = getattr(torch.cpu, "get_capabilities", dict)()
    bf16 = [name for name in ("avx512_bf16", "amx_bf16") if able.get(name)]
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    name = able.get("cpu_name") or platform.processor() or "unknown"
    yield "processor", f"{name}, {usable} cores usable, {torch.get_num_threads()} threads used by torch"
    yield "vectors", f"{torch.backends.cpu.get_cpu_capability()}; bf16 products: {' '.join(bf16) or 'not in hardware'}"


def _accelerators() -> Iterator[tuple[str, str]]:
    import torch

    devices = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    listed = ", ".join(f"{device.name} {device.total_memory / 2**30:.0f} GiB" for device in devices)
    yield "CUDA", f"{listed or 'no device'} (torch built for {torch.version.cuda or 'CPU'})"
    if torch.backends.mps.is_available():
        yield "MPS", "available, not used"


def _memory_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
