package release

import (
	"fmt"
	"slices"

	"github.com/provisiond/provisiond/esp/chip"
)

// Asker is a unit that asks.
type Asker struct {
	Unit   chip.MAC
	Chip   string
	Recipe string // of its key record
	Have   string // the version that it runs, as far as it says
}

// Why says why a unit is offered nothing. The texts are API.
type Why string

// The reasons.
const (
	WhyNothing    Why = "nothing-rolled-out" // the channel has nothing for this unit
	WhyCurrent    Why = "up-to-date"         // the unit runs it, or something newer
	WhyHalted     Why = "halted"             // it is pinned to a release that is halted
	WhyRolledBack Why = "rolled-back"        // the unit went back from it
	WhyPin        Why = "pin-does-not-fit"   // it is pinned to a release for another chip or recipe
)

// Offer is what a unit is offered: a release, or the reason why none.
type Offer struct {
	Release   Release
	Why       Why // "" when there is a release
	Channel   string
	Pinned    bool
	Plaintext bool // the channel allows that
	Unit      Unit
}

// Offer decides what a unit is offered.
func (s *Store) Offer(a Asker) (Offer, error) {
	u, err := s.Unit(a.Unit)
	if err != nil {
		return Offer{}, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	c := s.channels[u.Channel]
	o := Offer{Channel: u.Channel, Plaintext: c.Plaintext, Pinned: u.Pin != "", Unit: u}
	if u.Pin != "" {
		r := s.releases[u.Pin]
		switch {
		case r.Halted:
			o.Why = WhyHalted
		case !r.For(a.Chip, a.Recipe):
			o.Why = WhyPin
		case a.Have != "" && a.Have == r.Version:
			o.Why = WhyCurrent
		default:
			o.Release = r
		}
		return o, nil
	}
	runs := -1 // the place of what the unit runs
	if a.Have != "" {
		for i, x := range c.Rollouts {
			if r := s.releases[x.Release]; r.Version == a.Have && r.For(a.Chip, a.Recipe) {
				runs = i
			}
		}
	}
	o.Why = WhyNothing
	for i := len(c.Rollouts) - 1; i >= 0; i-- {
		x := c.Rollouts[i]
		r := s.releases[x.Release]
		if r.Halted || !x.Has(a.Unit) || !r.For(a.Chip, a.Recipe) {
			continue
		}
		switch {
		case i <= runs:
			o.Why = WhyCurrent
		case x.Release == u.RolledBack:
			o.Why = WhyRolledBack
			continue
		default:
			o.Release, o.Why = r, ""
		}
		return o, nil
	}
	if o.Why == WhyNothing && runs >= 0 {
		o.Why = WhyCurrent
	}
	return o, nil
}

// Allowed gives a release that the unit asks for by name: the one it is pinned to,
// or any that its channel offers it, older ones too, so that a download can be
// finished that was begun before the channel went on. ErrNotFound says that it is
// not for this unit.
func (s *Store) Allowed(a Asker, name string) (Offer, error) {
	u, err := s.Unit(a.Unit)
	if err != nil {
		return Offer{}, err
	}
	s.mu.RLock()
	defer s.mu.RUnlock()
	r, ok := s.releases[name]
	c := s.channels[u.Channel]
	o := Offer{Release: r, Channel: u.Channel, Plaintext: c.Plaintext, Pinned: u.Pin != "", Unit: u}
	offered := u.Pin == name || u.Pin == "" && slices.ContainsFunc(c.Rollouts, func(x Rollout) bool { return x.Release == name && x.Has(a.Unit) })
	if !ok || r.Halted || !offered || !r.For(a.Chip, a.Recipe) {
		return Offer{}, fmt.Errorf("%w for unit %s: %q", ErrNotFound, a.Unit, name)
	}
	return o, nil
}
