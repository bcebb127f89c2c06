package report

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/internal/canon"
	"github.com/provisiond/provisiond/keystore"
	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
)

// An inventory is a file of lines, each one canonical JSON object of one of these
// three kinds. It is what Reconcile needs of a keystore or a journal, and holds
// no key. docs/audit.md has the form.
type (
	// KeyLine is a key record, as the keystore tells it.
	KeyLine struct {
		Unit        chip.MAC
		Fingerprint keystore.Fingerprint
		State       keystore.StateKind
		Created     time.Time // by the clock of the station that made the key
		Newest      time.Time // of record and states, by the store's clock
		Stored      time.Time // when the store took the record, by its clock; zero (year 1) if it does not tell
		Station     string
		Job         string
	}
	// UnitLine is a key that a journal tells of: custody was asked for, or a burn
	// was begun. A unit that passed without either has a line with no fingerprint.
	UnitLine struct {
		Unit        chip.MAC
		Fingerprint keystore.Fingerprint
		Burned      time.Time // when the intent to burn was written; zero (year 1) if there was none
		Escrow      bool      // custody was in the station's escrow: a custodian brought it to the store later
		Verdict     string    // of the last attempt that counts; empty if it was cut off
		Passes      int       // verdicts PASS without a rework before them
		Station     string
		Job         string
		Entry       uint64 // of the intent to burn, or the attempt's last
	}
	// HeadLine is the end of a journal.
	HeadLine struct {
		Journal string
		Station string
		Entries uint64
		Head    journal.Hash
		Last    time.Time // of the newest entry
	}
)

// Append writes the line, with its newline.
func (k KeyLine) Append(b []byte) []byte {
	b = append(b, `{"created":`...)
	b = canon.AppendTime(b, k.Created)
	b = canon.AppendStringField(b, "fingerprint", k.Fingerprint.String())
	b = canon.AppendStringField(b, "job", k.Job)
	b = canon.AppendTimeField(b, "newest", k.Newest)
	b = canon.AppendStringField(b, "source", "keystore")
	b = canon.AppendStringField(b, "state", stateName(k.State))
	b = canon.AppendStringField(b, "station", k.Station)
	b = canon.AppendTimeField(b, "stored", k.Stored)
	b = canon.AppendStringField(b, "unit", k.Unit.String())
	return append(b, "}\n"...)
}

// Append writes the line, with its newline.
func (u UnitLine) Append(b []byte) []byte {
	b = append(b, `{"burned":`...)
	b = canon.AppendTime(b, u.Burned)
	b = canon.AppendUintField(b, "entry", u.Entry)
	b = strconv.AppendBool(append(b, `,"escrow":`...), u.Escrow)
	b = canon.AppendStringField(b, "fingerprint", u.Fingerprint.String())
	b = canon.AppendStringField(b, "job", u.Job)
	b = canon.AppendUintField(b, "passes", uint64(u.Passes))
	b = canon.AppendStringField(b, "source", "journal")
	b = canon.AppendStringField(b, "station", u.Station)
	b = canon.AppendStringField(b, "unit", u.Unit.String())
	b = canon.AppendStringField(b, "verdict", u.Verdict)
	return append(b, "}\n"...)
}

// Append writes the line, with its newline.
func (h HeadLine) Append(b []byte) []byte {
	b = append(b, `{"entries":`...)
	b = strconv.AppendUint(b, h.Entries, 10)
	b = canon.AppendStringField(b, "head", h.Head.String())
	b = canon.AppendStringField(b, "journal", h.Journal)
	b = canon.AppendTimeField(b, "last", h.Last)
	b = canon.AppendStringField(b, "source", "head")
	b = canon.AppendStringField(b, "station", h.Station)
	return append(b, "}\n"...)
}

// stateName is the state in an inventory: a record without states is stored.
func stateName(s keystore.StateKind) string {
	if s == keystore.Stored {
		return "stored"
	}
	return string(s)
}

func parseState(s string) (keystore.StateKind, bool) {
	switch k := keystore.StateKind(s); k {
	case keystore.MayBeInSilicon, keystore.InSilicon, keystore.NotInSilicon, keystore.Superseded, keystore.Quarantined:
		return k, true
	}
	return keystore.Stored, s == "stored"
}

// ParseLine reads one line without its newline: a KeyLine, a UnitLine or a
// HeadLine. What parses is written the same again.
func ParseLine(line []byte) (any, error) {
	switch in := canon.NewReader(line); {
	case bytes.HasPrefix(line, []byte(`{"created"`)):
		return parseKeyLine(in)
	case bytes.HasPrefix(line, []byte(`{"burned"`)):
		return parseUnitLine(in)
	case bytes.HasPrefix(line, []byte(`{"entries"`)):
		return parseHeadLine(in)
	}
	return nil, errors.New(`the line begins with none of "created" (a key record), "burned" (a unit), "entries" (the end of a journal)`)
}

