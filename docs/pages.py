"Convert the notebooks and Markdown files of the project to the pages of its site."
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

# Packages by the first digit of their notebooks
packages = {'0': 'Files', '1': 'Video', '2': 'Data sets', '3': 'Data', '4': 'Models', '5': 'Training',
            '6': 'Evaluation', '7': 'Deployment', '8': 'Report', '9': 'Command line'}
# Order of the tutorials; others follow by name
tutorials = ['your_videos', 'moments', 'timelines', 'image_sequences', 'timesformer', 'honest_scores',
             'image_to_video', 'speed_memory', 'ship_it']
notes = {'docs/architecture.md': 'architecture.md', 'docs/limits.md': 'limits.md',
         'docs/migration.md': 'migration.md', 'benchmarks/README.md': 'benchmarks.md',
         'CHANGELOG.md': 'changelog.md', 'CONTRIBUTING.md': 'contributing.md'}
not_shown = {'hide', 'export', 'exporti', 'default_exp'} # cells with these directives
known = not_shown | {'exports', 'slow', 'notest', 'eval', 'echo', 'hide_input', 'hide_output', 'fig-alt'}


class BuildError(ValueError): "Report broken links, failed cells, and figures without alternative text"


@dataclass
class Page:
    src: Path
    to: str # Path of the Markdown file in the site
    section: str
    cells: list = field(default_factory=list) # Cells of a notebook; a Markdown file is one cell
    module: object = None # Module that a notebook exports
    entries: dict = field(default_factory=dict) # Index of a cell -> the entries that it defines

    @property
    def text(self): return ''.join(self.cells[0]['source'])
    @property
    def title(self): return re.search(r'^# (.*)', self.text, re.M)[1]
    @property
    def lead(self): return next(iter(re.findall(r'^> (.*)', self.text, re.M)), '')
    def all_entries(self): return [o for e in self.entries.values() for o in e]
    def all_names(self): return [o for e in self.all_entries() for o in (e, *e.methods)]


def find_pages(root):
    "Yield all pages in reading order"
    nbs = root/'nbs'
    yield from (notebook_page(p, 'index.md', 'Home') for p in nbs.glob('index.ipynb'))
    rank = {f'{o}.ipynb': i for i,o in enumerate(tutorials)}
    found = sorted(nbs.glob('tutorials/*.ipynb'), key=lambda p: (rank.get(p.name, len(rank)), p.name))
    yield from (notebook_page(p, f'tutorials/{p.stem}.md', 'Tutorials') for p in found)
    yield from (notebook_page(p, 'cookbook.md', 'Cookbook') for p in nbs.glob('cookbook.ipynb'))
    yield from map(reference_page, sorted(nbs.glob('[0-9]*.ipynb')))
    yield from (markdown_page(root/src, to) for src,to in notes.items() if (root/src).exists())

def notebook_page(path, to, section):
    "Create the page of a notebook"
    return Page(path, to, section, json.loads(path.read_text(encoding='utf-8'))['cells'])

def markdown_page(path, to):
    "Create the page of a Markdown file"
    return Page(path, to, 'Notes', [dict(cell_type='markdown', source=path.read_text(encoding='utf-8'))])

def reference_page(path):
    "Create the page of a notebook that exports a module, with the entries of its public names"
    page = notebook_page(path, '', packages[path.stem[0]])
    name = next(d['default_exp'] for c in page.cells if 'default_exp' in (d := split_cell(c)[0]))
    page.to,page.module = f'reference/{name}.md',import_module(f'vidseq.{name}')
    for i,c in enumerate(page.cells):
        directives,code = split_cell(c)
        # a cell with exporti has no public names but methods that it patches into other classes
        is_exported = directives.keys() & {'export', 'exports', 'exporti'}
        if is_exported and (found := entries(code, page.module)): page.entries[i] = found
    return page

def split_cell(cell):
    "Return the directives of a cell, e.g. `{'fig-alt': 'Six clips'}`, and its code without them"
    source = ''.join(cell['source'])
    if cell['cell_type'] != 'code': return {},source
    head = re.match(r'(?:[ \t]*#\|.*(?:\n|$))*', source)[0]
    lines = [line.split('#|')[1].strip() for line in head.splitlines()]
    return dict(re.match(r'([\w-]+):?\s*(.*)', o).groups() for o in lines),source[len(head):].strip('\n')


