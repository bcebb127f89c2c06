package boltfile

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"io"
	"os"
)

// The file format of bbolt 1.x (go.etcd.io/bbolt/internal/common: page.go,
// meta.go, inode.go, bucket.go). Numbers are in the byte order of the machine.
const (
	pageHeaderSize = 16 // id u64, flags u16, count u16, overflow u32
	elementSize    = 16 // branch: pos u32, ksize u32, pgid u64; leaf: flags, pos, ksize, vsize u32
	bucketSize     = 16 // root pgid u64, sequence u64

	flagBranch   = 0x01
	flagLeaf     = 0x02
	flagMeta     = 0x04
	flagFreelist = 0x10
	bucketLeaf   = 0x01 // leaf element that is a bucket

	metaMagic   = 0xED0CDAED
	metaVersion = 2
	metaSize    = 64 // magic, version, pageSize, flags u32; root 16; freelist, pgid, txid, checksum u64

	minPage, maxPage = 1 << 10, 1 << 24 // sizes of a page that bbolt looks for

	maxTreeDepth = 64
)

var order = binary.NativeEndian

type meta struct {
	pageSize           int
	root, freelist     uint64
	highWater, version uint64 // version is bbolt's txid
}

// checkPages walks every page that the newest valid meta page reaches and
// refuses what bbolt would panic, loop or read out of bounds on: a short file,
// wrong page ids and types, elements outside their page, keys out of order, a
// page reached twice, a page in use on the free list. It reads through f, so a
// short file is an error and no SIGBUS. The keys below a branch lie between
// its own, so that a search finds what a walk finds.
//
// With edge it walks only the last page below every branch: what the next commit
// of ascending keys builds on.
func checkPages(f *os.File, edge bool) (fallback bool, err error) {
	st, err := f.Stat()
	if err != nil {
		return false, err
	}
	m, fallback, err := newestMeta(f, st.Size())
	if err != nil {
		return false, err
	}
	if m.highWater > uint64(st.Size())/uint64(m.pageSize) {
		return false, damaged("the file is cut off: it has %d bytes and needs %d pages of %d bytes",
			st.Size(), m.highWater, m.pageSize)
	}
	w := walker{f: f, m: m, edge: edge, seen: make([]uint64, m.highWater/64+1)}
	w.seen[0] = 3 // the meta pages
	if err := w.page(m.root, 0, bounds{}); err != nil {
		return false, err
	}
	return fallback, w.freelist()
}

func damaged(format string, args ...any) error {
	return &DamagedError{Reason: fmt.Sprintf(format, args...)}
}

func newestMeta(f io.ReaderAt, size int64) (m meta, fallback bool, err error) {
	if size == 0 {
		return meta{}, false, damaged("the file is empty")
	}
	// The second meta page lies one page in, whose size only a meta page tells.
	first, firstOK := readMeta(f, 0)
	second, secondOK := meta{}, false
	if firstOK {
		second, secondOK = readMeta(f, int64(first.pageSize))
	}
	for ps := int64(minPage); ps <= maxPage && !firstOK && !secondOK; ps *= 2 {
		second, secondOK = readMeta(f, ps)
		secondOK = secondOK && int64(second.pageSize) == ps
	}
	switch {
	case !firstOK && !secondOK:
		return meta{}, false, damaged("neither meta page is valid")
	case !firstOK, secondOK && second.version > first.version:
		return second, !firstOK, nil
	}
	return first, !secondOK, nil
}

// readMeta reads the meta page at an offset; ok says that it is valid.
func readMeta(f io.ReaderAt, off int64) (m meta, ok bool) {
	var b [pageHeaderSize + metaSize]byte
	if _, err := f.ReadAt(b[:], off); err != nil {
		return meta{}, false
	}
	p := b[pageHeaderSize:]
	sum := fnv.New64a()
	_, _ = sum.Write(p[:metaSize-8])
	m = meta{
		pageSize:  int(order.Uint32(p[8:])),
		root:      order.Uint64(p[16:]),
		freelist:  order.Uint64(p[32:]),
		highWater: order.Uint64(p[40:]),
		version:   order.Uint64(p[48:]),
	}
	return m, order.Uint16(b[8:])&flagMeta != 0 &&
		order.Uint32(p) == metaMagic &&
		order.Uint32(p[4:]) == metaVersion &&
		order.Uint64(p[56:]) == sum.Sum64() &&
		m.pageSize >= minPage && m.pageSize <= maxPage && m.pageSize&(m.pageSize-1) == 0
}

type walker struct {
	f    io.ReaderAt
	m    meta
	edge bool
	seen []uint64 // one bit per page
}

// mark notes that page id is in use, with the pages that overflow from it.
func (w *walker) mark(id uint64, overflow uint32) error {
	if id+uint64(overflow) >= w.m.highWater {
		return damaged("page %d runs past the end of the database", id)
	}
	for p := id; p <= id+uint64(overflow); p++ {
		if w.seen[p/64]&(1<<(p%64)) != 0 {
			return damaged("page %d is used twice", p)
		}
		w.seen[p/64] |= 1 << (p % 64)
	}
	return nil
}

