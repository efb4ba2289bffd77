"""Measure how readable the code is: `python tests/house.py [ROOT ...]` prints a column for each checkout.

`test_house.py` holds this checkout to the limits. Needs the standard library only, so it can measure others.
"""
import ast
import io
import json
import re
import statistics
import sys
import tokenize
from pathlib import Path

MAX_WIDTH, MAX_BODY, MAX_LINES = 110, 25, 300
# Package -> first digit of its notebooks; a package imports those before it
DIGITS = dict(files=0, parallel=0, options=0, file_index=0, video=1, datasets=2, data=3, models=4, train=5,
              evaluate=6, deploy=7, report=8, commands=9, cli=9)
PACKAGES = list(DIGITS)

# What the field does not say, as regular expressions, and what to write instead
BANNED = {
    r'learned on': 'trained on, pretrained on',
    r'taken for': 'predicted as, confused with',
    r'named rightly': 'correct',
    r'named wrongly': 'wrong',
    r'anew': 'again',
    r'texts': 'strings, messages',
    r'is no transform': 'is not a transform',
    r'is none of': 'is not one of',
    r'(?<!there )are no (frames|videos|clips|images)': 'contain no',
    r'what weighs': 'the weights of',
    r'in turn': 'one at a time',
    r'worth': 'importance, contribution',
    r'lies? (in|on|beside|outside|inside|between)': 'is in',
    r'left out': 'skipped, excluded',
    r'leaves? out': 'skips, excludes',
    r'so many (pixels|frames|clips|videos|steps|bytes)': 'N pixels',
    r'looked at': 'examined, checked',
    r'what is there': 'existing files',
    r'for nothing': 'without benefit',
    r'from nothing': 'from scratch',
    r"one's own": 'your own, custom',
    r'mirrored?|mirrors?': 'flip',
    r'at hand': 'available',
    r'in words': 'as a message',
    r'by hand': 'manually',
    r'brings?': 'gives, includes',
    r'how many there are': 'the number of',
    r'who trains': 'the user',
    r'gives back': 'returns',
    r'on the way': 'during',
    r'wants to be': 'must be',
    r'of how many': 'the number of views',
    r'kept whole': 'never divided',
    r'goe?s? on where': 'resumes',
    r'takes? no more than': 'needs at most',
    r'said in one line': 'reported in one line',
    r'what can be told': 'the arguments that',
    r'as it is made for': 'of the size that it accepts',
    r'loses where': 'loses the position',
    r'the last bit': 'exactly',
    r'takes apart': 'splits',
    r'stands beside': 'is next to',
    r'says nothing': 'does not show',
    r'half[- ]written': 'incomplete',
    r'folder above': 'parent folder',
    r'sooner or later': 'eventually',
    r'whoever|nobody|anybody': 'the user, no user',
    r'rightly|wrongly': 'correctly, incorrectly',
    r'colour\w*|neighbour\w*|behaviour|centred?|grey|labelled|licences?': 'American spelling',
    r'(normal|recogn|memor|initial|serial|quant)is(e|es|ed|ing|ation)': 'American spelling',
}
# The imperative verbs that begin docstrings
VERBS = set('''
    accept add allow animate annotate answer append apply assemble attach attend augment average bound
    broadcast build cache call check choose classify clear clip close collate collect color combine
    compare complete compute concatenate configure connect continue convert copy count create crop cut
    decide decode define delete describe detach detect determine display distribute divide download draw
    drop embed encode enter estimate evaluate exchange exclude expand explain export extend extract fail
    fill filter find fit fold follow force format freeze gather generate get group hash hide hold
    identify ignore import index infer initialize insert inspect interpolate invert iterate join keep
    label leave let limit list load locate lock look make map mark mask match measure merge mix modify
    move name normalize offer open order overwrite pack pad parse pass patch pick play plot pool predict
    prepare print process produce project provide put query raise read rebuild receive recompute record
    recreate reduce refuse register reject release remember remove rename reorder repeat replace report
    represent request require reset reshape resize resolve restore resume retry return reverse rotate
    round run sample save scale scan schedule score search select send separate serve set share shift
    show shuffle shut simulate skip slice slide sort split stack start stay step stop store stream strip
    subtract suggest sum summarize supply swap switch synchronize take test time touch track train
    transform transpose treat truncate try turn undo unfold unlock unpack unwrap update use validate
    verify wait walk warn watch weight wrap write yield zero'''.split())


