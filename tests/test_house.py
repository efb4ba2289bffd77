"Check the limits of docs/architecture.md and of the style guide, as house.py measures them"
import ast
import re
from pathlib import Path

import house
import pytest

from conftest import run_python

root = Path(__file__).parent.parent
architecture = (root/'docs'/'architecture.md').read_text(encoding='utf-8')


def between(mark):
    "Return the part of docs/architecture.md between two comments"
    return re.search(rf'<!-- {mark} -->\n(.*?)<!-- end {mark} -->', architecture, re.S)[1]


@pytest.mark.parametrize('measure', [
    house.long_functions, house.private_imports, house.upward_imports, house.private_meanings,
    house.banned_words])
def test_nothing_breaks_the_rule(measure): assert not measure(root)


def test_modules_have_one_idea():
    def length(path): return len(path.read_text(encoding='utf-8').splitlines())
    lengths = {house.name_of(p, root): length(p) for p in house.sources(root)}
    assert not {k: n for k,n in lengths.items() if n > house.MAX_LINES}


def test_lines_are_narrow():
    lines = sum(len(house.code_lines(p)) for p in house.sources(root))
    wide = house.wide_lines(root)
    assert len(wide) <= lines/100, wide


def test_public_docstrings_begin_with_a_verb():
    docs = list(house.docstrings(root))
    missing = house.without_verb(root)
    assert len(docs) > 100 and len(missing) <= len(docs)/20, missing


def test_every_public_function_has_a_docstring():
    for p in house.sources(root):
        names = set(house.exported(p))
        for node in house.tree(p).body:
            public = isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in names
            if public: assert ast.get_docstring(node), f'{house.name_of(p, root)}.{node.name}'


def test_few_public_names():
    names = house.public_names(root)
    assert 80 < len(names) <= 110, len(names)


def test_the_star_import_gives_the_public_names():
    code = '''
from fastai.vision.all import *
before = set(globals())
from vidseq.all import *
print(*sorted(o for o in set(globals())-before if o != 'before'))'''
    given = run_python('-W', 'ignore', '-c', code).split()
    assert set(given) <= set(house.public_names(root))


def test_names_of_fastai_keep_their_meaning():
    "Check that vidseq replaces only `TimeDistributed` of the names of fastai, and keeps its parameters"
    code = '''
import inspect
import fastai.vision.all as fastai
import vidseq.all as vidseq
from fastai.layers import TimeDistributed
names = [n for n in vars(vidseq) if not n.startswith('__') and n in vars(fastai)]
print(*sorted(n for n in names if getattr(vidseq, n) is not getattr(fastai, n)))
ours,theirs = (list(inspect.signature(o).parameters) for o in (vidseq.TimeDistributed, TimeDistributed))
assert ours[:len(theirs)] == theirs, (ours, theirs)'''
    assert run_python('-W', 'ignore', '-c', code).split() == ['TimeDistributed']


def test_the_map_shows_the_packages():
    "Check that the table of packages in docs/architecture.md equals the imports of the code"
    numbers = {}
    for nb in sorted((root/'nbs').glob('[0-9]*.ipynb')):
        number,_,module = nb.stem.partition('_')
        numbers.setdefault(module.split('.')[0], set()).add(number[0])
    def row(package, imported):
        digit = ''.join(sorted(numbers[package]))
        single = dict(files='00', parallel='01', options='02', file_index='03', cli='90')
        notebooks = single.get(package, f'{digit}x')
        names = ', '.join(f'`{o}`' for o in imported)
        return f'| `{package}` | {notebooks} | {names or "nothing"} |'
    rows = [row(*o) for o in house.package_imports(root).items()]
    assert between('packages').splitlines()[2:] == rows


def decorator_name(node):
    "Return the name of a decorator, with or without arguments: `@patch`, `@patch(...)` -> 'patch'"
    return getattr(node, 'id', getattr(getattr(node, 'func', None), 'id', ''))


def patches(path):
    "Yield class.method for each function of a module that has the decorator `patch`"
    for node in house.tree(path).body:
        for f in (node.body if isinstance(node, ast.If) else [node]):
            if not isinstance(f, ast.FunctionDef): continue
            if 'patch' in map(decorator_name, f.decorator_list):
                yield f'{ast.unparse(f.args.args[0].annotation)}.{f.name}'


def test_the_map_names_each_patch():
    "Check that the table of docs/architecture.md has exactly the methods that vidseq patches"
    patched = {o for p in house.sources(root) for o in patches(p)}
    named = set(re.findall(r'^\| `([\w.]+)`(?: \(added\)| \(patched\))', between('patches'), re.M))
    assert named == patched


def test_the_architecture_names_each_module():
    for p in house.sources(root):
        if p.stem != 'all': assert f'`{p.stem}`' in architecture, f'{p.stem} is not in docs/architecture.md'
