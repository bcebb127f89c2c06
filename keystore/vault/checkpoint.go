package vault

import (
	"bytes"
	"context"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/provisiond/provisiond/keystore"
)

// maxCheckpoint bounds a note.
const maxCheckpoint = 16 << 10

// The parts of a checkpoint's path behind its station, as package journal makes
// them: DAY/SIZE or DAY/SIZE-GENERATION.
var (
	dayForm  = regexp.MustCompile(`^[0-9]{4}-[0-9]{2}-[0-9]{2}$`)
	nameForm = regexp.MustCompile(`^[0-9]{1,20}(-[0-9]{1,20})?$`)
)

func (s *Store) checkpointPath(station, day, name string) (string, error) {
	if err := checkName("station", station); err != nil {
		return "", err
	}
	if !dayForm.MatchString(day) || !nameForm.MatchString(name) {
		return "", fmt.Errorf("keystore/vault: checkpoint %q of day %q: write 2026-11-22 and the journal's size", name, day)
	}
	return checkpointFolder(station) + "/" + day + "/" + name, nil
}

// PutCheckpoint stores a signed journal head of this station (Config.Station),
// once. The identical note again is a success; another one at the same place is
// keystore.ErrExists.
func (s *Store) PutCheckpoint(ctx context.Context, day, name string, note []byte) error {
	if err := s.check(ctx); err != nil {
		return err
	}
	station := s.c.cfg.Station
	path, err := s.checkpointPath(station, day, name)
	if err != nil {
		return err
	}
	if len(note) == 0 || len(note) > maxCheckpoint {
		return fmt.Errorf("keystore/vault: a checkpoint has 1 to %d bytes, not %d", maxCheckpoint, len(note))
	}
	body, err := encode(checkpointJSON{Note: string(note)})
	if err != nil {
		return err
	}
	var there []byte
	look := func(ctx context.Context) (ok bool, err error) {
		there, ok, err = s.readCheckpoint(ctx, path)
		return ok, err
	}
	stored, answer, err := s.put(ctx, path, body, look)
	if err != nil || stored {
		return err
	}
	switch ok, err := s.settled(ctx, look); {
	case err != nil:
		return err
	case !ok:
		return s.notVisible(path, answer)
	case !bytes.Equal(there, note):
		return fmt.Errorf("%w: checkpoint %s", keystore.ErrExists, path)
	}
	return nil
}

// Checkpoint reads a checkpoint. A station may read its own, an auditor
// everybody's.
func (s *Store) Checkpoint(ctx context.Context, station, day, name string) ([]byte, error) {
	if err := s.check(ctx); err != nil {
		return nil, err
	}
	path, err := s.checkpointPath(station, day, name)
	if err != nil {
		return nil, err
	}
	note, ok, err := s.readCheckpoint(ctx, path)
	if err == nil && !ok {
		err = fmt.Errorf("%w: checkpoint %s", keystore.ErrNotFound, path)
	}
	return note, err
}

func (s *Store) readCheckpoint(ctx context.Context, path string) ([]byte, bool, error) {
	e, ok, err := s.c.get(ctx, "data", path)
	if err != nil || !ok {
		return nil, false, err
	}
	var j checkpointJSON
	if strict(e.Data, &j) != nil {
		return nil, false, damaged(path, "it is no checkpoint")
	}
	return []byte(j.Note), true, nil
}

// CheckpointStations names the stations that have checkpoints, for an auditor.
func (s *Store) CheckpointStations(ctx context.Context) ([]string, error) {
	return s.folders(ctx, "checkpoints/")
}

// CheckpointDays gives the days on which a station stored checkpoints, ascending.
func (s *Store) CheckpointDays(ctx context.Context, station string) ([]string, error) {
	if err := checkName("station", station); err != nil {
		return nil, err
	}
	return s.folders(ctx, checkpointFolder(station)+"/")
}

// CheckpointNames gives the names of one day's checkpoints, in no useful order:
// they are numbers and not padded.
func (s *Store) CheckpointNames(ctx context.Context, station, day string) ([]string, error) {
	if _, err := s.checkpointPath(station, day, "0"); err != nil {
		return nil, err
	}
	return s.folders(ctx, checkpointFolder(station)+"/"+day+"/")
}

func (s *Store) folders(ctx context.Context, path string) ([]string, error) {
	if err := s.check(ctx); err != nil {
		return nil, err
	}
	names, err := s.c.list(ctx, path)
	for i := range names {
		names[i] = strings.TrimSuffix(names[i], "/")
	}
	slices.Sort(names)
	return names, err
}
