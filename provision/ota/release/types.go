package release

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/keystore"
)

// DefaultChannel is the channel of units that nobody put elsewhere.
const DefaultChannel = "stable"

// The errors of this package, for errors.Is.
var (
	ErrMissing    = errors.New("there is no release store")
	ErrExists     = errors.New("there is one already")
	ErrLocked     = errors.New("the release store is in use by another process")
	ErrNotFound   = errors.New("there is no such release")
	ErrHalted     = errors.New("the release is halted")
	ErrNoIdentity = errors.New("the release store was opened without its identity")
	ErrInUse      = errors.New("the release is in use")
	ErrBusy       = errors.New("the memory for open releases is in use")
	ErrDamaged    = errors.New("the release store is damaged")
	ErrInput      = errors.New("this cannot be taken")
)

// Release is one image that units can be given.
type Release struct {
	Name          string          `json:"name"`
	Chip          string          `json:"chip"`
	Project       string          `json:"project"`
	Version       string          `json:"version"`
	SecureVersion uint32          `json:"secure_version"`
	Length        int             `json:"length"` // of the plaintext
	SHA256        keystore.Digest `json:"sha256"` // of the plaintext
	Signed        bool            `json:"signed"`
	// Recipes are those whose units may get it; all without one.
	Recipes []string  `json:"recipes,omitempty"`
	Added   time.Time `json:"added"`
	By      string    `json:"by"`
	Halted  bool      `json:"halted"`
	Why     string    `json:"why,omitempty"` // of the halt
	File    string    `json:"file"`          // its sealed file, in the folder images

	// Results counts what units reported, by outcome.
	Results map[Outcome]int `json:"results,omitempty"`
}

// For reports whether units of the chip and recipe may get it.
func (r Release) For(chipName, recipe string) bool {
	return r.Chip == chipName && (len(r.Recipes) == 0 || slices.Contains(r.Recipes, recipe))
}

// Rollout is the share of a channel's units that is offered a release.
type Rollout struct {
	Release string    `json:"release"`
	Share   Share     `json:"share"`
	Since   time.Time `json:"since"` // of the present share
	By      string    `json:"by"`
}

// Channel is a group of units with its rollouts, in the order in which they were begun.
type Channel struct {
	Name     string    `json:"name"`
	Rollouts []Rollout `json:"rollouts,omitempty"`
	// Plaintext lets units of the channel have images in plaintext over TLS.
	Plaintext bool `json:"plaintext"`
}

// Unit is what is known of a unit beside its key record.
type Unit struct {
	MAC     chip.MAC `json:"unit"`
	Channel string   `json:"channel"`
	Pin     string   `json:"pin,omitempty"` // the release that it gets whatever its channel says
	// SecureVersion is the highest that the unit reported.
	SecureVersion uint32  `json:"secure_version"`
	Last          *Result `json:"last,omitempty"`
	// RolledBack is the release that the unit gave up again. It is not offered once more.
	RolledBack string `json:"rolled_back,omitempty"`
}

// Outcome is what became of an update.
type Outcome string

// The outcomes.
const (
	Applied    Outcome = "applied"     // written and chosen for the next start
	Failed     Outcome = "failed"      // not written, or not valid
	Confirmed  Outcome = "confirmed"   // it runs and was found good
	RolledBack Outcome = "rolled-back" // the unit went back to what it had
)

// Result is what a unit reports.
type Result struct {
	Release       string    `json:"release"`
	Slot          string    `json:"slot"`
	Outcome       Outcome   `json:"outcome"`
	Reason        string    `json:"reason"`
	Version       string    `json:"version"` // that the unit runs now
	SecureVersion uint32    `json:"secure_version"`
	Time          time.Time `json:"time,omitzero"` // filled in by the store
}

// MaxResult bounds the text of a Result.
const MaxResult = 2 << 10

// maxSecureVersion is the most bits that SECURE_VERSION has on any chip (ESP32). A
// report of more would keep a unit from every release that there can be.
const maxSecureVersion = 32