def sources(root):
    "Return the modules of a checkout, except those that nbdev generates"
    found = sorted((Path(root)/'vidseq').rglob('*.py'))
    return [p for p in found if p.name not in ('_modidx.py', '__init__.py')]


def name_of(path, root): return '.'.join(path.relative_to(root).with_suffix('').parts)


def tree(path): return ast.parse(path.read_text(encoding='utf-8'))


def package_of(module): return module.split('.')[1] if '.' in module else module


# Size

def functions(path):
    "Yield the name of each function of a module, and the lines of its body without the docstring"
    for node in ast.walk(tree(path)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)): continue
        body = node.body[1:] if ast.get_docstring(node) else node.body
        yield node.name, body[-1].end_lineno - body[0].lineno + 1 if body else 0


def long_functions(root):
    found = ((p, n, k) for p in sources(root) for n,k in functions(p))
    return [f'{name_of(p, root)}.{n}: {k} lines' for p,n,k in found if k > MAX_BODY]


def _all_list(path):
    "Return the statement that defines `__all__`, which nbdev writes"
    for node in tree(path).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '__all__': return node


def code_lines(path):
    "Return the lines of code with their numbers, without the list `__all__`"
    node = _all_list(path)
    generated = range(node.lineno, node.end_lineno+1) if node else ()
    lines = enumerate(path.read_text(encoding='utf-8').splitlines(), 1)
    return [(i,o) for i,o in lines if o.strip() and not o.startswith('# ') and i not in generated]


def wide_lines(root, width=MAX_WIDTH):
    return [(f'{name_of(p, root)}:{i}', o) for p in sources(root) for i,o in code_lines(p) if len(o) > width]


# Imports

def imports(path, root):
    "Yield the modules of vidseq that a module imports, with the imported names"
    package = path.relative_to(root).with_suffix('').parts[:-1]
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.ImportFrom): continue
        parents = package[:len(package)-node.level+1] if node.level else ()
        module = '.'.join((*parents, node.module) if node.module else parents)
        if module.split('.')[0] == 'vidseq': yield module, [o.name for o in node.names]


def private_imports(root):
    found = ((p, module, n) for p in sources(root) for module,names in imports(p, root) for n in names)
    return [f'{name_of(p, root)} imports {module}.{n}' for p,module,n in found if re.match('_(?!_)', n)]


def package_imports(root):
    "Return package -> the packages that it imports, in order"
    found = {o: set() for o in PACKAGES}
    for p in sources(root):
        own = package_of(name_of(p, root))
        if own in found: found[own] |= {package_of(module) for module,_ in imports(p, root)} - {own}
    return {k: [o for o in PACKAGES if o in v] for k,v in found.items()}


def upward_imports(root):
    "Return the imports against the order of the packages"
    ranks = {o: i for i,o in enumerate(PACKAGES)}
    pairs = [(k,o) for k,v in package_imports(root).items() for o in v]
    return [f'{k} imports {o}' for k,o in pairs if ranks[o] > ranks[k]]


# Names

def exported(path):
    "Return the names in `__all__` of a module"
    node = _all_list(path)
    return ast.literal_eval(node.value) if node else []


def public_names(root):
    "Return the names that `from vidseq.all import *` gives"
    starred = {module for module,names in imports(Path(root)/'vidseq'/'all.py', root) if names == ['*']}
    return sorted({n for p in sources(root) if name_of(p, root) in starred for n in exported(p)})


def defined(path):
    "Yield the names that a module defines at its top level"
    for node in tree(path).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)): yield node.name
        yield from (o.id for o in getattr(node, 'targets', ()) if isinstance(o, ast.Name))


def private_meanings(root):
    "Return the private names that more than one module defines"
    homes = {}
    for p in sources(root):
        for n in defined(p):
            if re.match('_(?!_|all_)', n): homes.setdefault(n, set()).add(name_of(p, root))
    return {k: v for k,v in homes.items() if len(v) > 1}


# Language

def _public_methods(node):
    if not isinstance(node, ast.ClassDef): return []
    return [o for o in node.body if isinstance(o, ast.FunctionDef) and not o.name.startswith('_')]


