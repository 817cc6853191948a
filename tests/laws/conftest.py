"""Triton's kernels on a CPU: compiled for a GPU in software where SOFTWARE_GPU is its compute capability, 80 or 90, or
in Triton's interpreter, mended where it is not as it should be."""

import os

import pytest

if capability := os.environ.get("SOFTWARE_GPU"):

    @pytest.fixture(scope="session", autouse=True)
    def gpu(tmp_path_factory):
        from software_gpu import software_gpu

        with pytest.MonkeyPatch.context() as patch, software_gpu(int(capability)):
            patch.setenv("TRITON_CACHE_DIR", str(tmp_path_factory.mktemp("compiled")))
            yield

    def pytest_collection_modifyitems(items):
        """Triton compiles a kernel once, and does not see what is planted later."""
        for item in items:
            if "planted" in item.name:
                item.add_marker(pytest.mark.skip(reason="tests/test_triton_launches.py plants one"))


if os.environ.get("TRITON_INTERPRET") == "1":
    from triton import language
    from triton.runtime import interpreter

    patch, patched = interpreter._patch_lang_tensor, set()

    def mended(tensor, scope):
        """Triton 3.6's fails on a range to a bound known only at run time under NumPy 2.4."""
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    def called(self, *args, **options):
        """A function of ours finds the language as its kernel's start has exchanged it. That is done anew in every
        call otherwise, which takes half of the time; Triton's own functions see another module, which stays so."""
        names = self.fn.__globals__
        if names.get("tl") is not language and names["__name__"] not in patched:
            patched.add(names["__name__"])
            interpreter._patch_lang(self.fn)
        return self.rewrite()(*args, **options)

    interpreter._patch_lang_tensor = mended
    interpreter.InterpretedFunction.__call__ = called
