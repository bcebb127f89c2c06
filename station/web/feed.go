package web

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"html/template"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/provisiond/provisiond/station"
)

// frame is the station at one revision. It is never changed: all viewers read the
// same one.
type frame struct {
	rev      uint64
	view     station.View
	slotRev  []uint64 // revision of the last change, by slot
	station  uint64   // of the last change to anything but slots
	shape    uint64   // since when the slots are these
	replaced chan struct{}
}

// feed looks at the station for all viewers: one watch and one view for any number
// of them. It works while there are viewers. A viewer's buffer is the number of the
// frame that it saw last.
type feed struct {
	st    Station
	tick  time.Duration
	epoch string // of this process: revisions of another one mean nothing

	mu      sync.Mutex
	now     *frame
	viewers int
	stop    context.CancelFunc
	stopped chan struct{}
}

func newFeed(st Station, tick time.Duration) *feed {
	var b [6]byte
	_, _ = rand.Read(b[:]) // never fails
	return &feed{st: st, tick: tick, epoch: hex.EncodeToString(b[:])}
}

// join adds a viewer; the caller leaves once.
func (f *feed) join() (leave func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.viewers++
	if f.viewers == 1 {
		ctx, cancel := context.WithCancel(context.Background())
		f.stop, f.stopped = cancel, make(chan struct{})
		// The watch begins before the look, so that nothing falls between them.
		w := f.st.Watch()
		f.lookLocked()
		go f.pump(ctx, w, f.stopped)
	}
	return func() {
		f.mu.Lock()
		f.viewers--
		var stopped chan struct{}
		if f.viewers == 0 {
			f.stop()
			stopped = f.stopped
		}
		f.mu.Unlock()
		if stopped != nil {
			<-stopped
		}
	}
}

func (f *feed) pump(ctx context.Context, w *station.Watch, stopped chan struct{}) {
	defer close(stopped)
	defer w.Close()
	pause := time.NewTimer(f.tick)
	defer pause.Stop()
	for {
		if _, err := w.Next(ctx); err != nil {
			return
		}
		f.mu.Lock()
		f.lookLocked()
		f.mu.Unlock()
		pause.Reset(f.tick)
		select {
		case <-pause.C:
		case <-ctx.Done():
			return
		}
	}
}

// current is the newest frame. Without viewers it is a fresh look.
func (f *feed) current() *frame {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.viewers == 0 {
		f.lookLocked()
	}
	return f.now
}

func (f *feed) lookLocked() {
	v := f.st.View()
	old := f.now
	if old == nil {
		f.now = &frame{rev: 1, view: v, slotRev: all(len(v.Slots), 1), station: 1, shape: 1, replaced: make(chan struct{})}
		return
	}
	rev := old.rev + 1
	n := &frame{rev: rev, view: v, station: old.station, shape: old.shape, replaced: make(chan struct{})}
	if !sameSlots(old.view.Slots, v.Slots) || old.view.Version != v.Version {
		n.slotRev, n.station, n.shape = all(len(v.Slots), rev), rev, rev
	} else {
		n.slotRev = make([]uint64, len(v.Slots))
		for i := range v.Slots {
			n.slotRev[i] = old.slotRev[i]
			if !reflect.DeepEqual(old.view.Slots[i], v.Slots[i]) {
				n.slotRev[i] = rev
			}
		}
		a, b := old.view, v
		a.Slots, b.Slots = nil, nil
		if !reflect.DeepEqual(a, b) {
			n.station = rev
		}
	}
	f.now = n
	close(old.replaced)
}

func all(n int, rev uint64) []uint64 {
	s := make([]uint64, n)
	for i := range s {
		s[i] = rev
	}
	return s
}

func sameSlots(a, b []station.SlotView) bool {
	if len(a) != len(b) {
		return false
	}
	for i := range a {
		if a[i].Name != b[i].Name {
			return false
		}
	}
	return true
}

// id names a frame for a viewer that comes back.
func (f *feed) id(rev uint64) string { return f.epoch + "-" + strconv.FormatUint(rev, 10) }

// since reads an id. Of another process, or of the future, it is 0: everything is new.
func (f *feed) since(id string, now *frame) uint64 {
	epoch, num, ok := strings.Cut(id, "-")
	rev, err := strconv.ParseUint(num, 10, 64)
	if !ok || err != nil || epoch != f.epoch || rev > now.rev {
		return 0
	}
	return rev
}

// foreign reports an id that another process gave out.
func (f *feed) foreign(id string) bool {
	return id != "" && !strings.HasPrefix(id, f.epoch+"-")
}

// tileCache keeps the last rendered form of each tile, so that twenty viewers cost
// one rendering.
type tileCache struct {
	mu sync.Mutex
	m  map[tileKey]tile
}

type tileKey struct {
	index int
	lang  string
	can   bool // the viewer may start units
}

type tile struct {
	rev  uint64
	html []byte
}

func (c *tileCache) get(k tileKey, rev uint64, render func(*bytes.Buffer) error) ([]byte, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if t, ok := c.m[k]; ok && t.rev == rev {
		return t.html, nil
	}
	var b bytes.Buffer
	if err := render(&b); err != nil {
		return nil, err
	}
	if c.m == nil {
		c.m = map[tileKey]tile{}
	}
	// Tiles of slots that a new configuration has not any more stay until the
	// process ends: they are few.
	c.m[k] = tile{rev, b.Bytes()}
	return b.Bytes(), nil
}

func (s *Server) tileHTML(f *frame, i int, v viewer) (template.HTML, error) {
	b, err := s.tiles.get(tileKey{i, v.lang.tag, v.may(actStart)}, f.slotRev[i], func(b *bytes.Buffer) error {
		return s.pages[v.lang.tag].ExecuteTemplate(b, "tile", s.newTile(f, i, v))
	})
	return template.HTML(b), err //nolint:gosec // it comes from html/template
}
