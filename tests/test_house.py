"The limits that docs/architecture.md and the style of the project set, measured by house.py."
import ast
import re
import subprocess
import sys
from pathlib import Path

import house
import pytest

root = Path(__file__).parent.parent
architecture = (root/'docs'/'architecture.md').read_text(encoding='utf-8')


def between(mark): return re.search(rf'<!-- {mark} -->\n(.*?)<!-- end {mark} -->', architecture, re.S)[1]


@pytest.mark.parametrize('measure', [house.long_functions, house.private_imports, house.upward_imports, house.private_meanings, house.banned_words])
def test_nothing_breaks_the_rule(measure): assert not measure(root)


def test_modules_have_one_idea():
    lengths = {house.name_of(p, root): len(p.read_text(encoding='utf-8').splitlines()) for p in house.sources(root)}
    assert not {k: n for k,n in lengths.items() if n > house.MAX_LINES}


def test_lines_are_narrow():
    lines = sum(len(house.code_lines(p)) for p in house.sources(root))
    wide = house.wide_lines(root)
    assert len(wide) <= lines/100, wide


def test_public_docstrings_begin_with_a_verb():
    docs,missing = list(house.docstrings(root)),house.without_verb(root)
    assert len(docs) > 100 and len(missing) <= len(docs)/20, missing


def test_every_public_function_has_a_docstring():
    for p in house.sources(root):
        names = set(house.exported(p))
        for node in house.tree(p).body:
            if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in names: assert ast.get_docstring(node), f'{house.name_of(p, root)}.{node.name}'


def test_few_public_names():
    names = house.public_names(root)
    assert 80 < len(names) <= 110, len(names)


def test_the_star_import_gives_the_public_names():
    code = 'from fastai.vision.all import *\nbefore = set(globals())\nfrom vidseq.all import *\nprint(*sorted(o for o in set(globals())-before if o != "before"))'
    given = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True, check=True).stdout.split()
    assert set(given) <= set(house.public_names(root))


def test_names_of_fastai_keep_their_meaning():
    "After both star imports, a name of fastai's is fastai's own object; `TimeDistributed` alone is replaced, with the same signature"
    code = '''
import inspect
import fastai.vision.all as fastai
import vidseq.all as vidseq
from fastai.layers import TimeDistributed
names = [n for n in vars(vidseq) if not n.startswith('__') and n in vars(fastai)]
print(*sorted(n for n in names if getattr(vidseq, n) is not getattr(fastai, n)))
ours,theirs = (list(inspect.signature(o).parameters) for o in (vidseq.TimeDistributed, TimeDistributed))
assert ours[:len(theirs)] == theirs, (ours, theirs)'''
    res = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True)
    assert res.returncode == 0, res.stderr
    assert res.stdout.split() == ['TimeDistributed']


def test_the_map_shows_the_packages():
    "The table in docs/architecture.md equals the imports of the code"
    numbers = {}
    for nb in sorted((root/'nbs').glob('[0-9]*.ipynb')):
        number,_,module = nb.stem.partition('_')
        numbers.setdefault(module.split('.')[0], set()).add(number[0])
    def row(package, imported):
        digit = ''.join(sorted(numbers[package]))
        notebooks = {'files': '00', 'cli': '90'}.get(package, f'{digit}x')
        return f'| `{package}` | {notebooks} | {", ".join(f"`{o}`" for o in imported) or "nothing"} |'
    rows = [row(*o) for o in house.package_imports(root).items()]
    assert between('packages').splitlines()[2:] == rows


def test_the_map_names_each_patch():
    "Each `@patch` and each dispatched method of another library is in the table of docs/architecture.md, and nothing else"
    patched = set()
    for p in house.sources(root):
        for node in house.tree(p).body:
            if not isinstance(node, ast.If): nodes = [node]
            else: nodes = node.body
            for f in nodes:
                if isinstance(f, ast.FunctionDef) and any(getattr(d, 'id', getattr(getattr(d, 'func', None), 'id', '')) == 'patch' for d in f.decorator_list):
                    patched.add(f'{ast.unparse(f.args.args[0].annotation)}.{f.name}')
    named = set(re.findall(r'^\| `([\w.]+)`(?: \(added\)| \(patched\))', between('patches'), re.M))
    assert named == patched


def test_the_architecture_names_each_module():
    for p in house.sources(root):
        if p.stem != 'all': assert f'`{p.stem}`' in architecture, f'{p.stem} is not in docs/architecture.md'
