"""Hostile arguments of downloads: no server is asked."""
import os

from hostile import gives, refuses

from vidseq.datasets.download import download

nowhere = 'http://127.0.0.1:1/set.zip'
for url in ('file:///etc/passwd', 'ftp://127.0.0.1/x', 'data:,x', 'set.zip', '', 'http://', 'http:///x', 'http://a:b/x',
            'http://[::1/x', '//127.0.0.1/x', 'javascript:x', None):
    refuses(f'download: URL {url!r}', lambda p, url=url: download(url, p/'f'), 'not an http or https URL')
for checksum in ('', 'x', 'ab'*16, 'ab'*33, 'g'*64, 'md5:'+'ab'*16, 5, b'x'*32):
    def with_checksum(p, checksum=checksum): return download(nowhere, p/'f', sha256=checksum)
    refuses(f'download: checksum {checksum!r}', with_checksum, 'sha256:', '64 hexadecimal digits')
for size in (-1, 1.5, '5', True, float('nan')):
    refuses(f'download: size {size!r}', lambda p, size=size: download(nowhere, p/'f', size=size), 'size')
for tries in (0, -1, 1.5, '5'):
    def with_tries(p, tries=tries): return download(nowhere, p/'f', tries=tries)
    refuses(f'download: tries {tries!r}', with_tries, 'tries')


def download_to(make, name='f'):
    "Return an action that downloads to `f` after `make(path)` made what has the name `name`"
    def act(folder):
        make(folder/name)
        return download(nowhere, folder/'f', sha256='0'*64)
    return act


refuses('download: to a folder', download_to(lambda o: o.mkdir()), 'f: a folder. Add the name')
refuses('download: to a link to itself', download_to(lambda o: o.symlink_to('f')), 'f: a link, pipe')
for name in ('f.part', 'f.part.json'):
    refuses(f'download: {name} is a folder', download_to(lambda o: o.mkdir(), name), f'{name}: a folder')
    refuses(f'download: {name} is a link', download_to(lambda o: o.symlink_to('g'), name), f'{name}: a link')
if hasattr(os, 'mkfifo'):
    for name in ('f', 'f.part', 'f.part.json'):
        refuses(f'download: {name} is a pipe', download_to(os.mkfifo, name), f'{name}: a link, pipe')
    refuses('download: to a device', lambda p: download(nowhere, '/dev/null'), '/dev/null: a link, pipe')


def keep_existing(folder):
    "Return the content of an existing file with another checksum after a download of it"
    (folder/'f').write_bytes(b'mine')
    try: download(nowhere, folder/'f', sha256='0'*64)
    except OSError as e: return (folder/'f').read_bytes(), 'exists, but is another file' in str(e)


gives('download: an existing file is kept', keep_existing, (b'mine', True))
def inside_a_file(folder):
    (folder/'f').touch()
    return download(nowhere, folder/'f'/'g')


refuses('download: inside a file', inside_a_file, 'f', error=OSError)