// read gives the whole page with its overflow and marks it as used.
func (w *walker) read(id uint64) ([]byte, error) {
	if id < 2 || id >= w.m.highWater {
		return nil, damaged("page %d does not exist", id)
	}
	buf := make([]byte, w.m.pageSize)
	if _, err := w.f.ReadAt(buf, int64(id)*int64(w.m.pageSize)); err != nil {
		return nil, damaged("page %d cannot be read: %v", id, err)
	}
	if got := order.Uint64(buf); got != id {
		return nil, damaged("page %d says that it is page %d", id, got)
	}
	overflow := order.Uint32(buf[12:])
	if err := w.mark(id, overflow); err != nil {
		return nil, err
	}
	if overflow > 0 {
		buf = append(buf, make([]byte, int(overflow)*w.m.pageSize)...)
		if _, err := w.f.ReadAt(buf, int64(id)*int64(w.m.pageSize)); err != nil {
			return nil, damaged("page %d cannot be read: %v", id, err)
		}
	}
	return buf, nil
}

// bounds are the keys that a branch promises for a page below it: from low up to,
// and without, high. nil is no bound.
type bounds struct{ low, high []byte }

func (b bounds) hold(key []byte) bool {
	return bytes.Compare(key, b.low) >= 0 && (b.high == nil || bytes.Compare(key, b.high) < 0)
}

// page walks the tree below id.
func (w *walker) page(id uint64, depth int, in bounds) error {
	if depth > maxTreeDepth {
		return damaged("page %d lies too deep", id)
	}
	b, err := w.read(id)
	if err != nil {
		return err
	}
	return w.elements(id, b, depth, in, false)
}

// elements checks the elements of a branch or leaf page, or of a bucket that
// lies inline in a leaf, and walks on from them.
func (w *walker) elements(id uint64, b []byte, depth int, in bounds, inline bool) error {
	flags, count := order.Uint16(b[8:]), int(order.Uint16(b[10:]))
	if flags != flagLeaf && (flags != flagBranch || inline) {
		return damaged("page %d has type 0x%x and lies in a tree", id, flags)
	}
	if flags == flagBranch && count == 0 {
		return damaged("branch page %d is empty", id)
	}
	if pageHeaderSize+count*elementSize > len(b) {
		return damaged("page %d has more elements than fit", id)
	}
	var child uint64 // of the branch element before
	var last []byte
	for i := range count {
		e := b[pageHeaderSize+i*elementSize:]
		var pos, ksize, vsize uint32
		if flags == flagBranch {
			pos, ksize = order.Uint32(e), order.Uint32(e[4:])
		} else {
			pos, ksize, vsize = order.Uint32(e[4:]), order.Uint32(e[8:]), order.Uint32(e[12:])
		}
		if uint64(pos)+uint64(ksize)+uint64(vsize) > uint64(len(e)) || int(pos) < (count-i)*elementSize {
			return damaged("element %d of page %d lies outside of it", i, id)
		}
		key, value := e[pos:pos+ksize], e[pos+ksize:pos+ksize+vsize]
		if ksize == 0 || (i > 0 && bytes.Compare(last, key) >= 0) || !in.hold(key) {
			return damaged("the keys of page %d are not in order", id)
		}
		var err error
		switch {
		case flags == flagLeaf:
			err = w.leaf(id, e, value, depth)
		case i > 0 && !w.edge:
			err = w.page(child, depth+1, bounds{last, key})
		}
		if err != nil {
			return err
		}
		last = key
		if flags == flagBranch {
			child = order.Uint64(e[8:])
		}
	}
	if flags == flagBranch {
		return w.page(child, depth+1, bounds{last, in.high})
	}
	return nil
}

// leaf looks into an element of a leaf page: a bucket leads to another tree.
func (w *walker) leaf(id uint64, e, value []byte, depth int) error {
	switch {
	case order.Uint32(e) == 0:
		return nil
	case order.Uint32(e) != bucketLeaf:
		return damaged("an element of page %d has unknown flags", id)
	case len(value) < bucketSize:
		return damaged("a bucket in page %d is cut off", id)
	}
	if root := order.Uint64(value); root != 0 {
		return w.page(root, depth+1, bounds{})
	}
	if len(value) < bucketSize+pageHeaderSize {
		return damaged("a bucket in page %d is cut off", id)
	}
	return w.elements(id, value[bucketSize:], depth+1, bounds{}, true)
}

// freelist checks that no page in use is on the free list: bbolt would hand it
// out and overwrite it.
func (w *walker) freelist() error {
	b, err := w.read(w.m.freelist)
	if err != nil {
		return err
	}
	if order.Uint16(b[8:]) != flagFreelist {
		return damaged("the free list (page %d) is no free list", w.m.freelist)
	}
	ids, count := b[pageHeaderSize:], uint64(order.Uint16(b[10:]))
	if count == 0xFFFF { // then the first id is the count
		count, ids = order.Uint64(ids), ids[8:]
	}
	if count > uint64(len(ids))/8 {
		return damaged("the free list (page %d) is cut off", w.m.freelist)
	}
	var last uint64 = 1
	for i := range count {
		id := order.Uint64(ids[i*8:])
		if id <= last || id >= w.m.highWater {
			return damaged("the free list is not in order")
		}
		if w.seen[id/64]&(1<<(id%64)) != 0 {
			return damaged("page %d is in use and on the free list", id)
		}
		last = id
	}
	return nil
}