func parseKeyLine(in *canon.Reader) (k KeyLine, err error) {
	in.Field(true, "created")
	k.Created = in.Time("created")
	k.Fingerprint = readFingerprint(in)
	in.Field(false, "job")
	k.Job = in.String("job")
	in.Field(false, "newest")
	k.Newest = in.Time("newest")
	source(in, "keystore")
	in.Field(false, "state")
	state, ok := parseState(in.String("state"))
	if !ok {
		in.Fail("state", "none of stored, may-be-in-silicon, in-silicon, not-in-silicon, superseded, quarantined")
	}
	k.State = state
	in.Field(false, "station")
	k.Station = in.String("station")
	in.Field(false, "stored")
	k.Stored = in.Time("stored")
	k.Unit = readUnit(in)
	return k, in.End()
}

func parseUnitLine(in *canon.Reader) (u UnitLine, err error) {
	in.Field(true, "burned")
	u.Burned = in.Time("burned")
	in.Field(false, "entry")
	u.Entry = in.Uint("entry", canon.MaxInt)
	in.Field(false, "escrow")
	u.Escrow = in.Bool("escrow")
	u.Fingerprint = readFingerprint(in)
	in.Field(false, "job")
	u.Job = in.String("job")
	in.Field(false, "passes")
	u.Passes = int(in.Uint("passes", 1<<16-1))
	source(in, "journal")
	in.Field(false, "station")
	u.Station = in.String("station")
	u.Unit = readUnit(in)
	in.Field(false, "verdict")
	u.Verdict = in.String("verdict")
	switch provision.Verdict(u.Verdict) {
	case "", provision.Pass, provision.Fail, provision.Error, provision.Aborted, provision.Quarantined:
	default:
		in.Fail("verdict", "no verdict")
	}
	return u, in.End()
}

func parseHeadLine(in *canon.Reader) (h HeadLine, err error) {
	in.Field(true, "entries")
	h.Entries = in.Uint("entries", canon.MaxInt)
	in.Field(false, "head")
	if raw := in.Hex("head", len(h.Head)); len(raw) == len(h.Head) {
		copy(h.Head[:], raw)
	} else {
		in.Fail("head", "not 64 hex digits")
	}
	in.Field(false, "journal")
	h.Journal = in.String("journal")
	in.Field(false, "last")
	h.Last = in.Time("last")
	source(in, "head")
	in.Field(false, "station")
	h.Station = in.String("station")
	return h, in.End()
}

func source(in *canon.Reader, want string) {
	in.Field(false, "source")
	if in.String("source") != want {
		in.Fail("source", "does not go with the line's first member")
	}
}

func readFingerprint(in *canon.Reader) (fp keystore.Fingerprint) {
	in.Field(false, "fingerprint")
	if raw := in.Hex("fingerprint", len(fp)); len(raw) == len(fp) {
		copy(fp[:], raw)
	} else {
		in.Fail("fingerprint", "not 64 hex digits")
	}
	return fp
}

func readUnit(in *canon.Reader) chip.MAC {
	in.Field(false, "unit")
	s := in.String("unit")
	m, err := chip.ParseMAC(s)
	if err != nil || m.String() != s {
		in.Fail("unit", "not a MAC address")
	}
	return m
}

// maxLine bounds a line of an inventory.
const maxLine = 4 << 10

// ReadInventory reads a file of lines and shows each.
func ReadInventory(r io.Reader, show func(line any) error) error {
	in := bufio.NewReaderSize(r, 64<<10)
	for n := 1; ; n++ {
		line, err := in.ReadSlice('\n')
		switch {
		case errors.Is(err, io.EOF) && len(line) == 0:
			return nil
		case errors.Is(err, io.EOF):
			return fmt.Errorf("line %d has no end: the file was cut", n)
		case errors.Is(err, bufio.ErrBufferFull) || len(line) > maxLine:
			return fmt.Errorf("line %d is too long for an inventory", n)
		case err != nil:
			return err
		}
		v, err := ParseLine(line[:len(line)-1])
		if err == nil {
			err = show(v)
		}
		if err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
	}
}