// ParseResult reads what a unit sends. Unknown members are let through, since
// units in the field may be newer than the server; a wrong one is not.
func ParseResult(b []byte) (Result, error) {
	var r Result
	if len(b) > MaxResult {
		return r, fmt.Errorf("%w: the result has more than %d bytes", ErrInput, MaxResult)
	}
	// A version comes from a build and may be in any encoding. A report that was
	// refused for that would be lost.
	b = bytes.ToValidUTF8(b, []byte("_")) // as a release's version is shown
	if err := json.Unmarshal(b, &r); err != nil {
		return Result{}, fmt.Errorf("%w: the result is no JSON object with release, slot, outcome, reason, version and secure_version", ErrInput)
	}
	r.Time = time.Time{}
	return r, r.validate()
}

var slotName = regexp.MustCompile(`^ota_([0-9]|1[0-5])$`)

func (r Result) validate() error {
	switch {
	case !slices.Contains([]Outcome{Applied, Failed, Confirmed, RolledBack}, r.Outcome):
		return fmt.Errorf("%w: outcome: write applied, failed, confirmed or rolled-back", ErrInput)
	case r.Release != "" && !ValidName(r.Release):
		return fmt.Errorf("%w: release is not 1 to 64 printable ASCII characters without a space", ErrInput)
	case r.Slot != "" && !slotName.MatchString(r.Slot):
		return fmt.Errorf("%w: slot is not one of ota_0 to ota_15", ErrInput)
	case r.SecureVersion > maxSecureVersion:
		return fmt.Errorf("%w: secure_version counts eFuse bits, %d at most", ErrInput, maxSecureVersion)
	case keystore.CheckText(r.Reason) != "" || keystore.CheckText(r.Version) != "":
		return fmt.Errorf("%w: reason and version have at most 256 bytes and no control characters", ErrInput)
	}
	return nil
}

// ValidName reports whether a release may have this name. It stands in manifests,
// whose rule this is.
func ValidName(s string) bool {
	if s == "" || s == "-" || len(s) > 64 {
		return false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}

var channelName = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)

// Share of units, in hundredths of a percent: 0 to 10000.
type Share uint16

// All is everybody.
const All Share = 10000

// ParseShare reads a percentage with at most two decimals: 5, 12.5, 100.
func ParseShare(s string) (Share, error) {
	bad := fmt.Errorf("%w: %q is no percentage: write 0 to 100 with at most two decimals, for example 12.5", ErrInput, s)
	whole, frac, dot := strings.Cut(strings.TrimSuffix(s, "%"), ".")
	if dot && (frac == "" || len(frac) > 2) {
		return 0, bad
	}
	w, err := strconv.ParseUint(whole, 10, 8)
	f, ferr := strconv.ParseUint((frac + "00")[:2], 10, 8)
	if err != nil || ferr != nil || w*100+f > uint64(All) {
		return 0, bad
	}
	return Share(w*100 + f), nil
}

// MarshalText writes the percentage.
func (s Share) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// UnmarshalText reads it.
func (s *Share) UnmarshalText(b []byte) (err error) {
	*s, err = ParseShare(string(b))
	return err
}

// String is the percentage.
func (s Share) String() string {
	return strings.TrimSuffix(strings.TrimRight(fmt.Sprintf("%d.%02d", uint16(s)/100, uint16(s)%100), "0"), ".")
}

// Number is the unit's place among all units for a release, 0 to 9999. It depends
// on nothing else, so that every server has the same.
func Number(unit chip.MAC, release string) uint16 {
	h := sha256.New()
	_, _ = fmt.Fprintf(h, "provisiond rollout v1\x00%s\x00", release) // a hash takes everything
	h.Write(unit[:])
	return uint16(binary.BigEndian.Uint64(h.Sum(nil)) % uint64(All))
}

// Has reports whether the unit is in the share.
func (r Rollout) Has(unit chip.MAC) bool { return Number(unit, r.Release) < uint16(r.Share) }

// encode and decode are how state stands in the database. What decodes encodes to
// the same bytes: everything else is damage.
func encode(v any) ([]byte, error) { return json.Marshal(v) }

func decode(b []byte, v any) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	again, err := encode(v)
	if err != nil || !bytes.Equal(again, b) {
		return fmt.Errorf("%w: an entry is not as it was written", ErrDamaged)
	}
	return nil
}
