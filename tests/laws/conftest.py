"""Triton's interpreter, where it is not as it should be."""

import os

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
