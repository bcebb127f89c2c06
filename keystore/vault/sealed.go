package vault

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"

	"github.com/provisiond/provisiond/esp/chip"
	"github.com/provisiond/provisiond/keystore"
)

// Sealed records of a station's escrow (package keystore/escrow) lie at
//
//	escrow/<station>/<mac>/<fingerprint>            the sealed record
//	escrow/<station>/<mac>/<fingerprint>/state/<n>  its n-th state
//	escrow/<station>/<mac>/<fingerprint>/drained    that the custodian has stored it
//
// create-only like everything else. A station creates its own and reads only
// names: what is there, and its hash.

// maxSealed bounds a sealed record.
const maxSealed = 64 << 10

// sealedJSON is a sealed thing as it is stored. Clear has one name, the hash of
// the content, which subkeys shows.
type sealedJSON struct {
	Sealed []byte            `json:"sealed"`
	Clear  map[string]string `json:"clear"`
}

func (s *Store) sealedPath(station string, unit chip.MAC, fp keystore.Fingerprint) (string, error) {
	if err := checkName("station", station); err != nil {
		return "", err
	}
	return fmt.Sprintf("escrow/%s/%s/%s", station, unit, fp), nil
}

func sealedName(b []byte) string {
	sum := sha256.Sum256(b)
	return "sha256=" + hex.EncodeToString(sum[:])
}

// putSealed stores something sealed, once. The same again is a success, another
// at the same place keystore.ErrExists.
func (s *Store) putSealed(ctx context.Context, path string, b []byte) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	ctx = s.c.begin(ctx)
	if len(b) == 0 || len(b) > maxSealed {
		return fmt.Errorf("keystore/vault: a sealed record has 1 to %d bytes, not %d", maxSealed, len(b))
	}
	body, err := encode(sealedJSON{b, map[string]string{sealedName(b): ""}})
	if err != nil {
		return err
	}
	same := false
	look := func(ctx context.Context) (bool, error) {
		e, ok, err := s.c.get(ctx, "subkeys", path)
		if err != nil || !ok {
			return false, err
		}
		var names map[string]json.RawMessage
		if json.Unmarshal(e.Subkeys.Clear, &names) != nil {
			return false, damaged(path, "it is no sealed record")
		}
		_, same = names[sealedName(b)]
		return true, nil
	}
	stored, answer, err := s.put(ctx, path, body, look)
	if err != nil || stored {
		return err
	}
	switch ok, err := s.settled(ctx, look); {
	case err != nil:
		return fmt.Errorf("%w: %s: %w", keystore.ErrUnknownOutcome, path, err)
	case !ok:
		return s.notVisible(path, answer)
	case !same:
		return fmt.Errorf("%w: %s", keystore.ErrExists, path)
	}
	return nil
}

// PutSealed stores a sealed record of this station (Config.Station).
func (s *Store) PutSealed(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint, sealed []byte) error {
	path, err := s.sealedPath(s.c.cfg.Station, unit, fp)
	if err != nil {
		return err
	}
	return s.putSealed(ctx, path, sealed)
}

// PutSealedState stores a state of a sealed record of this station.
func (s *Store) PutSealedState(ctx context.Context, unit chip.MAC, fp keystore.Fingerprint, n int, state []byte) error {
	path, err := s.sealedPath(s.c.cfg.Station, unit, fp)
	if err != nil {
		return err
	}
	return s.putSealed(ctx, fmt.Sprintf("%s/state/%d", path, n), state)
}

// PutDrained says that a sealed record was stored, for the custodian. Whoever
// came first has said it.
func (s *Store) PutDrained(ctx context.Context, station string, unit chip.MAC, fp keystore.Fingerprint, marker []byte) error {
	path, err := s.sealedPath(station, unit, fp)
	if err != nil {
		return err
	}
	if drained, err := s.isDrained(ctx, path); err != nil || drained {
		return err
	}
	return s.putSealed(ctx, path+"/drained", marker)
}

func (s *Store) isDrained(ctx context.Context, path string) (bool, error) {
	_, ok, err := s.c.get(ctx, "subkeys", path+"/drained")
	return ok, err
}

// EachSealed shows every sealed record that is not drained, for the custodian and
// auditors.
func (s *Store) EachSealed(ctx context.Context, show func(station string, unit chip.MAC, fp keystore.Fingerprint) error) error {
	stations, err := s.folders(ctx, "escrow/")
	if err != nil {
		return err
	}
	for _, station := range stations {
		units, err := s.folders(ctx, "escrow/"+station+"/")
		if err != nil {
			return err
		}
		for _, name := range units {
			unit, err := chip.ParseMAC(name)
			if err != nil || unit.String() != name {
				return damaged("escrow/"+station+"/"+name, "it is no unit")
			}
			if err := s.eachSealedOf(ctx, station, unit, show); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Store) eachSealedOf(ctx context.Context, station string, unit chip.MAC, show func(string, chip.MAC, keystore.Fingerprint) error) error {
	folder := fmt.Sprintf("escrow/%s/%s/", station, unit)
	names, err := s.c.list(ctx, folder)
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasSuffix(name, "/") {
			continue // states and marker of a record that is listed too
		}
		fp, err := keystore.ParseFingerprint(name)
		if err != nil {
			return damaged(folder+name, "it is no sealed record")
		}
		done, err := s.isDrained(ctx, folder+name)
		if err != nil {
			return err
		}
		if done {
			continue
		}
		if err := show(station, unit, fp); err != nil {
			return err
		}
	}
	return nil
}

// ReadSealed gives a sealed record and its states, for the custodian.
func (s *Store) ReadSealed(ctx context.Context, station string, unit chip.MAC, fp keystore.Fingerprint) (sealed []byte, states [][]byte, err error) {
	path, err := s.sealedPath(station, unit, fp)
	if err == nil {
		err = s.check(ctx)
	}
	if err != nil {
		return nil, nil, err
	}
	sealed, ok, err := s.readSealed(ctx, path)
	if err == nil && !ok {
		err = fmt.Errorf("%w: %s", keystore.ErrNotFound, path)
	}
	for n := 1; err == nil; n++ {
		var st []byte
		if st, ok, err = s.readSealed(ctx, fmt.Sprintf("%s/state/%d", path, n)); err == nil && !ok {
			return sealed, states, nil
		}
		states = append(states, st)
	}
	return nil, nil, err
}

func (s *Store) readSealed(ctx context.Context, path string) ([]byte, bool, error) {
	e, ok, err := s.c.get(ctx, "data", path)
	if err != nil || !ok {
		return nil, false, err
	}
	var j sealedJSON
	if strict(e.Data, &j) != nil {
		return nil, false, damaged(path, "it is no sealed record")
	}
	if _, ok := j.Clear[sealedName(j.Sealed)]; !ok || len(j.Clear) != 1 {
		return nil, false, damaged(path, "its hash is not that of its content")
	}
	return j.Sealed, true, nil
}