class Site:
    "Convert the project in `root` to pages in Markdown, and collect their problems in `problems`"
    def __init__(self, root):
        config = ConfigParser(delimiters=['='])
        config.read(root/'settings.ini', encoding='utf-8')
        self.root,self.repo,self.problems = root,f'{config["DEFAULT"]["git_url"]}/blob/main',[]
        self.pages = list(find_pages(root))
        self.by_src = {p.src.resolve(): p for p in self.pages}
        self.names = {o.name: p.to for p in self.pages for o in p.all_names()}
        self.linked = dict(self.linked_names())

    def linked_names(self):
        "Yield each form of a name that prose may use, and the name of its entry"
        star = import_module('vidseq.all')
        for entry in (o for p in self.pages for o in p.all_names()):
            owner,_,last = entry.name.rpartition('.')
            if owner or hasattr(star, entry.name): yield entry.name,entry.name
            if owner and '_' in last: yield last,entry.name # specific enough without its class
            if owner == 'Learner': yield f'learn.{last}',entry.name
            if entry.is_learner_method: yield f'learn.{entry.name}',entry.name

    def write(self, folder):
        "Write all pages and their images to `folder`; raise `BuildError` if there are problems"
        for page in self.pages: write_text(folder/page.to, self.to_markdown(page, folder))
        write_text(folder/'tutorials/index.md', self.tutorials_index())
        write_text(folder/'reference/index.md', self.reference_index())
        if self.problems: raise BuildError('\n'.join(self.problems))

    # Markdown

    def to_markdown(self, page, folder):
        "Convert a page to Markdown with its front matter, and write its images to `folder`"
        shown = self.shown_cells(page, folder)
        if page.entries: shown.insert(1, self.contents(page))
        text = '\n\n'.join(filter(None, shown))
        if page.section == 'Home': text = self.hero(text)
        return f'{front_matter(page)}\n\n{text}\n'

    def shown_cells(self, page, folder):
        "Convert the cells of a page; entries are one level deeper after the first section heading"
        shown,level = [],2
        for i,cell in enumerate(page.cells):
            if cell['cell_type'] == 'markdown':
                shown.append(self.prose(cell['source'], page, folder))
                if re.search(r'^## ', ''.join(cell['source']), re.M): level = 3
            elif cell['cell_type'] == 'code':
                link = partial(self.link_names, page=page)
                shown += [to_markdown(o, level, link, self.repo) for o in page.entries.get(i, [])]
                shown += self.code(i, cell, page, folder)
        return shown

    def hero(self, text):
        "Arrange the home page's title, buttons and first image side by side"
        shown = {next(iter(o)) for o in self.nav()}
        targets = {'Tutorials': 'tutorials/index.md', 'Cookbook': 'cookbook.md',
                   'Reference': 'reference/index.md'}
        buttons = ' '.join(f'[{k}]({v}){{ .md-button }}' for k,v in targets.items() if k in shown)
        def arrange(m):
            return (f'<div class="hero" markdown>\n<div markdown>\n\n{m[1]}\n{buttons}\n\n'
                    f'</div>\n\n{m[2]}\n</div>\n')
        return re.sub(r'^(# .*\n+> .*\n)\s*(!\[.*\)\n)', arrange, text)

    def contents(self, page):
        "List the names that a module defines"
        names = ' · '.join(f'[`{e.name}`](#{e.name})' for e in page.all_entries())
        text = f'`{page.module.__name__}`: {names}'
        return f'<div class="contents" data-search-exclude markdown>\n\n{text}\n\n</div>'

    def prose(self, source, page, folder):
        "Convert Markdown, with links to pages and to entries outside of fenced code"
        pieces = re.split(r'(^ *```.*?^ *```[^\n]*$)', ''.join(source), flags=re.M|re.S)
        def convert(text): return self.link_names(self.links(separate_lists(text), page, folder), page)
        return ''.join(o if i%2 else convert(o) for i,o in enumerate(pieces))

    def link_names(self, text, page, skip=()):
        "Link names in backticks, e.g. `moving_shapes()`, to their entries"
        def link(m):
            if m[1] is None: return m[0] # already a link
            name = self.linked.get(m[1])
            if name is None or {name, m[1]} & set(skip): return m[0]
            return f'[{m[0]}]({relative_path(self.names[name], page.to)}#{name})'
        def convert(line):
            if line.startswith(('#', '    ')): return line # headings and indented code
            return re.sub(r'\[[^\]]*\]\([^)]*\)|`([A-Za-z_][\w.]*)(?:\([^`]*\))?`', link, line)
        return '\n'.join(map(convert, text.split('\n')))

    def links(self, text, page, folder):
        "Convert the links and images of Markdown"
        pattern = r'(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(((?:[^()\s]|\([^()]*\))+)\)'
        return re.sub(pattern, lambda m: self.link(m, page, folder), text)

    def link(self, m, page, folder):
        "Point a link to a file of the project at its page or at the repository, and copy an image"
        mark,text,to = m.groups()
        if mark and not text.strip(): self.problem(page, f'no alternative text in ![]({to}). Add it.')
        path,_,anchor = to.removeprefix(f'{self.repo}/').partition('#')
        if '://' in path: return m[0]
        found = self.find_file(path, page)
        target = found and self.by_src.get(found.resolve())
        if target:
            url = relative_path(target.to, page.to) if path else ''
            return f'[{text}]({url}{self.anchor(anchor)})'
        if not found:
            self.problem(page, f'broken link [{text}]({to}). Link to a file in the project.')
            return m[0]
        if mark: return f'![{text}]({self.save(found.read_bytes(), f"images/{found.name}", page, folder)})'
        return f'[{text}]({self.repo}/{os.path.relpath(found, self.root)})'

    def find_file(self, path, page):
        "Return the file of a link, relative to the page or to the root; the page itself without a path"
        if not path: return page.src
        return next((o for o in (page.src.parent/path, self.root/path) if o.exists()), None)

    def problem(self, page, text): self.problems.append(f'{page.src.name}: {text}')

    def anchor(self, name):
        "Convert Jupyter's anchor of a heading to the site's lower-case one; public names stay as they are"
        if not name: return ''
        if name in self.names: return f'#{name}'
        return '#' + re.sub(r'[-\s]+', '-', re.sub(r'[^\w\s-]', '', name).strip().lower())

    def save(self, data, to, page, folder):
        "Write an image and return its path relative to `page`"
        (folder/to).parent.mkdir(parents=True, exist_ok=True)
        (folder/to).write_bytes(data)
        return relative_path(to, page.to)

    # Cells of code

    def code(self, i, cell, page, folder):
        "Convert the source and the outputs of a code cell, as its directives require"
        directives,source = split_cell(cell)
        unknown = sorted(directives.keys() - known)
        for o in unknown: self.problem(page, f'unknown directive #| {o}. Correct it.')
        if directives.keys() & not_shown: return []
        source = re.sub(r'^%.*\n?', '', source, flags=re.M).strip('\n')
        quiet = directives.get('echo') == 'false' or 'hide_input' in directives
        shown = [] if quiet or not source else [fence(source, '.python')]
        if 'hide_output' in directives: return shown
        name,alt = f'{page.src.stem}-{i}',directives.get('fig-alt', '')
        outputs = enumerate(join_outputs(cell['outputs']))
        return shown + [self.output(o, f'{name}-{k}', alt, page, folder) for k,o in outputs]

    def output(self, out, name, alt, page, folder):
        "Convert an output of a cell: an image, else HTML, else Markdown, else text"
        kind,data = out['output_type'],out.get('data', {})
        if kind == 'error': self.problem(page, f'saved {out["ename"]}: {out["evalue"]}. Run it again.')
        if kind == 'stream': return text_output(out['text']) if out['name'] == 'stdout' else ''
        for mime in ('image/jpeg', 'image/png'):
            if mime not in data: continue
            image = base64.b64decode(''.join(data[mime]))
            return self.figure(image, f'{name}.{mime[6:]}', alt, page, folder)
        if 'text/html' in data: return self.html(''.join(data['text/html']), name, alt)
        if 'text/markdown' in data: return self.prose(data['text/markdown'], page, folder)
        return text_output(data['text/plain']) if 'text/plain' in data else ''

    def figure(self, data, name, alt, page, folder):
        "Write an image and return the Markdown that shows it"
        width,height = Image.open(io.BytesIO(data)).size
        self.require_alt(alt, name)
        to = self.save(data, f'images/{name}', page, folder)
        return f'![{escape_attr(alt)}]({to}){{ .figure width={width} height={height} loading=lazy }}'

    def html(self, text, name, alt):
        "Convert an output in HTML, e.g. a table or a player, and add the alternative text to its images"
        text,without_alt = remove_style(text),r'<img(?![^>]* alt=)'
        if re.search(without_alt, text): self.require_alt(alt, name)
        text = re.sub(without_alt, lambda m: f'<img alt="{escape_attr(alt)}"', text)
        return f'<div class="output html">\n{text}\n</div>'

    def require_alt(self, alt, name):
        "Record a problem if a figure has no alternative text"
        if not alt: self.problems.append(f'{name}: no alternative text. Add `#| fig-alt:` to the cell.')

    # Overviews

    def in_section(self, section): return [p for p in self.pages if p.section == section]

    def tutorials_index(self):
        "List the tutorials"
        def item(p): return f'- **[{p.title}]({relative_path(p.to, "tutorials/")})**<br>{p.lead}'
        head = '# Tutorials\n\n> Notebooks that generate their own videos and run from top to bottom.\n\n'
        return head + '\n'.join(map(item, self.in_section('Tutorials')))

    def reference_index(self):
        "List the modules of each package and their names"
        head = ('# Reference\n\n> The names that `from vidseq.all import *` imports, by package and module. '
                'Each page is the notebook of a module: definitions, examples and tests.\n')
        sections = [self.package_index(o) for o in packages.values()]
        return '\n'.join([head, *(o for section in sections for o in section)])

    def package_index(self, section):
        "List the modules of a package and their names"
        return [f'\n## {section}\n', *map(self.module_index, self.in_section(section))]

    def module_index(self, page):
        "List the names of a module with their docstrings"
        to,index = relative_path(page.to, 'reference/'),Page(None, 'reference/index.md', '')
        def row(e):
            text = table_cell(self.link_names(e.summary, index, skip={e.name}))
            return f'| [`{e.name}`]({to}#{e.name}) | {text} |'
        table = '\n'.join(['| | |', '|---|---|', *map(row, page.all_entries())])
        head = f'### [{page.title}]({to})\n\n{page.lead}'
        return f'{head}\n\n<div class="names" markdown>\n\n{table}\n\n</div>\n'

    def nav(self):
        "Return the navigation: sections, and the pages of each"
        def pages(section): return [{p.title: p.to} for p in self.in_section(section)]
        reference = ['reference/index.md', *({o: pages(o)} for o in packages.values())]
        sections = {'Home': 'index.md', 'Tutorials': ['tutorials/index.md', *pages('Tutorials')],
                    'Cookbook': 'cookbook.md', 'Reference': reference, 'Notes': pages('Notes')}
        written = {p.to for p in self.pages}
        return [{k: v} for k,v in sections.items() if not isinstance(v, str) or v in written]


