"Public names as Markdown: signature, parameters with their docments, and source, which stands in the page."
import ast
import inspect
import re
from dataclasses import dataclass, field
from enum import Enum
from functools import partial, reduce
from textwrap import indent, wrap

from fastcore.docments import docments
from nbdev.doclinks import patch_name


@dataclass
class Entry:
    name: str # 'TimeDistributed', 'Learner.to_amp', 'ImageTuple.show'
    kind: str # class, function, method, value
    obj: object
    node: ast.AST
    source: str
    module: object
    methods: list = field(default_factory=list)

    @property
    def summary(self): return '' if self.kind == 'value' else inspect.cleandoc(ast.get_docstring(self.node) or '')


def entries(source, module):
    "Each public name that a cell of `module` defines: those of `__all__`, and what it patches into classes of others"
    return [o for node in ast.parse(source).body for name in _names(node) if (o := _entry(name, node, source, module))]

def _names(node):
    if isinstance(node, ast.Assign): return [o.id for o in node.targets if isinstance(o, ast.Name)]
    if not isinstance(node, (ast.FunctionDef,ast.ClassDef)): return []
    names = patch_name(node)
    return names if isinstance(names, list) else [names]

def _entry(name, node, source, module):
    first,*rest = name.split('.')
    if name.split('.')[-1].startswith('_') or not (rest or first in module.__all__): return None
    kind = 'method' if rest else {ast.FunctionDef: 'function', ast.ClassDef: 'class'}.get(type(node), 'value')
    entry = Entry(name, kind, reduce(getattr, [first,*rest], module), node, _text(node, source), module)
    if kind == 'class': entry.methods = list(_methods(entry, source))
    return entry

def _methods(entry, source):
    "Those that have a docstring and are called by name"
    for node in entry.node.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith('_') and node.name not in ('forward','encodes') and ast.get_docstring(node):
            yield Entry(f'{entry.name}.{node.name}', 'method', getattr(entry.obj, node.name), node, '', entry.module)

def _text(node, source):
    "With decorators"
    start = min([node.lineno, *(o.lineno for o in getattr(node, 'decorator_list', []))])
    return '\n'.join(source.splitlines()[start-1:node.end_lineno])


def to_markdown(entry, level, link, repo):
    "Heading, signature, docstring, parameters, source; `link` makes links of backticked names, `repo` is where files of the repository are shown"
    links = partial(link, skip={entry.name, *_params(entry)})
    parts = [f'{"#"*level} {entry.name} {{: #{entry.name} .entry data-kind={entry.kind} }}']
    parts += [f'``` {{ .python .signature .no-copy }}\n{signature(entry)}\n```', links(entry.summary), _table(entry, links)]
    if entry.kind == 'value': parts.append(_place(entry, repo))
    elif entry.source: parts.append(_source(entry, repo))
    parts += [to_markdown(o, min(level+1, 6), link, repo) for o in entry.methods]
    return '\n\n'.join(o for o in parts if o)

def signature(entry, width=78):
    "As it is called, with the arguments that are passed on spelled out"
    if entry.kind == 'value': return entry.source
    ps = _params(entry)
    if _callable(entry) is None: return f'class {entry.name}' + (f'({", ".join(map(ast.unparse, entry.node.bases))})' if entry.node.bases else '')
    text = ', '.join(map(_param, ps.values()))
    head = {'class': 'class ', 'function': 'def ', 'method': ''}[entry.kind] + entry.name
    returns = _returns(entry)
    if len(f'{head}({text}){returns}') <= width: return f'{head}({text}){returns}'
    return f'{head}(\n' + indent('\n'.join(wrap_params(ps, width-4)), '    ') + f'\n){returns}'

def wrap_params(ps, width):
    "Lines that break between parameters, never within one"
    return [o.replace('\0', ' ') for o in wrap(', '.join(_param(p).replace(' ', '\0') for p in ps.values()), width, break_long_words=False, break_on_hyphens=False)]

