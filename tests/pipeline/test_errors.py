"""The error tree."""

import builtins

import pytest

from sereno.pipeline import errors
from sereno.pipeline.errors import SerenoError

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, SerenoError) and kind is not SerenoError]


def test_every_kind_has_its_own_exit_code_that_is_not_success() -> None:
    codes = [kind.exit_code for kind in (SerenoError, *KINDS)]
    assert len(set(codes)) == len(codes)
    assert all(0 < code < 128 for code in codes)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_kind_is_also_a_builtin_and_prints_its_message(kind: type[SerenoError]) -> None:
    assert any(base.__module__ == builtins.__name__ and base is not Exception for base in kind.__mro__[2:-3])
    assert str(kind("what, where, remedy")) == "what, where, remedy"