def docstrings(root):
    "Yield the docstrings of exported functions and classes, and of their public methods"
    for p in sources(root):
        names = set(exported(p))
        for node in tree(p).body:
            if getattr(node, 'name', None) not in names: continue
            for o in (node, *_public_methods(node)):
                if text := ast.get_docstring(o): yield f'{name_of(p, root)}.{node.name}.{o.name}', text


def first_word(text): return re.sub(r'[^a-z-].*', '', text.lower(), flags=re.S)


def without_verb(root):
    wrong = [(where, text) for where,text in docstrings(root) if first_word(text) not in VERBS]
    return [f'{where}: {text.splitlines()[0]}' for where,text in wrong]


def comments_and_strings(code):
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, 'FSTRING_MIDDLE', tokenize.STRING)}
    try: tokens = list(tokenize.generate_tokens(io.StringIO(code).readline))
    except (tokenize.TokenError, SyntaxError): return code  # shell lines of a notebook
    return '\n'.join(o.string for o in tokens if o.type in kinds)


def prose(path):
    "Return what people read in a file: Markdown, and the comments and strings of code"
    text = path.read_text(encoding='utf-8')
    if path.suffix == '.md': return text
    if path.suffix == '.py': return comments_and_strings(text)
    cells = [(o['cell_type'], ''.join(o['source'])) for o in json.loads(text)['cells']]
    return '\n'.join(o if kind == 'markdown' else comments_and_strings(o) for kind,o in cells)


def written(root):
    "Return the files whose language is checked: all but this one, which lists the words"
    patterns = ('vidseq/**/*.py', 'nbs/**/*.ipynb', 'docs/*.md', 'docs/*.py', 'tests/*.py', 'benchmarks/*.py',
                'benchmarks/*.md', '*.md')
    found = [p for o in patterns for p in sorted(Path(root).glob(o))]
    skipped = {'house.py', '_modidx.py', '.ipynb_checkpoints'}
    return [p for p in found if not skipped & set(p.parts)]


def banned_words(root):
    regex = re.compile(r'\b(' + '|'.join(BANNED) + r')\b', re.I)
    found = ((p, m) for p in written(root) for m in regex.finditer(prose(p)))
    def context(m): return m.string[max(0, m.start()-40):m.end()+30]
    return [f'{p.relative_to(root)}: {m[0]!r} in {context(m)!r}' for p,m in found]


# The table

def measures(root):
    root = Path(root)
    sizes = [k for p in sources(root) for _,k in functions(p)]
    lengths = [len(p.read_text(encoding='utf-8').splitlines()) for p in sources(root)]
    code,wide = [o for p in sources(root) for _,o in code_lines(p)],wide_lines(root)
    n_docs,n_without = len(list(docstrings(root))),len(without_verb(root))
    return {
        'modules': len(lengths),
        'lines of a module, median and largest': f'{statistics.median(lengths):.0f}, {max(lengths)}',
        'functions': len(sizes),
        'lines of a function, median and largest': f'{statistics.median(sizes):.0f}, {max(sizes)}',
        f'functions over {MAX_BODY} lines': len(long_functions(root)),
        f'code lines over {MAX_WIDTH} characters': f'{len(wide)} of {len(code)} ({len(wide)/len(code):.1%})',
        'code lines over 120 characters': f'{len(wide_lines(root, 120))/len(code):.1%}',
        'characters per code line': f'{sum(map(len, code))/len(code):.1f}',
        'private names imported from another module': len(private_imports(root)),
        'imports against the order of the packages': len(upward_imports(root)),
        'private names with two meanings': len(private_meanings(root)),
        'names in vidseq.all': len(public_names(root)),
        'public docstrings that begin with a verb':
            f'{n_docs-n_without} of {n_docs} ({1-n_without/n_docs:.0%})',
        'words of the banned list': len(banned_words(root))}


def table(roots):
    columns = [measures(o) for o in roots]
    head = ['| | ' + ' | '.join(map(str, roots)) + ' |', '|---'*(len(roots)+1) + '|']
    rows = [f'| {k} | ' + ' | '.join(str(c[k]) for c in columns) + ' |' for k in columns[0]]
    return '\n'.join(head + rows)


if __name__ == '__main__': print(table(sys.argv[1:] or [Path(__file__).parent.parent]))
