"""Measure how readable the code is: `python tests/house.py [ROOT ...]` prints one column for each checkout.

`test_house.py` holds this checkout to the limits. Only the standard library is needed, so that other checkouts can be measured too.
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
PACKAGES = 'files video datasets data models train evaluate deploy report cli'.split()  # imports run from right to left

# Words that the field does not use, or that say little: what to write instead
BANNED = {
    r'learned on': 'trained on, pretrained on', r'taken for': 'predicted as, confused with', r'named rightly': 'correct', r'anew': 'again',
    r'texts': 'strings, messages', r'is no transform': 'is not a transform', r'what weighs': 'the weights of', r'in turn': 'one at a time',
    r'worth': 'importance, contribution', r'lies? (in|on|beside|outside|inside|between)': 'is in', r'left out': 'skipped, excluded',
    r'leaves? out': 'skips, excludes', r'so many (pixels|frames|clips|videos|steps|bytes)': 'to N pixels', r'looked at': 'examined, checked',
    r'what is there': 'existing files', r'for nothing': 'without benefit', r'from nothing': 'from scratch', r'one\'s own': 'your own, custom',
    r'mirrored?|mirrors?': 'flip', r'named wrongly': 'wrong', r'is none of': 'is not one of', r'at hand': 'available',
    r'in words': 'as a message', r'by hand': 'manually', r'brings?': 'gives, includes', r'how many there are': 'the number of',
    r'who trains': 'the user', r'gives back': 'returns', r'(?<!there )are no (frames|videos|clips|images)': 'contain no', r'on the way': 'during',
    r'wants to be': 'must be', r'of how many': 'the number of views', r'kept whole': 'never divided', r'goes on where': 'resumes', r'go on where': 'resume',
    r'takes? no more than': 'needs at most', r'said in one line': 'reported in one line', r'what can be told': 'the arguments that',
}
# Imperative verbs that begin the docstrings of this project
VERBS = set('''
    accept add allow animate annotate answer append apply ask assemble attach attend augment average batch bound broadcast build cache call check choose classify clear clip close collect color
    combine compare complete compute concatenate connect convert copy count create crop cut decide decode define delete describe detach detect determine display distribute divide do download draw
    drop embed encode enter estimate evaluate exchange exclude expand explain export extend extract fail fill filter find fit fold follow force format forward freeze gather generate get give group guess hash hide
    hold identify ignore import index infer initialize insert inspect interpolate invert iterate join keep label leave let limit link list load locate lock look make map mark mask match measure merge
    mix modify move name normalize notify note offer open order overwrite pack pad parse pass patch pick place play plot point pool predict prepare print process produce project provide put query raise read
    rebuild receive recompute record recreate reduce refuse register reject release remember remove rename reorder repeat replace report represent request require reset resize reshape resolve restore resume retry return reverse rotate
    round run sample save scale scan schedule score search select send separate serve set share shift show shuffle shut simulate skip slice slide sort split stack start stay step stop store stream strip subtract sum
    summarize swap switch synchronize take tell test time touch track train transform translate transpose treat truncate try turn undo unfold unpack unlock unwrap update use validate verify visit wait walk warn watch weight
    widen wrap write yield zero'''.split())


def sources(root):
    "The modules of a checkout, without what nbdev generates"
    return [p for p in sorted((Path(root)/'vidseq').rglob('*.py')) if p.name not in ('_modidx.py', '__init__.py')]


def name_of(path, root): return '.'.join(path.relative_to(root).with_suffix('').parts)


def tree(path): return ast.parse(path.read_text(encoding='utf-8'))


def functions(path):
    "Each function of a module, and how many lines its body has without the docstring"
    for node in ast.walk(tree(path)):
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)): continue
        body = node.body[1:] if ast.get_docstring(node) else node.body
        yield node.name, body[-1].end_lineno - body[0].lineno + 1 if body else 0


def long_functions(root):
    return [f'{name_of(p, root)}.{n}: {size}' for p in sources(root) for n,size in functions(p) if size > MAX_BODY]


def code_lines(path):
    "Lines of code with their numbers, without the list `__all__`, which nbdev writes"
    lines,generated = path.read_text(encoding='utf-8').splitlines(),set()
    for node in tree(path).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '__all__': generated |= set(range(node.lineno, node.end_lineno+1))
    return [(i, o) for i,o in enumerate(lines, 1) if o.strip() and not o.startswith('# ') and i not in generated]


def wide_lines(root, width=MAX_WIDTH):
    return [(f'{name_of(p, root)}:{i}', o) for p in sources(root) for i,o in code_lines(p) if len(o) > width]


def imports(path, root):
    "Modules of vidseq that a module imports, with the imported names"
    package = path.relative_to(root).with_suffix('').parts[:-1]
    for node in ast.walk(tree(path)):
        if not isinstance(node, ast.ImportFrom): continue
        if node.level: base = '.'.join((*package[:len(package)-node.level+1], *([node.module] if node.module else [])))
        elif (node.module or '').split('.')[0] == 'vidseq': base = node.module
        else: continue
        yield base, [o.name for o in node.names]


def private_imports(root):
    return [f'{name_of(p, root)} imports {base}.{n}' for p in sources(root) for base,names in imports(p, root) for n in names if re.match('_(?!_)', n)]


def package_of(module): return module.split('.')[1] if '.' in module else module


def upward_imports(root):
    "Imports against the order of the packages"
    found = []
    for p in sources(root):
        if p.name == 'all.py': continue
        own = package_of(name_of(p, root))
        for base,_ in imports(p, root):
            if own in PACKAGES and package_of(base) in PACKAGES and PACKAGES.index(package_of(base)) > PACKAGES.index(own): found.append(f'{name_of(p, root)} imports {base}')
    return found


def package_imports(root):
    "Package -> the packages that it imports, in order"
    found = {o: set() for o in PACKAGES}
    for p in sources(root):
        own = package_of(name_of(p, root))
        if own in found: found[own] |= {package_of(base) for base,_ in imports(p, root)} - {own}
    return {k: [o for o in PACKAGES if o in v] for k,v in found.items()}


def exported(path):
    "The names in a module's `__all__`"
    for node in tree(path).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], 'id', '') == '__all__': return ast.literal_eval(node.value)
    return []


def public_names(root):
    "The names that `from vidseq.all import *` gives"
    starred = {base for base,names in imports(Path(root)/'vidseq'/'all.py', root) if names == ['*']}
    return sorted({n for p in sources(root) if name_of(p, root) in starred for n in exported(p)})


def docstrings(root, public=True):
    "The docstrings of exported functions and classes and of their public methods, or of everything"
    for p in sources(root):
        names = set(exported(p))
        for node in tree(p).body:
            if not isinstance(node, (ast.FunctionDef, ast.ClassDef)) or public and node.name not in names: continue
            for o in [node, *(node.body if isinstance(node, ast.ClassDef) else ())]:
                hidden = public and o.name.startswith('_') if isinstance(o, (ast.FunctionDef, ast.ClassDef)) else True
                if not hidden and (text := ast.get_docstring(o)): yield f'{name_of(p, root)}.{node.name}' + ('' if o is node else f'.{o.name}'), text


def without_verb(root, public=True):
    return [f'{where}: {text.splitlines()[0]}' for where,text in docstrings(root, public) if first_word(text) not in VERBS]


def first_word(text): return re.sub(r'[^a-z-].*', '', text.lower(), flags=re.S)


def private_meanings(root):
    "Private names that more than one module defines"
    homes = {}
    for p in sources(root):
        for node in tree(p).body:
            names = [node.name] if isinstance(node, (ast.FunctionDef, ast.ClassDef)) else [o.id for o in getattr(node, 'targets', ()) if isinstance(o, ast.Name)]
            for n in names:
                if n.startswith('_') and not n.startswith('__') and n != '_all_': homes.setdefault(n, []).append(name_of(p, root))
    return {k: v for k,v in homes.items() if len(v) > 1}


def prose(path):
    "What people read in a file: Markdown, and the comments and strings of code"
    text = path.read_text(encoding='utf-8')
    if path.suffix == '.md': return text
    if path.suffix == '.py': return comments_and_strings(text)
    cells = json.loads(text)['cells']
    return '\n'.join(''.join(c['source']) if c['cell_type'] == 'markdown' else comments_and_strings(''.join(c['source'])) for c in cells)


def comments_and_strings(text):
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, 'FSTRING_MIDDLE', tokenize.STRING)}
    try: return '\n'.join(t.string for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type in kinds)
    except (tokenize.TokenError, SyntaxError): return text  # shell lines of a notebook


def written(root):
    "The files whose language is checked"
    root = Path(root)
    own = {'house.py'}  # lists the words
    found = [p for pattern in ('vidseq/**/*.py', 'nbs/**/*.ipynb', 'docs/*.md', 'docs/*.py', 'tests/*.py', 'benchmarks/*.py', 'benchmarks/*.md', '*.md') for p in sorted(root.glob(pattern))]
    return [p for p in found if p.name not in own and '.ipynb_checkpoints' not in p.parts and p.name != '_modidx.py']


def banned_words(root):
    regex = re.compile(r'\b(' + '|'.join(BANNED) + r')\b', re.I)
    return [f'{p.relative_to(root)}: {m[0]!r} in {m.string[max(0, m.start()-40):m.end()+30]!r}' for p in written(root) for m in regex.finditer(prose(p))]


def measures(root):
    root = Path(root)
    files,n_functions = sources(root),[size for p in sources(root) for _,size in functions(p)]
    lengths = [len(p.read_text(encoding='utf-8').splitlines()) for p in files]
    code,wide = [o for p in files for _,o in code_lines(p)],wide_lines(root)
    docs = list(docstrings(root))
    missing = without_verb(root)
    return {'modules': len(files), 'lines of a module, median': int(statistics.median(lengths)), 'lines of a module, largest': max(lengths),
            'functions': len(n_functions), f'functions over {MAX_BODY} lines': len(long_functions(root)), 'lines of a function, median': int(statistics.median(n_functions)),
            f'code lines over {MAX_WIDTH} characters': f'{len(wide)} of {len(code)} ({len(wide)/len(code):.1%})', 'code lines over 120 characters': f'{len(wide_lines(root, 120))/len(code):.1%}',
            'characters per code line': f'{sum(map(len, code))/len(code):.1f}', 'private imports between modules': len(private_imports(root)), 'imports against the order of packages': len(upward_imports(root)),
            'private names with two meanings': len(private_meanings(root)), 'names in vidseq.all': len(public_names(root)),
            'public docstrings that begin with a verb': f'{len(docs)-len(missing)} of {len(docs)} ({1-len(missing)/len(docs):.0%})', 'words of the banned list': len(banned_words(root))}


def table(roots):
    columns = [measures(o) for o in roots]
    rows = ['| | ' + ' | '.join(map(str, roots)) + ' |', '|---|' + '---|'*len(roots)]
    return '\n'.join(rows + [f'| {k} | ' + ' | '.join(str(c[k]) for c in columns) + ' |' for k in columns[0]])


if __name__ == '__main__': print(table(sys.argv[1:] or [Path(__file__).parent.parent]))
