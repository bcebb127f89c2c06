package vault

import (
	"sync"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/keystore"
)

// Limits of what is remembered of reservations.
const (
	reservationLife = 15 * time.Minute // as long as a flash may take to be written
	maxReservations = 4096             // many times the slots of a station
)

// reservation is a claim of ours that was written and read back.
type reservation struct {
	fp   keystore.Fingerprint
	at   time.Time
	used bool // by Create
}

// reservations are what one Store remembers of its claims, so that Create need
// not write them again, nor Confirm read them again. Each is good for one Create
// and one Confirm. What is forgotten here costs a request and nothing else.
type reservations struct {
	mu sync.Mutex
	m  map[chip.MAC]reservation
}

func (r *reservations) add(unit chip.MAC, fp keystore.Fingerprint) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.m == nil || len(r.m) >= maxReservations {
		r.m = map[chip.MAC]reservation{}
	}
	r.m[unit] = reservation{fp: fp, at: time.Now()}
}

func (r *reservations) get(unit chip.MAC, fp keystore.Fingerprint) (reservation, bool) {
	v, ok := r.m[unit]
	return v, ok && v.fp == fp && time.Since(v.at) < reservationLife
}

// forCreate reports whether the key is claimed already.
func (r *reservations) forCreate(unit chip.MAC, fp keystore.Fingerprint) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	v, ok := r.get(unit, fp)
	if !ok || v.used {
		return false
	}
	v.used = true
	r.m[unit] = v
	return true
}

// forConfirm reports whether the claim was read, and forgets it.
func (r *reservations) forConfirm(unit chip.MAC, fp keystore.Fingerprint) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	v, ok := r.get(unit, fp)
	if !ok || !v.used {
		return false
	}
	delete(r.m, unit)
	return true
}
