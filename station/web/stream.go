package web

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/provisiond/provisiond/station"
)

// retry is what a browser waits before it connects again, in milliseconds.
const retry = 2000

// writeLimit is how long a viewer may take to accept one batch of events. Behind
// it the viewer is dropped; it comes back and is told what it missed.
const writeLimit = 20 * time.Second

// emit writes what is new since a revision; 0 means everything.
type emit func(b *bytes.Buffer, f *frame, since uint64) error

// stream holds a viewer: frame after frame, with no more memory than the frame that
// is being written.
func (s *Server) stream(q *request, since string, e emit) error {
	select {
	case s.places <- struct{}{}:
		defer func() { <-s.places }()
	default:
		p := newProblem(http.StatusServiceUnavailable, "viewers", "too many screens look at this station", "close some")
		p.retryAfter = 10
		return p
	}
	rc := http.NewResponseController(q.w)
	// The server's limits for a whole request are not for streams.
	_ = rc.SetReadDeadline(time.Time{})
	leave := s.feed.join()
	defer leave()

	h := q.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no")
	var b bytes.Buffer
	send := func() error {
		// A connection that knows no deadlines is a test's recorder.
		_ = rc.SetWriteDeadline(time.Now().Add(writeLimit))
		_, err := q.w.Write(b.Bytes())
		if err == nil {
			err = rc.Flush()
		}
		b.Reset()
		return err
	}
	fmt.Fprintf(&b, "retry: %d\n\n", retry)
	f := s.feed.current()
	last := s.feed.since(since, f)
	beat := time.NewTicker(s.o.Heartbeat)
	defer beat.Stop()
	for {
		if f.rev > last {
			if err := e(&b, f, last); err != nil {
				return err
			}
			last = f.rev
		}
		if b.Len() > 0 {
			if err := send(); err != nil {
				return nil // the viewer is gone
			}
		}
		select {
		case <-f.replaced:
			f = s.feed.current()
		case <-beat.C:
			if !q.still() {
				event(&b, "reload", "", nil)
				_ = send() // the viewer goes either way
				return nil
			}
			b.WriteString(": still here\n\n")
		case <-q.r.Context().Done():
			return nil
		case <-s.closing:
			return nil
		}
	}
}

// event writes one event; every line of the data has its own prefix.
func event(b *bytes.Buffer, name, id string, data []byte) {
	b.WriteString("event: " + name + "\n")
	if id != "" {
		b.WriteString("id: " + id + "\n")
	}
	for line := range bytes.SplitSeq(data, []byte("\n")) {
		b.WriteString("data: ")
		b.Write(bytes.TrimSuffix(line, []byte("\r")))
		b.WriteByte('\n')
	}
	b.WriteByte('\n')
}

// pageEvents is the stream behind a page: fragments of HTML by name. A page of one
// slot asks for that slot's.
func (s *Server) pageEvents(q *request) error {
	from := q.r.Header.Get("Last-Event-ID")
	if from == "" {
		from = q.r.URL.Query().Get("since")
	}
	slot := q.r.URL.Query().Get("slot")
	return s.stream(q, from, func(b *bytes.Buffer, f *frame, since uint64) error {
		id := s.feed.id(f.rev)
		// A page that another process made, or for other slots, begins anew.
		if since < f.shape && since != 0 || s.feed.foreign(from) {
			event(b, "reload", id, nil)
			return nil
		}
		if slot != "" {
			i := slices.IndexFunc(f.view.Slots, func(v station.SlotView) bool { return v.Name == slot })
			if i >= 0 && f.slotRev[i] > since {
				html, err := s.fragment(q.viewer, "slot-live", s.newTile(f, i, q.viewer))
				if err != nil {
					return err
				}
				event(b, "slot", id, html)
			}
		} else {
			for i, rev := range f.slotRev {
				if rev > since {
					html, err := s.tileHTML(f, i, q.viewer)
					if err != nil {
						return err
					}
					event(b, fmt.Sprintf("tile-%d", i), id, []byte(html))
				}
			}
		}
		if f.station > since {
			html, err := s.fragment(q.viewer, "status", s.newStatus(f.view, q.viewer))
			if err != nil {
				return err
			}
			event(b, "status", id, html)
		}
		return nil
	})
}

// apiEvents is the stream of the API.
func (s *Server) apiEvents(q *request) error {
	return s.stream(q, q.r.Header.Get("Last-Event-ID"), func(b *bytes.Buffer, f *frame, since uint64) error {
		id := s.feed.id(f.rev)
		put := func(name string, v any) error {
			data, err := json.Marshal(v)
			if err == nil {
				event(b, name, id, data)
			}
			return err
		}
		if since < f.shape {
			return put("snapshot", f.view)
		}
		for i, rev := range f.slotRev {
			if rev > since {
				if err := put("slot", f.view.Slots[i]); err != nil {
					return err
				}
			}
		}
		if f.station > since {
			v := f.view
			v.Slots = []station.SlotView{}
			return put("station", v)
		}
		return nil
	})
}
