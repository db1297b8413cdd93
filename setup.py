"""What pyproject.toml cannot say: a kernel in C, left out where it cannot be built."""

from setuptools import Extension, setup

FOLDER = "src/sartor/kernels"
PARTS = ("_forest", "forest", "forest_load", "forest_portable", "forest_avx2", "forest_avx512")

setup(
    ext_modules=[
        Extension(
            "sartor.kernels._forest",
            [f"{FOLDER}/{part}.c" for part in PARTS],
            depends=[f"{FOLDER}/forest.h", f"{FOLDER}/forest_inner.h"],
            # Sums are promised to the last bit: a product and a sum must not become one rounding.
            extra_compile_args=["-std=gnu11", "-O3", "-ffp-contract=off", "-pthread"],
            extra_link_args=["-pthread"],
            py_limited_api=True,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
