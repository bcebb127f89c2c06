// Package keystore owns flash encryption keys outside the chip: how they are
// made (Key, from crypto/rand), how they are named (Fingerprint), what is stored
// with them (Record) and what a place that stores them must promise (Store).
//
// # What a Store promises
//
// Create-only. A record is addressed by unit and fingerprint. It is never
// changed and never removed. What happens to its key later is told by numbered
// states beside it, which are create-only too.
//
// One key per unit. Two keys that may both be in silicon never exist for one
// unit: Create is refused while any other record of the unit is not superseded,
// and a record that may be in silicon can only be superseded after the chip was
// read and shows that it is not. The engine
// writes MayBeInSilicon directly before the burn, so a crash between the two
// leaves a record that blocks a second key.
//
// Custody. Confirm proves that a record is durable and can be found by its
// fingerprint, without giving the key. No key is burned before that.
//
// Simulated units stay apart. They have locally administered MACs, which no
// chip from a factory has. A test store takes only those, any other store none.
//
// One secret per unit. The other secrets that a board carries, its OTA token and
// its HMAC key, are derived from the flash key (Key.DeriveOTAToken,
// Key.DeriveHMACKey), so that nothing else needs custody.
//
// A station needs Create, Confirm, List and AddState. Load is for rework and
// OTA roles.
//
// The exported API carries nothing from internal/, so that a Store can be
// written in another module; keystore/keystoretest is its conformance suite.
package keystore

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
)

// Store keeps key records. It is safe for concurrent use. Every method stops
// early with ctx's error when ctx is done before anything was written.
type Store interface {
	// Info describes the store and proves that it can be reached.
	Info(ctx context.Context) (Info, error)

	// Create stores a new record durably. It validates r first. Creating the
	// identical record again is a success for as long as its key may still be
	// used. Otherwise the error is ErrExists for the same key with other content
	// (or a superseded one), and a *ConflictError while another key of the unit
	// is not superseded. ErrUnknownOutcome says that the record may or may not
	// be there: look with Confirm or List, and burn nothing meanwhile.
	Create(ctx context.Context, r Record) (Receipt, error)

	// Confirm proves that the record is durable and names the key with this
	// fingerprint. It gives no key.
	Confirm(ctx context.Context, unit chip.MAC, fp Fingerprint) (Receipt, error)

	// List gives the records of a unit in the order of their creation, with
	// their states and without keys. A unit without records is an empty list. With
	// ErrPartial comes what the rest of the store knows: there may be more.
	List(ctx context.Context, unit chip.MAC) ([]Meta, error)

	// Units gives every unit that has a record, in ascending order.
	Units(ctx context.Context) iter.Seq2[chip.MAC, error]

	// AddState adds the next state of a record; CheckTransition is the rule.
	// Adding the kind that the record is in already is a success for the same
	// job and changes nothing. Seq and a zero Time are filled in by the store.
	AddState(ctx context.Context, unit chip.MAC, fp Fingerprint, s State) (Receipt, error)

	// Load gives the whole record with its key. Only rework and OTA need it.
	Load(ctx context.Context, unit chip.MAC, fp Fingerprint) (Record, error)

	// Close frees the store. Every other call after it fails.
	Close() error
}

// Reserver is a Store that can make a key its unit's own before the record is
// stored. It is optional. Called when the key has been made and before the flash
// is written, it tells a conflict before work is done for nothing, and leaves
// one write less to do between the last check and the burn. Create does it by
// itself otherwise.
type Reserver interface {
	// Reserve claims the unit for the key of m, of which Unit, Fingerprint, Job,
	// Station and Created count. Its errors are those of Create. A reservation
	// blocks other keys of the unit until it is superseded, and List shows it.
	Reserve(ctx context.Context, m Meta) error
}

// Info describes a store.
type Info struct {
	Kind      string // local, vault, …
	ID        string // tells this store from every other one
	TestStore bool   // takes simulated units, and only those
	Where     string // path or address, for people
	// Warning is what people must know of the store at this moment, for example
	// that it cannot be reached and keys go to an escrow. Usually empty.
	Warning string
}

// Receipt says where something is stored.
type Receipt struct {
	Ref     string    // key_ref of reports and journal
	Version int       // version of the record, or number of the state
	Store   string    // Info.ID
	Time    time.Time // when it became durable, UTC
	// Warning is what people must know of this custody: that the record waits in
	// an escrow, and so on. It belongs to the unit's result. Usually empty.
	Warning string
}

// Meta is what a store tells about a record without its key. A store whose role
// may not see a field leaves it zero; Unit, Fingerprint, States and Receipt are
// always there.
type Meta struct {
	Unit             chip.MAC
	Simulated        bool
	Chip             string
	ChipRevision     chip.Revision
	Scheme           chip.Scheme
	Fingerprint      Fingerprint
	FlashCryptConfig uint8
	FlashSize        uint32
	Recipe           string
	RecipeRevision   int
	RecipeHash       string
	Job              string
	Station          string
	Lot              string
	Created          time.Time
	// The members of Record of the same names.
	OTATokenSHA256    *Digest
	ECIESPublicKey    []byte
	SecureBootScheme  string
	SecureBootDigests [][32]byte
	Receipt           Receipt
	States            []State // in the order of Seq
	// Warning says that this is not all that may be known, because a part of the
	// store could not be asked. Usually empty.
	Warning string
}

// Superseded reports whether the key was given up before it reached silicon.
func (m Meta) Superseded() bool { return has(m.States, Superseded) }

// MayBeInSilicon reports whether the key is in silicon or may be.
func (m Meta) MayBeInSilicon() bool {
	return has(m.States, MayBeInSilicon) && !has(m.States, NotInSilicon) || has(m.States, InSilicon)
}