def _callable(entry):
    "What has the signature, if it is of this library: a class may have the `__init__` of another library's"
    if entry.kind == 'value': return None
    if entry.kind != 'class': return entry.obj
    own = next(o for o in entry.obj.__mro__ if '__init__' in vars(o))
    return own.__init__ if own.__module__.partition('.')[0] == entry.module.__name__.partition('.')[0] else None

def _params(entry):
    f = _callable(entry)
    if f is None: return {}
    if not _is_python(f): f = _from_node(entry.node)
    return {k: p for k,p in inspect.signature(f).parameters.items() if k != 'self'}

def _is_python(f): return inspect.isfunction(f) or inspect.ismethod(f) # not one of several, chosen by the types of what it gets

def _from_node(node):
    "A function with the parameters of `node`, annotations as text"
    scope = {}
    exec(f'from __future__ import annotations\ndef f({ast.unparse(node.args)}): pass', scope) # defaults of such functions are literals
    return scope['f']

def _param(p):
    kind = {p.VAR_POSITIONAL: '*', p.VAR_KEYWORD: '**'}.get(p.kind, '')
    return kind + p.name + (f':{_type(p.annotation)}' if p.annotation is not p.empty else '') + (f'={_value(p.default)}' if p.default is not p.empty else '')

def _returns(entry):
    f = _callable(entry)
    if entry.kind == 'class' or not _is_python(f): return ''
    anno = inspect.signature(f).return_annotation
    return '' if anno is inspect.Signature.empty else f'->{_type(anno)}'

def _type(a):
    text = a if isinstance(a, str) else a.__name__ if inspect.isclass(a) and not hasattr(a, '__args__') else str(a)
    return re.sub(r'\b(?:\w+\.)+(?=\w)', '', text)

def _value(o):
    if isinstance(o, partial): return f'partial({", ".join([o.func.__name__, *map(_value, o.args), *(f"{k}={_value(v)}" for k,v in o.keywords.items())])})'
    if hasattr(o, '__name__'): return o.__name__
    if isinstance(o, Enum): return f'{type(o).__name__}.{o.name}'
    text = repr(o)
    return type(o).__name__ if ' at 0x' in text else text

def _table(entry, link):
    "Parameters, if any has a docment"
    f = _callable(entry)
    docs = docments(f, full=True, args_kwargs=True) if _is_python(f) else {}
    rows = [_row(f'`{k}`', docs.get(k), p, link) for k,p in _params(entry).items()]
    ret = docs.get('return')
    if ret and ret.docment: rows.append(_row('*returns*', ret, None, link))
    if not any(d.docment for d in docs.values()): return ''
    return '<div class="docments" markdown>\n\n| | Type | Default | |\n|---|---|---|---|\n' + '\n'.join(rows) + '\n\n</div>'

def _row(name, doc, p, link):
    anno,default = (doc.anno if p is None else p.annotation),(p.default if p is not None else inspect.Parameter.empty)
    cells = [name, '' if anno is inspect.Parameter.empty else f'`{_type(anno)}`', '' if default is inspect.Parameter.empty else f'`{_value(default)}`', link(' '.join((doc.docment if doc and doc.docment else '').split()))]
    return '| ' + ' | '.join(map(table_cell, cells)) + ' |'

def table_cell(text): return re.sub(r'(`[^`]*`)|\|', lambda m: m[1] or r'\|', text.replace('\n', ' '))

def _source(entry, repo):
    return f'<details class="source" data-search-exclude markdown><summary>Source</summary>\n\n``` {{ .python }}\n{entry.source}\n```\n\n{_place(entry, repo)}\n\n</details>'

def _place(entry, repo):
    "Where the module has it, in words that lead to the repository"
    path,text = f'{entry.module.__name__.replace(".", "/")}.py',inspect.getsource(entry.module)
    line = text[:max(text.find(entry.source), 0)].count('\n')+1
    return f'[{path}, line {line}]({repo}/{path}#L{line})'
