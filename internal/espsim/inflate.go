package espsim

import (
	"compress/zlib"
	"errors"
	"io"
	"sync"
)

// inflater unpacks a zlib stream that comes in pieces. compress/zlib pulls its
// input, so it runs in a goroutine of its own, in lockstep with feed: it works
// only while feed waits for it.
type inflater struct {
	in   chan []byte
	out  chan inflated
	stop chan struct{}
	once sync.Once
	left []byte
	err  error
}

type inflated struct {
	data []byte
	err  error // io.EOF at the end of the stream
}

func newInflater() *inflater {
	z := &inflater{in: make(chan []byte), out: make(chan inflated), stop: make(chan struct{})}
	go z.run()
	return z
}

// feed gives what p adds to the unpacked data. After an error the stream is dead.
func (z *inflater) feed(p []byte) ([]byte, error) {
	if z.err != nil {
		if errors.Is(z.err, io.EOF) {
			return nil, nil // the padding of the last block
		}
		return nil, z.err
	}
	z.in <- p
	r := <-z.out
	z.err = r.err
	if errors.Is(r.err, io.EOF) {
		return r.data, nil
	}
	return r.data, r.err
}

// close ends the goroutine.
func (z *inflater) close() { z.once.Do(func() { close(z.stop) }) }

// pull is the reader below zlib: when it runs dry it hands back what was unpacked
// so far and waits for more.
type pull struct {
	z      *inflater
	done   []byte
	hungry bool
}

var errStopped = errors.New("stopped")

func (r *pull) Read(p []byte) (int, error) {
	for len(r.z.left) == 0 {
		if r.hungry {
			select {
			case r.z.out <- inflated{data: r.done}:
				r.done = nil
			case <-r.z.stop:
				return 0, errStopped
			}
		}
		r.hungry = true
		select {
		case r.z.left = <-r.z.in:
		case <-r.z.stop:
			return 0, errStopped
		}
	}
	n := copy(p, r.z.left)
	r.z.left = r.z.left[n:]
	return n, nil
}

func (z *inflater) run() {
	r := &pull{z: z}
	err := unpack(r)
	select {
	case z.out <- inflated{r.done, err}:
	case <-z.stop:
	}
}

func unpack(r *pull) error {
	zr, err := zlib.NewReader(r)
	if err != nil {
		return err
	}
	buf := make([]byte, 4096)
	for {
		n, err := zr.Read(buf)
		r.done = append(r.done, buf[:n]...)
		if err != nil {
			return err
		}
	}
}

// inflateStatus is the ROM's error code for a broken stream (esp-facts A.3).
func inflateStatus(err error) byte {
	if errors.Is(err, zlib.ErrChecksum) {
		return errAdler
	}
	return errDeflate
}
