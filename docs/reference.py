"Format public names as Markdown: signature, parameters with their docments, and source."
import ast
import inspect
import re
from dataclasses import dataclass, field
from enum import Enum
from functools import partial, reduce
from textwrap import indent, wrap

from fastcore.docments import docments
from nbdev.doclinks import patch_name

empty = inspect.Parameter.empty


@dataclass
class Entry:
    name: str # 'TimeDistributed', 'Path.ls_sorted', 'ImageTuple.show'
    kind: str # class, function, method, value
    obj: object
    node: ast.AST
    source: str
    module: object
    methods: list = field(default_factory=list)

    @property
    def summary(self):
        "Return the docstring"
        return '' if self.kind == 'value' else inspect.cleandoc(ast.get_docstring(self.node) or '')

    @property
    def is_learner_method(self):
        "Return whether the function is also a method of `Learner`, see `vidseq.train.learner.learner_method`"
        return self.kind == 'function' and 'learner_method' in map(ast.unparse, self.node.decorator_list)


def entries(source, module):
    "Return the public names that a cell of `module` defines: names in `__all__`, and patched methods"
    named = [(name, node) for node in ast.parse(source).body for name in defined_names(node)]
    found = [create_entry(name, node, source, module) for name,node in named]
    return [o for o in found if o]

def defined_names(node):
    "Return the names that a statement defines"
    if isinstance(node, ast.Assign): return [o.id for o in node.targets if isinstance(o, ast.Name)]
    if not isinstance(node, (ast.FunctionDef, ast.ClassDef)): return []
    names = patch_name(node)
    return names if isinstance(names, list) else [names]

def create_entry(name, node, source, module):
    "Create the `Entry` of a name, or return None if the name is private"
    first,*rest = name.split('.')
    is_public = not name.split('.')[-1].startswith('_') and (rest or first in module.__all__)
    if not is_public: return None
    kind = 'method' if rest else {ast.FunctionDef: 'function', ast.ClassDef: 'class'}.get(type(node), 'value')
    obj = reduce(getattr, [first, *rest], module)
    entry = Entry(name, kind, obj, node, source_of(node, source), module)
    if kind == 'class': entry.methods = list(public_methods(entry))
    return entry

def public_methods(entry):
    "Yield the methods of a class that have a docstring and are called by name"
    for node in entry.node.body:
        if not isinstance(node, ast.FunctionDef) or not ast.get_docstring(node): continue
        if node.name.startswith('_') or node.name in ('forward', 'encodes'): continue
        name,obj = f'{entry.name}.{node.name}',getattr(entry.obj, node.name)
        yield Entry(name, 'method', obj, node, '', entry.module)

def source_of(node, source):
    "Return the source of a definition with its decorators"
    start = min([node.lineno, *(o.lineno for o in getattr(node, 'decorator_list', []))])
    return '\n'.join(source.splitlines()[start-1:node.end_lineno])


def to_markdown(entry, level, link, repo):
    "Format an entry; `link` adds links to names in backticks, `repo` is the URL of the repository's files"
    links = partial(link, skip={entry.name, *parameters(entry)})
    heading = f'{"#"*level} {entry.name} {{: #{entry.name} .entry data-kind={entry.kind} }}'
    parts = [heading, f'``` {{ .python .signature .no-copy }}\n{signature(entry)}\n```']
    parts += [also_method(entry), links(entry.summary), parameter_table(entry, links)]
    if entry.kind == 'value': parts.append(source_link(entry, repo))
    elif entry.source: parts.append(source_block(entry, repo))
    parts += [to_markdown(o, min(level+1, 6), link, repo) for o in entry.methods]
    return '\n\n'.join(o for o in parts if o)

def also_method(entry): return f'Also a method: `learn.{entry.name}(…)`.' if entry.is_learner_method else ''

def signature(entry, width=78):
    "Format the signature of an entry, with delegated arguments spelled out"
    if entry.kind == 'value': return entry.source
    params = parameters(entry)
    if own_callable(entry) is None: return class_head(entry)
    text = ', '.join(map(format_param, params.values()))
    head = {'class': 'class ', 'function': 'def ', 'method': ''}[entry.kind] + entry.name
    returns = return_type(entry)
    if len(f'{head}({text}){returns}') <= width: return f'{head}({text}){returns}'
    return f'{head}(\n' + indent('\n'.join(wrap_params(params, width-4)), '    ') + f'\n){returns}'

def class_head(entry):
    "Format the first line of a class with its bases"
    bases = ', '.join(map(ast.unparse, entry.node.bases))
    return f'class {entry.name}({bases})' if bases else f'class {entry.name}'

