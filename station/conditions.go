package station

import (
	"cmp"
	"slices"
	"sync"
	"time"
)

// Conditions is the registry of what must hold for the station to work. Whoever
// watches something sets it; pages, metrics, readiness and systemd read it.
type Conditions struct {
	now func() time.Time

	mu      sync.Mutex
	all     map[string]Condition
	changed func() // may be nil
}

// Names of the station's own conditions.
const (
	CondJournal     = "journal"
	CondJournalDisk = "journal-disk"
	CondKeystore    = "keystore"
	CondClock       = "clock"
	CondPorts       = "ports"
	CondLots        = "lots"
	CondViews       = "views"
)

// Set says how one stands. Only a change is told, and moves Since.
func (c *Conditions) Set(n Condition) {
	c.mu.Lock()
	old, known := c.all[n.Name]
	n.Since = old.Since
	if same := known && old == n; same {
		c.mu.Unlock()
		return
	}
	if !known || old.OK != n.OK {
		n.Since = c.clock()
	}
	if c.all == nil {
		c.all = map[string]Condition{}
	}
	c.all[n.Name] = n
	changed := c.changed
	c.mu.Unlock()
	if changed != nil {
		changed()
	}
}

func (c *Conditions) clock() time.Time {
	if c.now != nil {
		return c.now()
	}
	return time.Now()
}

// Good sets one that holds.
func (c *Conditions) Good(name string) { c.Set(Condition{Name: name, OK: true, Ready: true}) }

// Bad sets one that keeps the station from taking units.
func (c *Conditions) Bad(name, text, next string) {
	c.Set(Condition{Name: name, Text: text, Next: next})
}

// Warn sets one that somebody should look at while the station goes on.
func (c *Conditions) Warn(name, text, next string) {
	c.Set(Condition{Name: name, Ready: true, Text: text, Next: next})
}

// All lists the conditions by name.
func (c *Conditions) All() []Condition {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := make([]Condition, 0, len(c.all))
	for _, v := range c.all {
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b Condition) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// Blocking is the first condition that keeps the station from taking units.
func (c *Conditions) Blocking() (Condition, bool) {
	for _, v := range c.All() {
		if !v.OK && !v.Ready {
			return v, true
		}
	}
	return Condition{}, false
}
