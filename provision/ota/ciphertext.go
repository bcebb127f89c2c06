package ota

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math"
	"sync"

	"github.com/provisiond/provisiond/esp/flashcrypt"
)

// Bytes is a plaintext in memory. A Ciphertext of it encrypts straight from it,
// without a copy.
type Bytes []byte

// ReadAt reads from the plaintext.
func (b Bytes) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > int64(len(b)) {
		return 0, io.EOF
	}
	n := copy(p, b[off:])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Ciphertext is the content of a slot as it lies in flash. It is made on the
// fly: any range can be read, in any order, by many goroutines at once.
type Ciphertext struct {
	plain   io.ReaderAt
	length  int64 // of plain
	size    int64
	address uint32

	mu     sync.RWMutex // Wipe waits for the reads
	cipher flashcrypt.Cipher
}

// NewCiphertext encrypts length bytes of plain for the flash address. The end is
// padded with 0xFF to a multiple of align: 16, or 32 for the ESP32. The
// Ciphertext owns the cipher from then on.
func NewCiphertext(cipher flashcrypt.Cipher, plain io.ReaderAt, length int64, address, align uint32) (*Ciphertext, error) {
	switch {
	case cipher == nil || plain == nil:
		return nil, errors.New("ota: a ciphertext needs a cipher and a plaintext")
	case align == 0 || align%flashcrypt.BlockSize != 0 || address%align != 0:
		return nil, fmt.Errorf("ota: the flash address 0x%x is not a multiple of %d bytes", address, align)
	case length <= 0 || length > math.MaxUint32 || uint64(address)+padded(uint64(length), align) > 1<<32:
		return nil, fmt.Errorf("ota: %d bytes at flash address 0x%x: write 1 byte up to the end of 32 bits", length, address)
	}
	return &Ciphertext{
		plain: plain, length: length, size: int64(padded(uint64(length), align)),
		address: address, cipher: cipher,
	}, nil
}

// Size is the length in bytes, padding included.
func (c *Ciphertext) Size() int64 { return c.size }

// Address is the flash address of the first byte.
func (c *Ciphertext) Address() uint32 { return c.address }

// ReadAt reads the ciphertext from offset off on, as io.ReaderAt has it. Ranges
// need not be aligned.
func (c *Ciphertext) ReadAt(p []byte, off int64) (int, error) {
	switch {
	case off < 0:
		return 0, errors.New("ota: the offset is negative")
	case off >= c.size:
		return 0, io.EOF
	}
	want := p[:min(int64(len(p)), c.size-off)]
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.cipher == nil {
		return 0, flashcrypt.ErrWiped
	}
	n, err := c.read(want, off)
	if err == nil && n < len(p) {
		err = io.EOF
	}
	return n, err
}

// edges are blocks of which only a part is asked for. A local variable would move to
// the heap, since it goes through an interface.
var edges = sync.Pool{New: func() any { return new([flashcrypt.BlockSize]byte) }}

// read fills p, whose range lies inside the ciphertext.
func (c *Ciphertext) read(p []byte, off int64) (int, error) {
	const block = flashcrypt.BlockSize
	done := 0
	edge := func() error { // one block, of which p has a part
		b, ok := edges.Get().(*[block]byte)
		if !ok {
			b = new([block]byte)
		}
		defer edges.Put(b)
		start := off / block * block
		if err := c.encrypt(b[:], start); err != nil {
			return err
		}
		n := copy(p[done:], b[off-start:])
		done, off = done+n, off+int64(n)
		return nil
	}
	if off%block != 0 {
		if err := edge(); err != nil {
			return done, err
		}
	}
	if whole := (len(p) - done) / block * block; whole > 0 {
		if err := c.encrypt(p[done:done+whole], off); err != nil {
			return done, err
		}
		done, off = done+whole, off+int64(whole)
	}
	if done < len(p) {
		if err := edge(); err != nil {
			return done, err
		}
	}
	return done, nil
}

// encrypt fills p with whole blocks from offset off on. Nothing of the plaintext
// stays in p when it fails.
func (c *Ciphertext) encrypt(p []byte, off int64) (err error) {
	address := c.address + uint32(off)
	if b, ok := c.plain.(Bytes); ok && off+int64(len(p)) <= c.length && c.length <= int64(len(b)) {
		return c.cipher.Encrypt(p, b[off:off+int64(len(p))], address)
	}
	defer func() {
		if err != nil {
			clear(p)
		}
	}()
	have := max(0, min(int64(len(p)), c.length-off))
	if have > 0 {
		switch n, err := c.plain.ReadAt(p[:have], off); {
		case int64(n) == have:
		case err == nil || errors.Is(err, io.EOF):
			return fmt.Errorf("ota: the plaintext ends at offset %d of %d: %w", off+int64(n), c.length, io.ErrUnexpectedEOF)
		default:
			return fmt.Errorf("ota: read the plaintext at offset %d: %w", off, err)
		}
	}
	for i := have; i < int64(len(p)); i++ {
		p[i] = 0xFF
	}
	return c.cipher.Encrypt(p, p, address)
}

// NewReader reads the whole ciphertext from its beginning.
func (c *Ciphertext) NewReader() *io.SectionReader { return io.NewSectionReader(c, 0, c.size) }

// chunk is how much is encrypted between two looks at a context.
const chunk = 64 << 10

// WriteTo writes the whole ciphertext to w. progress, if it is not nil, gets the
// number of bytes written after each piece.
func (c *Ciphertext) WriteTo(ctx context.Context, w io.Writer, progress func(done int64)) error {
	buf := make([]byte, chunk)
	for off := int64(0); off < c.size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := c.ReadAt(buf[:min(chunk, c.size-off)], off)
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		if off += int64(n); progress != nil {
			progress(off)
		}
	}
	return nil
}

// SHA256 is the hash of the whole ciphertext; it encrypts all of it.
func (c *Ciphertext) SHA256(ctx context.Context) (sum [sha256.Size]byte, err error) {
	h := sha256.New()
	if err := c.WriteTo(ctx, h, nil); err != nil {
		return sum, err
	}
	h.Sum(sum[:0])
	return sum, nil
}

// Wipe overwrites the key of the cipher, when the reads that are under way have
// ended. Later ones fail with flashcrypt.ErrWiped.
func (c *Ciphertext) Wipe() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.cipher != nil {
		c.cipher.Wipe()
		c.cipher = nil
	}
}
