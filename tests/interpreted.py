"""Triton's interpreter made fit for many small tests."""

from functools import cache

from triton.runtime import interpreter


class _Kept:
    """A patch of the language that stays."""

    def restore(self) -> None:
        pass


def prepare() -> None:
    """Patch each kernel's language once, not at every call of a function in a kernel (10 ms each); and let loop bounds be arrays
    of one element, which `int` takes no more from NumPy 2.4 on."""
    patch_language, patch_tensor = interpreter._patch_lang, interpreter._patch_lang_tensor

    def patch_and_index(tensor, scope):
        patch_tensor(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: self.handle.data.item())

    @cache
    def patch_once(function):
        patch_language(function)
        return _Kept()

    interpreter._patch_lang_tensor, interpreter._patch_lang = patch_and_index, patch_once
