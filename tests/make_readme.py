"Write README.md from nbs/index.ipynb; `make prep` calls this, and `test_project.py` compares the two."
import re
from pathlib import Path

from nbconvert import MarkdownExporter
from nbformat import reads

root = Path(__file__).parent.parent


def readme():
    "Return the text of README.md, and its images as {name: bytes}"
    nb = reads((root/'nbs'/'index.ipynb').read_text(encoding='utf-8'), as_version=4)
    nb.metadata['language_info'] = {'name': 'python'}
    nb.cells = [c for c in nb.cells if not c.source.startswith('#| hide')]
    alts = {}  # index of a cell -> alternative text of its figures
    for i,c in enumerate(nb.cells):
        if not (found := re.match(r'#\| fig-alt: (.*)\n', c.source)): continue
        alts[str(i)] = found[1]
        c.source = c.source[found.end():]
    text,resources = MarkdownExporter().from_notebook_node(nb)
    text = text.replace('](images/', '](nbs/images/')  # relative to the root, not to nbs/
    text = re.sub(r'<style>.*?</style>', '', text, flags=re.S)
    def image(m): return f'![{alts.get(m[2], "output")}](README_files/{m[1]})'
    text = re.sub(r'!\[[^\]]*\]\((output_(\d+)[^)]+)\)', image, text)
    return re.sub(r'\n{3,}', '\n\n', text).strip()+'\n', resources['outputs']


if __name__ == '__main__':
    text,images = readme()
    (root/'README.md').write_text(text, encoding='utf-8')
    folder = root/'README_files'
    folder.mkdir(exist_ok=True)
    for old in folder.iterdir(): old.unlink()
    for name,data in images.items(): (folder/name).write_bytes(data)
