"""Hostile input: wrong files, names, settings and arguments end in a clear error or the right value."""
import importlib
from pathlib import Path

import pytest

from hostile import cases

for module in sorted(Path(__file__).parent.glob('hostile_*.py')): importlib.import_module(module.stem)


@pytest.mark.parametrize('case', cases, ids=lambda o: o.name)
def test_hostile(case, tmp_path): case.check(tmp_path)


def test_names_are_unique(): assert len({o.name for o in cases}) == len(cases)
