// Package nor owns the flash chip behind a simulated ESP32-family chip: an
// array of bytes that programming can only clear, bit by bit, and that only an
// erase of a whole 4 KiB sector sets again.
//
// An erased sector costs no memory, so that many simulated boards fit in one
// process. A Flash is safe for concurrent use: tests look at and damage the flash
// of a chip whose timers may reset it at any moment.
//
// # Stored form
//
// [Flash.WriteTo] and [Flash.ReadFrom] use this form; numbers are little-endian:
//
//	offset  size  content
//	0       8     "NORFLSH1"
//	8       4     size of the flash in bytes, a multiple of 4096, not 0
//	12      4     n, the number of sectors that follow
//	16      n×    4 bytes sector number, 4096 bytes content
//	end     4     CRC-32 (IEEE) of everything before it
//
// Sectors come in ascending order and erased ones (all 0xFF) are left out, so
// that one content has one form: what parses re-encodes to the same bytes.
package nor

import (
	"bytes"
	"crypto/md5" //nolint:gosec // what SPI_FLASH_MD5 gives
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"maps"
	"slices"
	"sync"
)

// SectorSize is the smallest unit of an erase, in bytes.
const SectorSize = 0x1000

// ErrRange is wrapped by every error about an access outside the flash.
var ErrRange = errors.New("outside the flash")

// ErrFormat is wrapped by every error about a stored form that does not parse.
var ErrFormat = errors.New("not a stored flash")

type sector [SectorSize]byte

var erased = func() (s sector) {
	for i := range s {
		s[i] = 0xFF
	}
	return s
}()

// Flash is a NOR flash. The zero value has size 0; [Flash.ReadFrom] may fill it.
type Flash struct {
	mu      sync.RWMutex
	size    uint32
	sectors map[uint32]*sector // by number; only those that hold a cleared bit
}

// New gives an erased flash of size bytes. It panics if size is 0 or not a
// multiple of [SectorSize]: no such part exists.
func New(size uint32) *Flash {
	if size == 0 || size%SectorSize != 0 {
		panic(fmt.Sprintf("nor: a flash of %d bytes is no multiple of %d", size, SectorSize))
	}
	return &Flash{size: size, sectors: make(map[uint32]*sector)}
}

// Size gives the size in bytes.
func (f *Flash) Size() uint32 {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return f.size
}

// Used gives the number of sectors that are not erased, which are the ones that
// take memory.
func (f *Flash) Used() int {
	f.mu.RLock()
	defer f.mu.RUnlock()
	return len(f.sectors)
}

// ReadAt implements [io.ReaderAt] over the raw content.
func (f *Flash) ReadAt(p []byte, off int64) (int, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if off < 0 {
		return 0, fmt.Errorf("nor: read at %d: %w", off, ErrRange)
	}
	if off >= int64(f.size) {
		return 0, io.EOF
	}
	n := int(min(int64(len(p)), int64(f.size)-off))
	for done := 0; done < n; {
		at := uint32(off) + uint32(done)
		src := &erased
		if s := f.sectors[at/SectorSize]; s != nil {
			src = s
		}
		done += copy(p[done:n], src[at%SectorSize:])
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// Program clears the bits at addr that are 0 in data, and sets none: the flash
// then holds old AND data. Out of range, nothing is changed. A part's page
// size plays no role here: the ROM splits writes for it.
func (f *Flash) Program(addr uint32, data []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.check("program", addr, uint64(len(data))); err != nil {
		return err
	}
	for len(data) > 0 {
		num, in := addr/SectorSize, addr%SectorSize
		n := min(len(data), int(SectorSize-in))
		s := f.sectors[num]
		if s == nil && !bytes.Equal(data[:n], erased[:n]) {
			fresh := erased
			s = &fresh
			f.sectors[num] = s
		}
		if s != nil {
			for i, b := range data[:n] {
				s[int(in)+i] &= b
			}
		}
		addr, data = addr+uint32(n), data[n:]
	}
	return nil
}

// EraseSector erases the sector that starts at addr.
func (f *Flash) EraseSector(addr uint32) error { return f.Erase(addr, SectorSize) }

// Erase erases size bytes from addr. Both must be multiples of [SectorSize]:
// the part ignores the low address bits, so anything else is a caller's mistake.
func (f *Flash) Erase(addr, size uint32) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if addr%SectorSize != 0 || size%SectorSize != 0 {
		return fmt.Errorf("nor: erase of 0x%x bytes at 0x%x: only whole sectors of 0x%x can be erased", size, addr, SectorSize)
	}
	if err := f.check("erase", addr, uint64(size)); err != nil {
		return err
	}
	for num, end := addr/SectorSize, addr/SectorSize+size/SectorSize; num < end; num++ {
		delete(f.sectors, num)
	}
	return nil
}

// MD5 gives the digest of size raw bytes from addr.
func (f *Flash) MD5(addr, size uint32) ([md5.Size]byte, error) {
	var sum [md5.Size]byte
	f.mu.RLock()
	err := f.check("MD5", addr, uint64(size))
	f.mu.RUnlock()
	if err != nil {
		return sum, err
	}
	h := md5.New() //nolint:gosec // as above
	if _, err := io.Copy(h, io.NewSectionReader(f, int64(addr), int64(size))); err != nil {
		return sum, err
	}
	h.Sum(sum[:0])
	return sum, nil
}

func (f *Flash) check(what string, addr uint32, size uint64) error {
	if uint64(addr)+size > uint64(f.size) {
		return fmt.Errorf("nor: %s of 0x%x bytes at 0x%x: %w of 0x%x bytes", what, size, addr, ErrRange, f.size)
	}
	return nil
}

const (
	formMagic  = "NORFLSH1"
	formHeader = 16
)

// WriteTo implements [io.WriterTo] with the stored form. A flash of size 0 has
// no stored form.
func (f *Flash) WriteTo(w io.Writer) (int64, error) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.size == 0 {
		return 0, errors.New("nor: a flash of size 0 cannot be stored: make it with New")
	}
	var total int64
	sum := crc32.NewIEEE()
	put := func(b []byte) error {
		n, err := w.Write(b)
		total += int64(n)
		_, _ = sum.Write(b[:n]) // a hash never fails
		return err
	}
	// A programmed sector may still be all 0xFF only if it was never in the map,
	// so every sector here holds a cleared bit.
	head := binary.LittleEndian.AppendUint32([]byte(formMagic), f.size)
	head = binary.LittleEndian.AppendUint32(head, uint32(len(f.sectors)))
	if err := put(head); err != nil {
		return total, err
	}
	for _, num := range slices.Sorted(maps.Keys(f.sectors)) {
		if err := put(binary.LittleEndian.AppendUint32(nil, num)); err != nil {
			return total, err
		}
		if err := put(f.sectors[num][:]); err != nil {
			return total, err
		}
	}
	err := put(binary.LittleEndian.AppendUint32(nil, sum.Sum32()))
	return total, err
}

