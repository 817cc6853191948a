"""Maps the top-level folders to rheobase.* and compiles the C sources; the metadata is in pyproject.toml."""

import os
from concurrent.futures import ThreadPoolExecutor

from setuptools import Extension, find_packages, setup
from setuptools.command.build_ext import build_ext

FOLDERS = ("spiking", "models", "backends")
found = find_packages(include=[g for f in FOLDERS for g in (f, f + ".*")])


class BuildNative(build_ext):
    """Builds the optional C libraries, files side by side, and says in one line where it could not."""

    said = False

    def build_extensions(self):
        one_by_one = self.compiler.compile

        def side_by_side(sources, **options):
            with ThreadPoolExecutor(os.cpu_count()) as pool:
                return [o for objects in pool.map(lambda s: one_by_one([s], **options), sources) for o in objects]

        self.compiler.compile = side_by_side
        super().build_extensions()

    def build_extension(self, ext):
        try:
            super().build_extension(ext)
        except Exception as error:
            if not self.said:
                self.warn(f"rheobase: no C library ({error}); slower forms are used, `rheobase doctor` says so")
            self.said = True


native = Extension(
    "rheobase.spiking.ops.native._native",
    sources=[f"spiking/ops/native/{name}.c" for name in ("lif", "wkv", "egru", "stream", "gather")],  # slowest first
    depends=["spiking/ops/native/native.h"],
    # no fused products: every machine gives the same bits; no trapping: a comparison may become part of a vector;
    # no errno: a root is an instruction, where libm, which is not linked, would set it; no loop for each combination of
    # settings and no symbols of a debugger: they double the time it takes to compile, and no loop is slower
    extra_compile_args=[
        *("-std=c99", "-O3", "-g0", "-ffp-contract=off", "-fno-trapping-math", "-fno-math-errno"),
        "-fno-unswitch-loops",
    ],
    py_limited_api=True,  # it calls no Python: one wheel a platform serves every version
    optional=True,
)

FIRMWARE = "backends/exporters/spinnaker2/firmware"
host = Extension(
    "rheobase.backends.exporters.spinnaker2.firmware._host",
    sources=[f"{FIRMWARE}/{name}.c" for name in ("pe", "product", "egru", "head", "embedding", "program", "host")],
    depends=[f"{FIRMWARE}/{name}.h" for name in ("layout", "arithmetic", "pe", "host")],
    extra_compile_args=["-std=c99", "-O3", "-g0"],
    py_limited_api=True,
    optional=True,
)

setup(
    packages=["rheobase", "rheobase.bench", *(f"rheobase.{p}" for p in found)],
    package_dir={"rheobase": "rheobase", **{f"rheobase.{f}": f for f in FOLDERS}},
    ext_modules=[native, host],
    cmdclass={"build_ext": BuildNative},
)
