"""Hostile frames and folders of frames: odd pictures, damaged files, wrong layouts, strange names."""
import io
import os
import struct
import zlib
from unittest.mock import patch

import numpy as np
from fastai.vision.core import PILImage, PILImageBW
from hostile import gives, refuses
from PIL import Image

from vidseq.data.clip import ImageTuple, ImageTupleTfm
from vidseq.data.frame import load_frame


# Pictures

def first_value(frame): return int(np.asarray(frame).flat[0])


def save(folder, img, name, **kwargs):
    "Save an array or an image to `folder` and return its path"
    img = img if isinstance(img, Image.Image) else Image.fromarray(img)
    img.save(folder/name, **kwargs)
    return folder/name


def filled(value, dtype): return np.full((24,32), value, dtype)


def png_of_size(w, h):
    "Return the start of a png that declares a size"
    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind+data))
    header = chunk(b'IHDR', struct.pack('>IIBBBBB', w, h, 8, 0, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + header + chunk(b'IDAT', zlib.compress(bytes(100))) + chunk(b'IEND', b'')


def jpg_of_size(w, h):
    "Return a jpg whose header declares another size"
    buf = io.BytesIO()
    Image.new('RGB', (16,16)).save(buf, 'jpeg')
    data = bytearray(buf.getvalue())
    i = data.index(b'\xff\xc0')
    data[i+5:i+9] = struct.pack('>HH', h, w)
    return bytes(data)


def write(folder, name, data):
    (folder/name).write_bytes(data)
    return folder/name


depths = { # name -> array, value in 8 bits
    '16.png': (filled(25000, '<u2'), 97), '16.tif': (filled(25000, '<u2'), 97),
    '16be.tif': (filled(25000, '>u2'), 97), '16.jp2': (filled(25000, '<u2'), 97),
    '16.pgm': (filled(25000, '<u2'), 97), 'dark.pgm': (filled(200, '<u2'), 0),
    '32.tif': (filled(25000, np.int32), 97), 'float.tif': (filled(.5, np.float32), 128),
    'white.tif': (filled(1, np.float32), 255), 'black.tif': (filled(0, np.float32), 0),
    '8.png': (filled(97, np.uint8), 97), 'bits.png': (filled(True, bool), 255),
    'bits.tif': (filled(True, bool), 255)}
for name,(arr,value) in depths.items():
    for cls in (PILImage, PILImageBW):
        for size in (None, 12):
            gives(f'picture: {name} as {cls.__name__} of size {size}',
                  lambda p, n=name, a=arr, c=cls, s=size: first_value(load_frame(save(p, a, n), s, c)), value)

rgb = Image.new('RGB', (32,24), (100,150,200))


def load_as(folder, mode, ext):
    frame = load_frame(save(folder, rgb.convert(mode), f'0.{ext}'))
    return frame.mode, frame.size, np.asarray(frame).shape


modes = dict(P='png tif gif webp', LA='png tif gif webp', RGBA='png tif gif webp', CMYK='tif jpg webp',
             L='png tif jpg gif webp')
for mode,extensions in modes.items():
    for ext in extensions.split():
        gives(f'picture: mode {mode} in a {ext}', lambda p, m=mode, e=ext: load_as(p, m, e),
              ('RGB', (32,24), (24,32,3)))


def transparent(folder):
    img = Image.new('P', (32,24))
    img.putpalette([10,20,30]*256)
    return first_value(load_frame(save(folder, img, '0.png', transparency=bytes(256))))


gives('picture: a transparent palette', transparent, 10)
gives('picture: a transparent color',
      lambda p: first_value(load_frame(save(p, rgb.convert('RGBA'), '0.png'))), 100)
gives('picture: an array of 16 bits', lambda p: first_value(ImageTuple.create([filled(25000, '<u2')])[0]), 97)
gives('picture: a gray array', lambda p: np.asarray(ImageTuple.create([filled(9, 'u1')])[0]).shape, (24,32,3))
for name,value in dict(negative=-1., large=300., nan=np.nan, infinite=np.inf).items():
    refuses(f'picture: {name} floats', lambda p, v=value: load_frame(save(p, filled(v, np.float32), 'f.tif')),
            'f.tif: values from', 'instead of 0 to 1', '8 or 16 bits')
for name,value in dict(negative=-1, large=2**20).items():
    refuses(f'picture: {name} integers', lambda p, v=value: load_frame(save(p, filled(v, np.int32), 'i.tif')),
            'i.tif: values from', '65535', '8 or 16 bits')
refuses('picture: integers of unknown range', lambda p: load_frame(save(p, filled(200, np.int32), 'i.tif')),
        'i.tif: integers of 32 bits up to 200')

damaged = {
    'empty.jpg': b'', 'empty.png': b'', 'text.jpg': b'text', 'text.png': b'text'*99, 'zeros.jpg': bytes(999),
    'short.jpg': b'\xff\xd8', 'short.png': b'\x89PNG\r\n\x1a\n', 'endless.jpg': b'\xff\xd8'+b'\xff'*999,
    'svg.svg': b'<svg xmlns="http://www.w3.org/2000/svg"></svg>', 'html.gif': b'<html>404 Not Found</html>'}
for name,data in damaged.items():
    refuses(f'picture: damaged {name}', lambda p, n=name, d=data: load_frame(write(p, n, d)),
            f'{name}: not readable')
for name in ('cut.jpg', 'cut.png', 'cut.tif', 'cut.webp', 'cut.gif'):
    def cut(folder, name=name):
        file = save(folder, Image.effect_noise((64,64), 50), name)
        return load_frame(write(folder, name, file.read_bytes()[:file.stat().st_size//2]))
    refuses(f'picture: {name}', cut, f'{name}: not readable')
refuses('picture: missing', lambda p: load_frame(p/'0.jpg'), '0.jpg: no such file')
refuses('picture: a dangling link', lambda p: (os.symlink('nowhere', p/'0.png'), load_frame(p/'0.png')),
        '0.png: no such file')
refuses('picture: a folder', lambda p: ((p/'0.jpg').mkdir(), load_frame(p/'0.jpg')), '0.jpg: not a file')
eps = b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n'
refuses('picture: PostScript', lambda p: load_frame(write(p, '0.png', eps)),
        '0.png: a PostScript program', 'Convert')
if hasattr(os, 'mkfifo'):
    for name in ('pipe.jpg', 'pipe.png'):
        refuses(f'picture: named {name}', lambda p, n=name: (os.mkfifo(p/n), load_frame(p/n)),
                'not a file', 'Remove it')
for names in ('a.png a.jpg', 'a.jpg a.png', 'a.webp a.JPEG', 'a.bmp a.jpg', 'a.gif a.tif'):
    name,renamed = names.split()
    gives(f'picture: {name} renamed to {renamed}',
          lambda p, a=name, b=renamed: load_frame(save(p, rgb, a).rename(p/b)).size, (32,24))
gives('picture: bytes after the end of a jpg',
      lambda p: load_frame(write(p, 'b.jpg', save(p, rgb, 'a.jpg').read_bytes()+b'\0more')).size, (32,24))
for name,data in {'a.jpg': jpg_of_size(60000, 60000), 'a.png': png_of_size(10000, 10000),
                  'b.png': png_of_size(100_000, 100_000)}.items():
    refuses(f'picture: bomb of {len(data)} bytes in {name}',
            lambda p, n=name, d=data: load_frame(write(p, n, d), 64),
            f'{name}: frames of', 'pixels', 'limit of 67108864', 'VIDSEQ_MAX_PIXELS')
for cls in (PILImage, PILImageBW):
    for ext in ('jpg', 'png'):
        def limited(folder, cls=cls, ext=ext):
            file = save(folder, rgb, f'a.{ext}')
            with patch.dict(os.environ, VIDSEQ_MAX_PIXELS='700'): return load_frame(file, 8, cls)
        refuses(f'picture: {ext} above a limit as {cls.__name__}', limited,
                f'a.{ext}: frames of 32x24 pixels', 'limit of 700', 'VIDSEQ_MAX_PIXELS=768')


# Orientation

def turned(folder, ext, orientation):
    "Save an upright picture, dark at the top left, as a camera does that was held in `orientation`"
    upright = np.full((24,32,3), 200, np.uint8)
    upright[:12,:16] = 0
    img = Image.fromarray(upright)
    inverse = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}.get(orientation) # `Image.Transpose`
    if inverse is not None: img = img.transpose(inverse)
    exif = Image.Exif()
    exif[0x112] = orientation
    return save(folder, img, f'0.{ext}', exif=exif, **(dict(quality=100) if ext != 'png' else {}))


def corners(frame):
    "Return whether the corners are bright, and whether the frame is wide"
    w,h = frame.size
    gray = frame.convert('L')
    return [gray.getpixel(o) > 100 for o in ((1,1), (w-2,1), (1,h-2), (w-2,h-2))], w > h


for ext in ('jpg', 'png', 'webp', 'tif'):
    for orientation in range(1, 9):
        for cls in (PILImage, PILImageBW):
            for size in (None, 12):
                def load_turned(folder, ext=ext, orientation=orientation, cls=cls, size=size):
                    return corners(load_frame(turned(folder, ext, orientation), size, cls))
                gives(f'orientation: {orientation} of a {ext} as {cls.__name__} of size {size}', load_turned,
                      ([False,True,True,True], True))
gives('orientation: of a clip', lambda p: corners(ImageTupleTfm(2)(turned(p, 'jpg', 6).parent)[0])[1], True)
for value in (0, 9, 65535):
    gives(f'orientation: {value}', lambda p, v=value: load_frame(turned(p, 'jpg', v)).size, (32,24))


def damaged_exif(folder, data):
    jpg = save(folder, rgb, '0.jpg').read_bytes()
    segment = b'\xff\xe1' + struct.pack('>H', len(data)+2) + data
    return load_frame(write(folder, '0.jpg', jpg[:2]+segment+jpg[2:])).size


exif_segments = (b'', b'Exif\0\0', b'Exif\0\0MM', b'Exif\0\0MM\0*\0\0\xff\xff', b'Exif\0\0'+b'\xff'*99,
                 b'http://ns.adobe.com/xap/1.0/\0<x')
for i,data in enumerate(exif_segments):
    gives(f'orientation: damaged EXIF data {i}', lambda p, d=data: damaged_exif(p, d), (32,24))
