"Notebooks and Markdown files of the project as the pages of its site: what is shown of a cell, where links lead, what pictures are called."
import base64
import io
import json
import os
import re
from configparser import ConfigParser
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from pathlib import Path

from PIL import Image
from reference import entries, table_cell, to_markdown

# The packages, by the first digit of their notebooks, and the order of the tutorials; others follow by name
parts = {'0': 'Files', '1': 'Video', '2': 'Data sets', '3': 'Data', '4': 'Models', '5': 'Training', '6': 'Evaluation', '7': 'Deployment', '8': 'Report', '9': 'Command'}
tutorials = ['your_videos', 'image_sequences', 'timesformer', 'honest_scores', 'image_to_video', 'speed_memory', 'ship_it']
notes = {'docs/architecture.md': 'architecture.md', 'docs/limits.md': 'limits.md', 'docs/migration.md': 'migration.md', 'benchmarks/README.md': 'benchmarks.md', 'CHANGELOG.md': 'changelog.md', 'CONTRIBUTING.md': 'contributing.md'}
not_shown = {'hide', 'export', 'exporti', 'default_exp'} # cells with these directives
known = not_shown | {'exports', 'slow', 'notest', 'eval', 'echo', 'hide_input', 'hide_output', 'fig-alt'} # all that a page knows what to do about


class BuildError(ValueError): "What is wrong with the pages: a link that leads nowhere, a cell that failed, a figure without words"


@dataclass
class Page:
    src: Path
    to: str # Its Markdown file in the site
    section: str
    cells: list = field(default_factory=list) # Of a notebook; a Markdown file is one cell
    module: object = None # What a notebook exports to
    entries: dict = field(default_factory=dict) # Number of a cell -> what it defines

    @property
    def text(self): return ''.join(self.cells[0]['source'])
    @property
    def title(self): return re.search(r'^# (.*)', self.text, re.M)[1]
    @property
    def lead(self): return next(iter(re.findall(r'^> (.*)', self.text, re.M)), '')
    def all_entries(self): return [o for e in self.entries.values() for o in e]


def find_pages(root):
    "Every page, in the order of reading"
    nbs = root/'nbs'
    yield from (_notebook(p, 'index.md', 'Home') for p in nbs.glob('index.ipynb'))
    rank = {f'{o}.ipynb': i for i,o in enumerate(tutorials)}
    yield from (_notebook(p, f'tutorials/{p.stem}.md', 'Tutorials') for p in sorted(nbs.glob('tutorials/*.ipynb'), key=lambda p: (rank.get(p.name, len(rank)), p.name)))
    yield from (_notebook(p, 'cookbook.md', 'Cookbook') for p in nbs.glob('cookbook.ipynb'))
    for p in sorted(nbs.glob('[0-9]*.ipynb')): yield _reference(p)
    for src,to in notes.items():
        if (root/src).exists(): yield Page(root/src, to, 'Notes', [dict(cell_type='markdown', source=(root/src).read_text(encoding='utf-8'))])

def _notebook(path, to, section): return Page(path, to, section, json.loads(path.read_text(encoding='utf-8'))['cells'])

def _reference(path):
    page = _notebook(path, '', parts[path.stem[0]])
    name = next(d['default_exp'] for c in page.cells if 'default_exp' in (d := split(c)[0]))
    page.to,page.module = f'reference/{name}.md',import_module(f'vidseq.{name}')
    for i,c in enumerate(page.cells):
        directives,code = split(c)
        if directives.keys() & {'export','exports'} and (found := entries(code, page.module)): page.entries[i] = found
    return page


def split(cell):
    "The directives at the head of a cell, `#| fig-alt: Six clips`, and the code without them"
    source = ''.join(cell['source'])
    if cell['cell_type'] != 'code': return {},source
    head = re.match(r'(?:[ \t]*#\|.*(?:\n|$))*', source)[0]
    return dict(re.match(r'([\w-]+):?\s*(.*)', line.split('#|')[1].strip()).groups() for line in head.splitlines()),source[len(head):].strip('\n')


