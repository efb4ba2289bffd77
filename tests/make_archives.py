"Write archives for tests, safe and hostile ones: rar (stored, or with any claimed content), zip and tar"
import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib


def _block(kind, flags, body):
    head = struct.pack('<BHH', kind, flags, len(body)+7) + body
    return struct.pack('<H', zlib.crc32(head) & 0xffff) + head


def rar_file(name, data, mode=0o100644, method=0x30, flags=0, size=None, crc=None):
    "Return a member of a RAR 3 archive that stores `data`; `size` and `crc` are those of the unpacked file"
    name = name.encode()
    if crc is None: crc = zlib.crc32(data)
    if size is None: size = len(data)
    fields = struct.pack('<IIBIIBBHI', len(data), size, 3, crc, 0, 29, method, len(name), mode)
    return _block(0x74, 0x8000|flags, fields+name) + data


def rar(*members, main=0, end=0x4000):
    "Return a RAR 3 archive; `main` and `end` are the flags of its first and last block"
    first = _block(0x73, main, bytes(6))
    last = _block(0x7b, end, b'')
    return b'Rar!\x1a\x07\0' + first + b''.join(members) + last


def make_rar(files): return rar(*(rar_file(n, d) for n,d in files))


def _vint(n):
    "Return a number as RAR 5 writes it: 7 bits in a byte, the lowest first"
    return bytes([n]) if n < 128 else bytes([n%128 + 128]) + _vint(n//128)


def _block5(kind, body, extra=b'', data=b''):
    flags = bool(extra) + 2*bool(data)
    sizes = (_vint(len(extra)) if extra else b'') + (_vint(len(data)) if data else b'')
    head = _vint(kind) + _vint(flags) + sizes + body + extra
    head = _vint(len(head)) + head
    return struct.pack('<I', zlib.crc32(head)) + head + data


def rar5_file(name, data=b'', size=None, redirect=None):
    "Return a member of a RAR 5 archive; `redirect` has the kind of a link or copy and its target"
    name,extra = name.encode(),b''
    if redirect:
        target = redirect[1].encode()
        record = _vint(5) + _vint(redirect[0]) + _vint(0) + _vint(len(target)) + target
        extra = _vint(len(record)) + record
    fields = _vint(4) + _vint(len(data) if size is None else size) + _vint(0o100644)
    fields += struct.pack('<I', zlib.crc32(data)) + _vint(0) + _vint(1) + _vint(len(name)) + name
    return _block5(2, fields, extra, data)


def rar5(*members):
    "Return a RAR 5 archive"
    return b'Rar!\x1a\x07\1\0' + _block5(1, _vint(0)) + b''.join(members) + _block5(5, _vint(0))


def make_rar5(files): return rar5(*(rar5_file(n, d) for n,d in files))


def make_zip(files):
    f = io.BytesIO()
    with zipfile.ZipFile(f, 'w', zipfile.ZIP_DEFLATED) as z:
        for n,d in files: z.writestr(zipfile.ZipInfo(n), d)
    return f.getvalue()


def tar_member(name, data=b'', **kwargs):
    m = tarfile.TarInfo(name)
    m.size = len(data)
    for k,v in kwargs.items(): setattr(m, k, v)
    return m, io.BytesIO(data)


def tar(*members):
    f = io.BytesIO()
    with tarfile.open(fileobj=f, mode='w') as t:
        for o in members: t.addfile(*o)
    return f.getvalue()


def make_tar(files): return tar(*(tar_member(n, d) for n,d in files))


def compressed_tar(module):
    "Return a function that makes a tar archive and compresses it with `module`"
    return lambda files: module.compress(make_tar(files))


plain = {'rar': make_rar, 'rar5': make_rar5, 'zip': make_zip, 'tar': make_tar}
packers = plain | {'gz': compressed_tar(gzip), 'bz2': compressed_tar(bz2), 'xz': compressed_tar(lzma)}


def zipped_link(mode):
    "Return a zip archive with one member of the file type `mode`"
    f = io.BytesIO()
    with zipfile.ZipFile(f, 'w') as z:
        m = zipfile.ZipInfo('a/link')
        m.external_attr = mode << 16
        z.writestr(m, '/etc')
    return f.getvalue()


def packed(*files):
    "Return a solid RAR 3 archive of compressed `files`, which needs a tool"
    members = [rar_file(n, b'packed', method=0x33, size=len(d), crc=zlib.crc32(d)) for n,d in files]
    return rar(*members, main=8)
