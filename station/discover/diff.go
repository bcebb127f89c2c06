package discover

import (
	"slices"
	"time"
)

// Seen is a port as a watcher knows it; see the package comment for what its
// counters promise.
type Seen struct {
	Port
	Visit      uint64 `json:"visit"`
	Generation uint64 `json:"generation"`
	Away       bool   `json:"away"`
}

// Goes reports whether the visit goes on when p is what is found at the position.
func (s Seen) Goes(p Port) bool {
	return s.same(p) && (p.NativeUSB || s.enumeration == p.enumeration)
}

// Difference is what a list of ports has that an older one had not.
type Difference struct{ Added, Removed, Changed []Seen }

// Empty reports whether nothing is different.
func (d Difference) Empty() bool { return len(d.Added)+len(d.Removed)+len(d.Changed) == 0 }

// Diff compares two lists of a watcher. Removed holds the old state, Added and
// Changed the new one. A position whose visit is another one is in both Removed
// and Added.
func Diff(old, now []Seen) Difference {
	var d Difference
	before := make(map[string]Seen, len(old))
	for _, s := range old {
		before[s.Key()] = s
	}
	for _, s := range now {
		was, there := before[s.Key()]
		delete(before, s.Key())
		switch {
		case !there:
			d.Added = append(d.Added, s)
		case was.Visit != s.Visit:
			d.Removed = append(d.Removed, was)
			d.Added = append(d.Added, s)
		case was != s:
			d.Changed = append(d.Changed, s)
		}
	}
	for _, s := range old {
		if _, left := before[s.Key()]; left {
			d.Removed = append(d.Removed, s)
		}
	}
	return d
}

// history follows the positions through scans. It is pure: time is told to it.
type history struct {
	grace time.Duration
	at    map[string]*place
}

// place is a position that had a device once. It is kept for good, so that its
// counters never go back; there are as many as the machine has sockets.
type place struct {
	seen Seen
	live bool      // in the list
	left time.Time // since it is away
}

func newHistory(grace time.Duration) *history {
	return &history{grace: grace, at: map[string]*place{}}
}

// scanned takes the ports of a scan. It reports whether one has come, also one
// that was away.
func (h *history) scanned(ports []Port, now time.Time) (come bool) {
	h.expire(now)
	there := make(map[string]bool, len(ports))
	for _, p := range ports {
		key := p.Key()
		there[key] = true
		pl := h.at[key]
		switch {
		case pl == nil:
			h.at[key] = &place{seen: Seen{Port: p, Visit: 1, Generation: 1}, live: true}
			come = true
		case !pl.live || !pl.seen.Goes(p):
			pl.seen = Seen{Port: p, Visit: pl.seen.Visit + 1, Generation: pl.seen.Generation + 1}
			pl.live, come = true, true
		default:
			if pl.seen.Away || pl.seen.enumeration != p.enumeration {
				pl.seen.Generation++
				come = true
			}
			pl.seen.Port, pl.seen.Away = p, false
		}
	}
	for key, pl := range h.at {
		if pl.live && !pl.seen.Away && !there[key] {
			pl.seen.Away, pl.left = true, now
			pl.seen.Link = ""
		}
	}
	h.expire(now)
	return come
}

// expire ends the visits whose device has been away for too long.
func (h *history) expire(now time.Time) {
	for _, pl := range h.at {
		if pl.live && pl.seen.Away && now.Sub(pl.left) >= h.grace {
			pl.live = false
		}
	}
}

// next is when expire has something to do; false if it never has.
func (h *history) next() (time.Time, bool) {
	var first time.Time
	for _, pl := range h.at {
		if pl.live && pl.seen.Away {
			if t := pl.left.Add(h.grace); first.IsZero() || t.Before(first) {
				first = t
			}
		}
	}
	return first, !first.IsZero()
}

// list gives the ports of all visits, by position.
func (h *history) list() []Seen {
	var list []Seen
	for _, pl := range h.at {
		if pl.live {
			list = append(list, pl.seen)
		}
	}
	slices.SortFunc(list, func(a, b Seen) int { return comparePorts(a.Port, b.Port) })
	return list
}