def wrap_params(params, width):
    "Wrap parameters to lines of at most `width` characters, without a break inside a parameter"
    text = ', '.join(format_param(p).replace(' ', '\0') for p in params.values())
    return [o.replace('\0', ' ') for o in wrap(text, width, break_long_words=False, break_on_hyphens=False)]

def own_callable(entry):
    "Return the function that has the signature, or None for an `__init__` inherited from another library"
    if entry.kind == 'value': return None
    if entry.kind != 'class': return entry.obj
    owner = next(o for o in entry.obj.__mro__ if '__init__' in vars(o))
    def package(module): return module.partition('.')[0]
    return owner.__init__ if package(owner.__module__) == package(entry.module.__name__) else None

def parameters(entry):
    "Return the parameters of an entry by name, without `self`"
    f = own_callable(entry)
    if f is None: return {}
    if not is_function(f): f = function_from(entry.node)
    return {k: p for k,p in inspect.signature(f).parameters.items() if k != 'self'}

def is_function(f):
    "Return whether `f` is a Python function, and not e.g. a dispatcher on argument types"
    return inspect.isfunction(f) or inspect.ismethod(f)

def function_from(node):
    "Create a function with the parameters of a definition whose defaults are literals"
    scope = {}
    exec(f'from __future__ import annotations\ndef f({ast.unparse(node.args)}): pass', scope)
    return scope['f']

def format_param(p):
    "Format a parameter as in a signature"
    star = {p.VAR_POSITIONAL: '*', p.VAR_KEYWORD: '**'}.get(p.kind, '')
    anno = '' if p.annotation is p.empty else f':{format_type(p.annotation)}'
    default = '' if p.default is p.empty else f'={format_value(p.default)}'
    return f'{star}{p.name}{anno}{default}'

def return_type(entry):
    "Format the return annotation of an entry"
    f = own_callable(entry)
    if entry.kind == 'class' or not is_function(f): return ''
    anno = inspect.signature(f).return_annotation
    return '' if anno is empty else f'->{format_type(anno)}'

def format_type(a):
    "Format an annotation without its modules"
    is_plain_class = inspect.isclass(a) and not hasattr(a, '__args__')
    text = a.__name__ if is_plain_class else str(a)
    return re.sub(r'\b(?:\w+\.)+(?=\w)', '', text)

def format_value(o):
    "Format a default value: functions by name, objects without their address"
    if isinstance(o, partial):
        kwargs = [f'{k}={format_value(v)}' for k,v in o.keywords.items()]
        return f'partial({", ".join([o.func.__name__, *map(format_value, o.args), *kwargs])})'
    if hasattr(o, '__name__'): return o.__name__
    if isinstance(o, Enum): return f'{type(o).__name__}.{o.name}'
    text = repr(o)
    return type(o).__name__ if ' at 0x' in text else text

def parameter_table(entry, link):
    "Format the parameters as a table, if any has a docment"
    f = own_callable(entry)
    docs = docments(f, full=True, args_kwargs=True) if is_function(f) else {}
    if not any(d.docment for d in docs.values()): return ''
    def row(name, anno, default, title): return parameter_row(title, docs.get(name), anno, default, link)
    rows = [row(k, p.annotation, p.default, f'`{k}`') for k,p in parameters(entry).items()]
    returns = docs.get('return')
    if returns and returns.docment: rows.append(row('return', returns.anno, empty, '*returns*'))
    head = '| | Type | Default | |\n|---|---|---|---|\n'
    return f'<div class="docments" markdown>\n\n{head}' + '\n'.join(rows) + '\n\n</div>'

def parameter_row(title, doc, anno, default, link):
    "Format a parameter or return value as a row: name, type, default, docment"
    anno = '' if anno is empty else f'`{format_type(anno)}`'
    default = '' if default is empty else f'`{format_value(default)}`'
    text = ' '.join((doc.docment or '').split()) if doc else ''
    return '| ' + ' | '.join(map(table_cell, (title, anno, default, link(text)))) + ' |'

def table_cell(text):
    "Escape text for a table cell: `|` outside of code, and line breaks"
    return re.sub(r'(`[^`]*`)|\|', lambda m: m[1] or r'\|', text.replace('\n', ' '))

def source_block(entry, repo):
    "Format the source as a block to unfold"
    head = '<details class="source" data-search-exclude markdown><summary>Source</summary>'
    return f'{head}\n\n``` {{ .python }}\n{entry.source}\n```\n\n{source_link(entry, repo)}\n\n</details>'

def source_link(entry, repo):
    "Format a link to the line of the module that defines the entry"
    path,text = f'{entry.module.__name__.replace(".", "/")}.py',inspect.getsource(entry.module)
    line = text[:max(text.find(entry.source), 0)].count('\n')+1
    return f'[{path}, line {line}]({repo}/{path}#L{line})'