// Current is the kind of the last state, Stored if there is none.
func (m Meta) Current() StateKind { return current(m.States) }

// StateKind says what is known about where a record's key is.
type StateKind string

// The kinds of states.
const (
	Stored         StateKind = ""                  // no state yet: stored, and no burn was begun
	MayBeInSilicon StateKind = "may-be-in-silicon" // written directly before the burn
	InSilicon      StateKind = "in-silicon"        // read back from the chip
	NotInSilicon   StateKind = "not-in-silicon"    // a burn was begun, and the chip was then read: its key block is blank
	Superseded     StateKind = "superseded"        // never reached silicon, another key takes its place
	Quarantined    StateKind = "quarantined"       // the unit was set aside
)

// StateKinds lists the kinds that a state may have.
func StateKinds() []StateKind {
	return []StateKind{MayBeInSilicon, InSilicon, NotInSilicon, Superseded, Quarantined}
}

// State is one entry in a record's history.
type State struct {
	Seq     int // 1, 2, …; filled in by the store
	Kind    StateKind
	Note    string // why, for people
	Job     string // which job said so
	Station string
	Time    time.Time // UTC; filled in by the store if zero
}

// CheckTransition is the rule for what may follow in a record's history:
//
//	Stored          → MayBeInSilicon, InSilicon, Superseded, Quarantined
//	MayBeInSilicon  → InSilicon, NotInSilicon, Quarantined
//	NotInSilicon    → Superseded, Quarantined
//	InSilicon       → Quarantined
//	Quarantined     → InSilicon; Superseded if no burn was begun
//	Superseded      → nothing
//
// So a key that may be in silicon is never given up unless the chip was read and
// shows that it is not, and a key that was given up is never burned. Quarantined leads to InSilicon because a chip can be read
// later; a new burn of a quarantined key is not offered.
func CheckTransition(history []State, next StateKind) error {
	cur := current(history)
	ok := false
	switch next {
	case MayBeInSilicon:
		ok = cur == Stored
	case InSilicon:
		ok = cur == Stored || cur == MayBeInSilicon || cur == Quarantined
	case NotInSilicon:
		ok = cur == MayBeInSilicon && !has(history, InSilicon)
	case Superseded:
		ok = cur == NotInSilicon || (cur == Stored || cur == Quarantined) && !has(history, MayBeInSilicon) && !has(history, InSilicon)
	case Quarantined:
		ok = cur == Stored || cur == MayBeInSilicon || cur == NotInSilicon || cur == InSilicon
	default:
		return fmt.Errorf("keystore: unknown state %q", string(next))
	}
	if !ok {
		return &StateError{From: cur, To: next, Burned: has(history, MayBeInSilicon) || has(history, InSilicon)}
	}
	return nil
}

func has(history []State, k StateKind) bool {
	for _, s := range history {
		if s.Kind == k {
			return true
		}
	}
	return false
}

func current(history []State) StateKind {
	if len(history) == 0 {
		return Stored
	}
	return history[len(history)-1].Kind
}

// The errors of a Store, for errors.Is.
var (
	ErrExists         = errors.New("keystore: the record exists already with other content")
	ErrConflict       = errors.New("keystore: another key of this unit is not superseded")
	ErrNotFound       = errors.New("keystore: no such record")
	ErrUnavailable    = errors.New("keystore: not available")
	ErrTestUnit       = errors.New("keystore: simulated and real units do not share a store")
	ErrUnknownOutcome = errors.New("keystore: it is not known whether the write took place")
	ErrState          = errors.New("keystore: this state may not follow")
	ErrDamaged        = errors.New("keystore: the stored record is damaged or was changed")
	ErrPartial        = errors.New("keystore: a part of the store could not be asked")
)

// ConflictError says which other key stands in the way of a new one.
type ConflictError struct {
	Unit        chip.MAC
	Fingerprint Fingerprint // of the key that is stored already
	State       StateKind
	Job         string // that created it, if the store may tell
}

// Error names the other key and the next step.
func (e *ConflictError) Error() string {
	what, next := "is stored and not superseded", "supersede it first if the chip's key block is still virgin"
	switch e.State {
	case MayBeInSilicon, InSilicon:
		what, next = "is or may be in silicon", "inspect the chip; a second key is never made for it"
	case Quarantined:
		what, next = "is quarantined", "resolve the quarantine first"
	}
	return fmt.Sprintf("keystore: key %s of unit %s %s: %s", e.Fingerprint, e.Unit, what, next)
}

// Is makes errors.Is(err, ErrConflict) true.
func (e *ConflictError) Is(target error) bool { return target == ErrConflict }

// StateError says which state may not follow which.
type StateError struct {
	From, To StateKind
	Burned   bool // the key is or may be in silicon
}

// Error names both states.
func (e *StateError) Error() string {
	from := e.From
	if from == Stored {
		from = "stored"
	}
	why := ""
	if e.Burned && e.To == Superseded {
		why = ": the key is or may be in silicon"
	}
	return fmt.Sprintf("keystore: state %s may not follow %s%s", e.To, from, why)
}

// Is makes errors.Is(err, ErrState) true.
func (e *StateError) Is(target error) bool { return target == ErrState }

// CheckUnit is the rule that keeps simulated and real units apart. Every Store
// applies it to Create.
func CheckUnit(unit chip.MAC, testStore bool) error {
	switch {
	case testStore && !unit.LocallyAdministered():
		return fmt.Errorf("%w: %s is a real unit and this is a test store: use the line's keystore", ErrTestUnit, unit)
	case !testStore && unit.LocallyAdministered():
		return fmt.Errorf("%w: %s is a simulated unit (locally administered MAC): use a test store", ErrTestUnit, unit)
	}
	return nil
}