// KeystoreLines shows a line for every record of a keystore, in the order of its
// units. It holds a few of them at a time.
func KeystoreLines(ctx context.Context, store keystore.Store, show func(KeyLine) error) error {
	for m, err := range keystore.Metas(ctx, store) {
		if err == nil {
			err = show(keyLine(m))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func keyLine(m keystore.Meta) KeyLine {
	k := KeyLine{
		Unit: m.Unit, Fingerprint: m.Fingerprint, State: m.Current(), Created: m.Created, Newest: m.Receipt.Time, Stored: m.Receipt.Time, Station: m.Station, Job: m.Job,
	}
	if m.Superseded() {
		k.State = keystore.Superseded
	}
	if k.Created.IsZero() { // a role that may not see it
		k.Created = m.Receipt.Time
	}
	for _, s := range m.States {
		if s.Time.After(k.Newest) {
			k.Newest = s.Time
		}
	}
	if k.Newest.IsZero() {
		k.Newest = k.Created
	}
	return k
}

// JournalLines reads a journal and shows a line for every key that may have gone
// into a unit, and at the end the line of the journal's head. It keeps no more
// than what the lines hold.
func JournalLines(entries Entries, showUnit func(UnitLine) error, showHead func(HeadLine) error) error {
	j := journalLines{units: map[chip.MAC]*journalUnit{}}
	if err := j.read(entries); err != nil {
		return err
	}
	for _, mac := range j.order {
		u := j.units[mac]
		for _, l := range u.lines {
			l.Unit, l.Verdict, l.Passes = mac, u.verdict, u.passes
			if err := showUnit(l); err != nil {
				return err
			}
		}
	}
	if j.head.Entries == 0 {
		return errors.New("there are no entries")
	}
	return showHead(j.head)
}

type journalUnit struct {
	lines   []UnitLine
	verdict string
	passes  int
	rework  bool
}

type journalLines struct {
	units map[chip.MAC]*journalUnit
	order []chip.MAC
	head  HeadLine
}

func (j *journalLines) unit(mac chip.MAC) *journalUnit {
	u := j.units[mac]
	if u == nil {
		u = &journalUnit{}
		j.units[mac] = u
		j.order = append(j.order, mac)
	}
	return u
}

func (j *journalLines) read(entries Entries) error {
	f := NewFolder()
	for e, err := range entries {
		if err != nil {
			return err
		}
		if err := j.note(e); err != nil {
			return err
		}
		if _, ok := rework(e); ok {
			j.unit(e.Unit).rework = true
			continue
		}
		a, err := f.Add(e)
		if err != nil {
			return err
		}
		if a != nil {
			if err := j.take(a); err != nil {
				return err
			}
		}
	}
	for _, a := range f.Rest() {
		if err := j.take(a); err != nil {
			return err
		}
	}
	return nil
}

func (j *journalLines) note(e journal.Entry) error {
	if e.Index == 0 && e.Step == journal.StepInit {
		var err error
		if j.head.Journal, err = journalID(e.Payload); err != nil {
			return err
		}
	}
	line, err := e.Canonical()
	if err != nil {
		return err
	}
	j.head.Station, j.head.Entries, j.head.Head = e.Station, e.Index+1, journal.HashLine(line)
	if e.Time.After(j.head.Last) {
		j.head.Last = e.Time
	}
	return nil
}

// take adds a complete attempt.
func (j *journalLines) take(a *Attempt) error {
	if a.MAC == (chip.MAC{}) || a.changedNothing() {
		return nil
	}
	u := j.units[a.MAC]
	if u == nil && a.CustodyFP == "" && a.BurnedFP == "" && a.Verdict != provision.Pass {
		return nil // no key was asked for yet
	}
	if u == nil {
		u = j.unit(a.MAC)
	}
	if a.Verdict != "" || a.OneWayBegun {
		u.verdict = string(a.Verdict)
	}
	if a.Verdict == provision.Pass && !u.rework {
		u.passes++
	}
	if a.Verdict != "" {
		u.rework = false
	}
	l := UnitLine{Burned: a.KeyBurn, Station: a.Station, Job: a.Job, Entry: a.KeyBurnIndex}
	if a.KeyBurn.IsZero() {
		l.Entry = a.Entries[len(a.Entries)-1]
	}
	fp := cmp.Or(a.BurnedFP, a.CustodyFP)
	if fp == "" {
		if a.Verdict == provision.Pass && len(u.lines) == 0 {
			u.lines = append(u.lines, l)
		}
		return nil // a run that went on after the burn: its key has a line already
	}
	var err error
	if l.Fingerprint, err = keystore.ParseFingerprint(fp); err != nil {
		return fmt.Errorf("journal entry %d: %w", l.Entry, err)
	}
	l.Escrow = a.KeyFingerprint == fp && strings.HasPrefix(a.KeyRef, escrowRef)
	i := slices.IndexFunc(u.lines, func(o UnitLine) bool { return o.Fingerprint == l.Fingerprint })
	switch {
	case i < 0:
		u.lines = append(u.lines, l)
	case u.lines[i].Burned.IsZero():
		if a.KeyRef == "" { // custody was in an attempt before
			l.Escrow = u.lines[i].Escrow
		}
		u.lines[i] = l
	}
	return nil
}

// escrowRef begins the key_ref of custody in an escrow (keystore/escrow.RefPrefix).
const escrowRef = "escrow:"

// journalID reads entry 0's payload.
func journalID(payload []byte) (string, error) {
	var p struct {
		Journal string `json:"journal"`
	}
	if err := json.Unmarshal(payload, &p); err != nil || p.Journal == "" {
		return "", errors.New("entry 0 does not name its journal")
	}
	return p.Journal, nil
}