class Site:
    "The pages of the project in `root`, as Markdown; what is wrong with them is gathered in `problems`"
    def __init__(self, root):
        config = ConfigParser(delimiters=['='])
        config.read(root/'settings.ini', encoding='utf-8')
        self.root,self.repo,self.problems = root,f'{config["DEFAULT"]["git_url"]}/blob/main',[]
        self.pages = list(find_pages(root))
        self.by_src = {p.src.resolve(): p for p in self.pages}
        self.names = {o.name: p.to for p in self.pages for e in p.all_entries() for o in (e, *e.methods)}
        self.linked = dict(self.called())

    def called(self):
        "What prose calls a name -> the name: those that `vidseq.all` brings, and methods whose name says whose they are"
        every = [o for p in self.pages for e in p.all_entries() for o in (e, *e.methods)]
        for o in every:
            first,_,last = o.name.rpartition('.')
            if o.kind != 'method' and hasattr(import_module('vidseq.all'), o.name) or first: yield o.name,o.name
            if first and '_' in last: yield last,o.name
            if first == 'Learner': yield f'learn.{last}',o.name
            if _takes_learner(o): yield f'learn.{o.name}',o.name

    def write(self, folder):
        "All pages as Markdown, with their pictures"
        for page in self.pages: _write(folder/page.to, self.to_markdown(page, folder))
        for to,text in self.overviews(): _write(folder/to, text)
        if self.problems: raise BuildError('\n'.join(self.problems))

    # Markdown

    def to_markdown(self, page, folder):
        shown,level = [],2
        for i,cell in enumerate(page.cells):
            if cell['cell_type'] == 'markdown':
                shown.append(self.prose(cell['source'], page, folder))
                if re.search(r'^## ', ''.join(cell['source']), re.M): level = 3
            elif cell['cell_type'] == 'code': shown += [to_markdown(o, level, partial(self.link_names, page=page), self.repo) for o in page.entries.get(i, [])] + self.code(i, cell, page, folder)
        if page.entries: shown.insert(1, self.contents(page))
        boost = 'search:\n  boost: 2\n' if page.entries else ''
        hide = 'hide:\n  - navigation\n' if page.section in ('Home','Cookbook') else ''
        text = '\n\n'.join(filter(None, shown))
        if page.section == 'Home': text = self.hero(text)
        return f'---\ntitle: {json.dumps(page.title)}\ndescription: {json.dumps(page.lead)}\n{boost}{hide}---\n\n{text}\n'

    def hero(self, text):
        "Title and sentence, ways on, and the first picture beside them"
        ways = ' '.join(f'[{k}]({v}){{ .md-button }}' for k,v in (('Tutorials','tutorials/index.md'), ('Cookbook','cookbook.md'), ('Reference','reference/index.md')) if k in {next(iter(o)) for o in self.nav()})
        return re.sub(r'^(# .*\n+> .*\n)\s*(!\[.*\)\n)', lambda m: f'<div class="hero" markdown>\n<div markdown>\n\n{m[1]}\n{ways}\n\n</div>\n\n{m[2]}\n</div>\n', text)

    def contents(self, page):
        also = [o for o in page.module.__all__ if o in self.names and self.names[o] != page.to]
        names = [e.name for e in page.all_entries()]
        text = f'`{page.module.__name__}`: ' + ' · '.join(f'[`{o}`](#{o})' for o in names)
        if also: text += '; and from other pages ' + ' · '.join(f'[`{o}`]({_relative(self.names[o], page.to)}#{o})' for o in also)
        return f'<div class="contents" data-search-exclude markdown>\n\n{text}\n\n</div>'

    def prose(self, source, page, folder):
        pieces = re.split(r'(^ *```.*?^ *```[^\n]*$)', ''.join(source), flags=re.M|re.S)
        return ''.join(o if i%2 else self.link_names(self.links(_lists(o), page, folder), page) for i,o in enumerate(pieces))

    def link_names(self, text, page, skip=()):
        "`moving_shapes()` in backticks becomes a link to where it is explained"
        def link(m):
            if m[1] is None: return m[0] # a link already
            name = self.linked.get(m[1])
            if name is None or {name, m[1]} & set(skip): return m[0]
            return f'[{m[0]}]({_relative(self.names[name], page.to)}#{name})'
        return '\n'.join(o if o.startswith(('#','    ')) else re.sub(r'\[[^\]]*\]\([^)]*\)|`([A-Za-z_][\w.]*)(?:\([^`]*\))?`', link, o) for o in text.split('\n'))

    def links(self, text, page, folder):
        return re.sub(r'(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(((?:[^()\s]|\([^()]*\))+)\)', lambda m: self.link(m, page, folder), text)

    def link(self, m, page, folder):
        "A link between files of the project as one between pages, or to where the file is shown; a picture as one of the site"
        mark,words,to = m.groups()
        if mark and not words.strip(): self.problems.append(f'{page.src.name}: the picture {to} has no words for those who do not see it.')
        path,_,anchor = to.removeprefix(f'{self.repo}/').partition('#')
        if '://' in path: return m[0]
        found = page.src if not path else next((o for o in (page.src.parent/path, self.root/path) if o.exists()), None)
        target = found and self.by_src.get(found.resolve())
        if target: return f'[{words}]({_relative(target.to, page.to) if path else ""}{self.anchor(anchor)})'
        if not found: self.problems.append(f'{page.src.name}: [{words}]({to}) leads nowhere.')
        elif mark: return f'![{words}]({self.save(found.read_bytes(), f"images/{found.name}", page, folder)})'
        return f'{mark}[{words}]({self.repo}/{os.path.relpath(found, self.root) if found else path})'

    def anchor(self, name):
        "Jupyter calls a heading by its words and hyphens, the site in lower case; public names are kept"
        if not name: return ''
        return '#' + (name if name in self.names else re.sub(r'[-\s]+', '-', re.sub(r'[^\w\s-]', '', name).strip().lower()))

    def save(self, data, to, page, folder):
        "A picture among the pages; how `page` calls it"
        (folder/to).parent.mkdir(parents=True, exist_ok=True)
        (folder/to).write_bytes(data)
        return _relative(to, page.to)

    # Cells of code

    def code(self, i, cell, page, folder):
        directives,source = split(cell)
        self.problems += [f'{page.src.name}: no page knows what `#| {o}` means.' for o in sorted(directives.keys() - known)]
        if directives.keys() & not_shown: return []
        source = re.sub(r'^%.*\n?', '', source, flags=re.M).strip('\n')
        quiet = directives.get('echo') == 'false' or 'hide_input' in directives
        parts = [] if quiet or not source else [_fence(source, '.python')]
        if 'hide_output' not in directives: parts += [self.output(o, f'{page.src.stem}-{i}-{k}', directives.get('fig-alt', ''), page, folder) for k,o in enumerate(_joined(cell['outputs']))]
        return parts

    def output(self, out, name, alt, page, folder):
        "The richest form of what a cell left that a page can show"
        kind,data = out['output_type'],out.get('data', {})
        if kind == 'error': self.problems.append(f'{page.src.name}: a saved cell failed, {out["ename"]}: {out["evalue"]}')
        if kind == 'stream': return _output(out['text']) if out['name'] == 'stdout' else ''
        for mime in ('image/jpeg','image/png'):
            if mime in data: return self.figure(base64.b64decode(''.join(data[mime])), f'{name}.{mime[6:]}', alt, page, folder)
        if 'text/html' in data: return self.html(''.join(data['text/html']), name, alt)
        if 'text/markdown' in data: return self.prose(data['text/markdown'], page, folder)
        return _output(data['text/plain']) if 'text/plain' in data else ''

    def figure(self, data, name, alt, page, folder):
        width,height = Image.open(io.BytesIO(data)).size
        self.needs_alt(alt, name)
        return f'![{_attr(alt)}]({self.save(data, f"images/{name}", page, folder)}){{ .figure width={width} height={height} loading=lazy }}'

    def html(self, text, name, alt):
        "Tables and players"
        text = _no_style(text)
        if re.search(r'<img(?![^>]* alt=)', text):
            self.needs_alt(alt, name)
            text = re.sub(r'<img(?![^>]* alt=)', lambda m: f'<img alt="{_attr(alt)}"', text)
        return f'<div class="output html">\n{text}\n</div>'

    def needs_alt(self, alt, name):
        if not alt: self.problems.append(f'Figure {name} has no `#| fig-alt:` at the head of its cell that says what is to be seen.')

    # Pages that list others

    def overviews(self):
        yield 'tutorials/index.md', '# Tutorials\n\n> Each is a notebook that runs from top to bottom on videos that it draws itself.\n\n' + '\n'.join(f'- **[{p.title}]({_relative(p.to, "tutorials/")})**<br>{p.lead}' for p in self.pages if p.section == 'Tutorials')
        rows = []
        for part in parts.values():
            rows.append(f'\n## {part}\n')
            rows += [self.row(p) for p in self.pages if p.section == part]
        yield 'reference/index.md', '# Reference\n\n> All that `from vidseq.all import *` brings, module by module. Each page is the notebook that its module is made of: definition, use, test.\n' + '\n'.join(rows)

    def row(self, page):
        names = '\n'.join(f'| [`{e.name}`]({_relative(page.to, "reference/")}#{e.name}) | {table_cell(self.link_names(e.summary, Page(None, "reference/index.md", ""), skip={e.name}))} |' for e in page.all_entries())
        return f'### [{page.title}]({_relative(page.to, "reference/")})\n\n{page.lead}\n\n<div class="names" markdown>\n\n| | |\n|---|---|\n{names}\n\n</div>\n'

    def nav(self):
        of = lambda section: [{p.title: p.to} for p in self.pages if p.section == section]
        sections = [('Home', 'index.md'), ('Tutorials', ['tutorials/index.md', *of('Tutorials')]), ('Cookbook', 'cookbook.md'), ('Reference', ['reference/index.md', *({o: of(o)} for o in parts.values())]), ('Notes', of('Notes'))]
        return [{k: v} for k,v in sections if not isinstance(v, str) or any(p.to == v for p in self.pages)]