def front_matter(page):
    "Return the YAML front matter of a page"
    lines = [f'title: {json.dumps(page.title)}', f'description: {json.dumps(page.lead)}']
    if page.entries: lines.append('search:\n  boost: 2')
    if page.section in ('Home', 'Cookbook'): lines.append('hide:\n  - navigation')
    return '\n'.join(['---', *lines, '---'])

def write_text(path, text):
    "Write a text file, and create its folder"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding='utf-8')

def relative_path(to, start):
    "Return the path of the page `to` relative to the page `start`"
    return os.path.relpath(to, os.path.dirname(start) or '.').replace(os.sep, '/')

def separate_lists(text):
    "Insert a blank line before each list, which Python-Markdown requires"
    return re.sub(r'(?m)^((?![-*+] |\d+\. )\S.*)\n(?=[-*+] |\d+\. )', r'\1\n\n', text)

def escape_attr(text):
    "Escape text for an HTML attribute in Markdown"
    return re.sub(r'\s+', ' ', text).replace('"', '&quot;').replace('[', '(').replace(']', ')')

def remove_style(text): return re.sub(r'<style.*?</style>', '', text, flags=re.S).strip()

def is_finished_progress(output):
    "Return whether an output is a progress bar, or is empty without its style"
    html = remove_style(''.join(output.get('data', {}).get('text/html', 'x')))
    return '<progress' in html or not re.sub(r'</?div>', '', html)

def join_outputs(outputs):
    "Remove progress bars, and join the text that was printed before and after them"
    joined = []
    for o in outputs:
        if is_finished_progress(o): continue
        is_continued = joined and o['output_type'] == 'stream' and joined[-1].get('name') == o['name']
        if is_continued: joined[-1] = {**o, 'text': ''.join(joined[-1]['text']) + ''.join(o['text'])}
        else: joined.append(o)
    return joined

def text_output(text):
    "Convert printed text without terminal colors; a single line may wrap, several lines keep their columns"
    text = re.sub(r'\x1B(?:[@-Z\\-_]|\[[0-?]*[ -/]*[@-~])', '', ''.join(text)).rstrip()
    return fence(text, '.text .output .no-copy' + ('' if '\n' in text else ' .line'))

def fence(text, classes):
    "Fence text as a code block with these classes"
    mark = max(['```', *(o+'`' for o in re.findall('`{3,}', text))], key=len)
    return f'{mark} {{ {classes} }}\n{text}\n{mark}' if text else ''
