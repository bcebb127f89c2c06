package release

import (
	"context"
	"fmt"
	"sync"

	"github.com/provisiond/provisiond/provision/ota"
)

// Image is an open image. Release lets it go.
type Image struct {
	*ota.Image
	from *images
	slot *slot
	once sync.Once
}

// Release lets the image go; its bytes must not be used after that.
func (i *Image) Release() { i.once.Do(func() { i.from.release(i.slot) }) }

// images are those that are open, at most so many bytes of them.
type images struct {
	most int64
	open func(Release) (*ota.Image, error)

	mu    sync.Mutex
	bytes int64
	slots map[string]*slot
	clock uint64
}

// slot is one image in memory, or the place of one that is being opened.
type slot struct {
	name  string
	size  int64
	image *ota.Image
	err   error
	ready chan struct{} // closed when image or err is there
	users int
	used  uint64 // when it was asked for last
	gone  bool   // no longer in slots: wiped with its last user
}

// Open gives the image of a release, from memory or from its sealed file. Its
// error is ErrBusy when all memory is taken by images in use.
func (s *Store) Open(ctx context.Context, r Release) (*Image, error) {
	m := &s.images
	m.mu.Lock()
	sl, ok := m.slots[r.File]
	if !ok {
		sl = &slot{name: r.File, size: int64(r.Length), ready: make(chan struct{})}
		if !m.room(sl.size) {
			m.mu.Unlock()
			return nil, fmt.Errorf("%w: release %s needs %d bytes of %d", ErrBusy, r.Name, sl.size, m.most)
		}
		if m.slots == nil {
			m.slots = map[string]*slot{}
		}
		m.slots[sl.name] = sl
		m.bytes += sl.size
		go func() {
			img, err := m.open(r)
			m.mu.Lock()
			sl.image, sl.err = img, err
			if err != nil {
				m.take(sl) // the next one tries again
			}
			if sl.gone && sl.users == 0 {
				sl.wipe()
			}
			m.mu.Unlock()
			close(sl.ready)
		}()
	}
	sl.users++
	m.clock++
	sl.used = m.clock
	m.mu.Unlock()
	select {
	case <-sl.ready:
	case <-ctx.Done():
		m.release(sl)
		return nil, ctx.Err()
	}
	if sl.err != nil {
		m.release(sl)
		return nil, sl.err
	}
	return &Image{Image: sl.image, from: m, slot: sl}, nil
}

// room makes room by letting go what nobody uses, the longest unused first. It is
// called with mu held.
func (m *images) room(size int64) bool {
	for m.bytes+size > m.most {
		var oldest *slot
		for _, s := range m.slots {
			if s.users == 0 && (oldest == nil || s.used < oldest.used) {
				oldest = s
			}
		}
		if oldest == nil {
			return false
		}
		m.take(oldest)
	}
	return true
}

// take takes a slot out; its bytes count until they are wiped.
func (m *images) take(s *slot) {
	if s.gone {
		return
	}
	delete(m.slots, s.name)
	s.gone = true
	m.settle(s)
}

// settle wipes what is gone and unused.
func (m *images) settle(s *slot) {
	if s.gone && s.users == 0 && !s.wiped() {
		s.wipe()
		m.bytes -= s.size
		s.size = 0
	}
}

func (s *slot) wiped() bool { return s.size == 0 }

func (s *slot) wipe() {
	if s.image != nil {
		clear(s.image.Plain())
		s.image = nil
	}
}

func (m *images) release(s *slot) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s.users--
	m.settle(s)
}

func (m *images) drop(name string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s, ok := m.slots[name]; ok {
		m.take(s)
	}
}

func (m *images) dropAll() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, s := range m.slots {
		m.take(s)
	}
}
