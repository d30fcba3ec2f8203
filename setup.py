"""What is compiled of the package that setup.cfg describes. Without a compiler, or Python.h, it is left out."""

from glob import glob

from setuptools import Extension, setup

FLAGS = ["-std=gnu11", "-Wall", "-Wextra", "-Wno-missing-field-initializers", "-Wno-unused-parameter"]

setup(
    ext_modules=[
        Extension(
            "shiftfs._native",
            sorted(glob("shiftfs/native/*.c")),
            depends=sorted(glob("shiftfs/native/*.h")),
            extra_compile_args=[*FLAGS, "-Wno-cast-function-type", "-fvisibility=hidden"],
            optional=True,
        )
    ]
)
