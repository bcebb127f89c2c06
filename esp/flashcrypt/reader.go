package flashcrypt

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"sync"
)

// Reader reads the ciphertext of an image at a flash address, any range of it, as
// though it lay in a file: what is read is encrypted then, and nothing is kept. It
// is for servers, which answer requests for ranges of bytes.
//
// A ReadAt allocates nothing where the cipher does not, and several may run at once.
type Reader struct {
	cipher Cipher
	image  []byte // whole blocks
	tail   []byte // the rest, padded
	addr   uint32
}

// NewReader reads the ciphertext that image has at addr. It is padded with 0xFF to a
// multiple of align, which is the chip's (chip.Model's EncryptedAlign, 16 or 32), as
// addr is. The image is not copied and must not change.
func NewReader(c Cipher, image []byte, addr uint32, align int) (*Reader, error) {
	if align < BlockSize || align%BlockSize != 0 || align > 4096 {
		return nil, fmt.Errorf("flashcrypt: an alignment of %d is not a multiple of %d up to 4096", align, BlockSize)
	}
	if addr%uint32(align) != 0 {
		return nil, fmt.Errorf("flashcrypt: flash address 0x%x is not a multiple of %d", addr, align)
	}
	whole := len(image) &^ (BlockSize - 1)
	r := &Reader{cipher: c, image: image[:whole], addr: addr}
	if over := len(image) % align; over != 0 {
		r.tail = append(bytes.Clone(image[whole:]), bytes.Repeat([]byte{0xFF}, align-over)...)
	}
	if end := uint64(addr) + uint64(r.Size()); end > 1<<32 {
		return nil, fmt.Errorf("flashcrypt: %d bytes at flash address 0x%x end beyond 32 bits", r.Size(), addr)
	}
	return r, nil
}

// Size is the length of the ciphertext: that of the image, padded.
func (r *Reader) Size() int64 { return int64(len(r.image)) + int64(len(r.tail)) }

// edges are blocks of which only a part is asked for. On the stack they would move
// to the heap, since they go through an interface.
var edges = sync.Pool{New: func() any { return new([BlockSize]byte) }}

// ReadAt implements io.ReaderAt.
func (r *Reader) ReadAt(p []byte, off int64) (int, error) {
	switch {
	case off < 0:
		return 0, errors.New("flashcrypt: ReadAt with a negative offset")
	case off >= r.Size():
		return 0, io.EOF
	}
	want := len(p)
	p = p[:min(int64(want), r.Size()-off)]
	n, at := 0, int(off)
	for n < len(p) {
		// Whole blocks go where they were asked for, the others by way of an edge.
		rest := p[n:]
		if skip := at % BlockSize; skip != 0 || len(rest) < BlockSize {
			m, err := r.edge(rest, at-skip, skip)
			if err != nil {
				return n, err
			}
			n, at = n+m, at+m
			continue
		}
		rest = rest[:len(rest)&^(BlockSize-1)]
		if err := r.blocks(rest, at); err != nil {
			return n, err
		}
		n, at = n+len(rest), at+len(rest)
	}
	if n < want {
		return n, io.EOF
	}
	return n, nil
}

// edge gives a part of the block at an offset: what follows skip bytes of it.
func (r *Reader) edge(dst []byte, at, skip int) (int, error) {
	b, ok := edges.Get().(*[BlockSize]byte)
	if !ok {
		return 0, errors.New("flashcrypt: the pool gave another type") // it holds no other
	}
	defer edges.Put(b)
	if err := r.blocks(b[:], at); err != nil {
		return 0, err
	}
	return copy(dst, b[skip:]), nil
}

// blocks encrypts whole blocks from an offset on.
func (r *Reader) blocks(dst []byte, at int) error {
	if at < len(r.image) {
		n := min(len(dst), len(r.image)-at)
		if err := r.cipher.Encrypt(dst[:n], r.image[at:at+n], r.addr+uint32(at)); err != nil {
			return err
		}
		dst, at = dst[n:], at+n
	}
	if len(dst) == 0 {
		return nil
	}
	from := at - len(r.image)
	return r.cipher.Encrypt(dst, r.tail[from:from+len(dst)], r.addr+uint32(at))
}