def _takes_learner(entry):
    "Whether a function is a method of `Learner` as well: see `learner_method`"
    return entry.kind == 'function' and entry.source.startswith('@learner_method')

def _write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')

def _relative(to, start): return os.path.relpath(to, os.path.dirname(start) or '.').replace(os.sep, '/')
def _lists(text): return re.sub(r'(?m)^((?![-*+] |\d+\. )\S.*)\n(?=[-*+] |\d+\. )', r'\1\n\n', text) # Python-Markdown wants a blank line before a list
def _attr(text): return re.sub(r'\s+', ' ', text).replace('"', '&quot;').replace('[', '(').replace(']', ')')

def _no_style(text): return re.sub(r'<style.*?</style>', '', text, flags=re.S).strip()

def _joined(outputs):
    "Outputs without finished progress bars; what was printed before and after one is one text"
    joined = []
    for o in outputs:
        html = _no_style(''.join(o.get('data', {}).get('text/html', 'x')))
        if '<progress' in html or not re.sub(r'</?div>', '', html): continue
        if joined and o['output_type'] == 'stream' and joined[-1].get('name') == o['name']: joined[-1] = {**o, 'text': ''.join(joined[-1]['text']) + ''.join(o['text'])}
        else: joined.append(o)
    return joined

def _output(text):
    "Text that a cell left: one long line is wrapped, several keep their columns"
    text = re.sub(r'\x1B(?:[@-Z\\-_]|\[[0-?]*[ -/]*[@-~])', '', ''.join(text)).rstrip()
    return _fence(text, '.text .output .no-copy' + ('' if '\n' in text else ' .line'))

def _fence(text, classes):
    mark = max(['```', *(o+'`' for o in re.findall('`{3,}', text))], key=len)
    return f'{mark} {{ {classes} }}\n{text}\n{mark}' if text else ''
