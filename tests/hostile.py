"""Collect hostile inputs: each case says what must happen. The modules `hostile_*.py` add cases, by area."""
from dataclasses import dataclass
from typing import Any


@dataclass
class Case:
    "An action on a temporary folder, and the words of the error that it must raise, or the value to return"
    name: str
    act: Any # function of a temporary folder
    words: tuple = () # parts of the message: what is wrong, where, and what to do
    error: type = ValueError
    value: Any = None

    def check(self, folder):
        "Run the action in `folder` and compare its error or its value"
        if not self.words:
            assert self.act(folder) == self.value
            return
        try: res = self.act(folder)
        except self.error as e:
            missing = [o for o in self.words if o not in str(e)]
            assert not missing, f'{missing} not in the message: {e}'
        else: raise AssertionError(f'no error, but {res!r:.200}')


cases = []


def refuses(name, act, *words, error=ValueError):
    "Add a case: `act(folder)` raises `error` with all `words` in its message"
    cases.append(Case(name, act, words or ('',), error))


def gives(name, act, value=None):
    "Add a case: `act(folder)` returns a value equal to `value`"
    cases.append(Case(name, act, value=value))