// ReadFrom implements [io.ReaderFrom]: it reads a stored form up to the end of
// r and takes its content over. The size must be the one f has, unless f is
// the zero value, which takes any. After an error f is what it was.
func (f *Flash) ReadFrom(r io.Reader) (int64, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	in := &countReader{r: r}
	sum := crc32.NewIEEE()
	body := io.TeeReader(in, sum)

	var head [formHeader]byte
	if _, err := io.ReadFull(body, head[:]); err != nil {
		return in.n, formErr("header", err)
	}
	size, count := binary.LittleEndian.Uint32(head[8:]), binary.LittleEndian.Uint32(head[12:])
	switch {
	case string(head[:8]) != formMagic:
		return in.n, fmt.Errorf("nor: %w: it does not start with %q", ErrFormat, formMagic)
	case size == 0 || size%SectorSize != 0:
		return in.n, fmt.Errorf("nor: %w: size 0x%x is no multiple of 0x%x", ErrFormat, size, SectorSize)
	case f.size != 0 && size != f.size:
		return in.n, fmt.Errorf("nor: the stored flash has 0x%x bytes, this one 0x%x: use the same flash size as before", size, f.size)
	case count > size/SectorSize:
		return in.n, fmt.Errorf("nor: %w: %d sectors in a flash of %d", ErrFormat, count, size/SectorSize)
	}
	sectors := make(map[uint32]*sector)
	next := uint32(0)
	for i := range count {
		place := fmt.Sprintf("sector %d of %d", i+1, count)
		var num [4]byte
		if _, err := io.ReadFull(body, num[:]); err != nil {
			return in.n, formErr(place, err)
		}
		n := binary.LittleEndian.Uint32(num[:])
		if n < next || n >= size/SectorSize {
			return in.n, fmt.Errorf("nor: %w: %s has number %d, which is out of order or range", ErrFormat, place, n)
		}
		s := new(sector)
		if _, err := io.ReadFull(body, s[:]); err != nil {
			return in.n, formErr(place, err)
		}
		if *s == erased {
			return in.n, fmt.Errorf("nor: %w: %s is erased and must be left out", ErrFormat, place)
		}
		sectors[n], next = s, n+1
	}
	want := sum.Sum32()
	var tail [4]byte
	if _, err := io.ReadFull(in, tail[:]); err != nil {
		return in.n, formErr("checksum", err)
	}
	if got := binary.LittleEndian.Uint32(tail[:]); got != want {
		return in.n, fmt.Errorf("nor: %w: checksum 0x%08x, content gives 0x%08x", ErrFormat, got, want)
	}
	switch n, err := io.ReadFull(in, tail[:1]); {
	case n > 0:
		return in.n, fmt.Errorf("nor: %w: bytes follow the checksum", ErrFormat)
	case err != io.EOF:
		return in.n, fmt.Errorf("nor: after the checksum: %w", err)
	}
	f.size, f.sectors = size, sectors
	return in.n, nil
}

// formErr tells a form that is too short from a reader that failed.
func formErr(place string, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("nor: %w: it ends in its %s", ErrFormat, place)
	}
	return fmt.Errorf("nor: %s: %w", place, err)
}

type countReader struct {
	r io.Reader
	n int64
}

func (c *countReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}
