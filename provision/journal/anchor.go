package journal

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/provisiond/provisiond/internal/boltfile"
)

// Anchor is another place that keeps the checkpoints of one station, so that a
// journal which was cut off, replaced or rewritten shows. A keystore is one.
type Anchor interface {
	// PutCheckpoint stores a checkpoint under its Path, durably, and never changes
	// it again. The identical one again is a success; another one under the same
	// path is an ErrAnchorTaken.
	PutCheckpoint(ctx context.Context, c Checkpoint) error
	// Checkpoints gives what is stored, the newest first: days descending, within
	// a day generations descending, within those sizes descending.
	// It reads as the loop goes on, and the loop may end early. An error that is an
	// ErrAnchorAway says that it can be asked again later.
	Checkpoints(ctx context.Context) iter.Seq2[Checkpoint, error]
}

// ErrAnchorTaken says that another checkpoint lies at this one's path.
var ErrAnchorTaken = errors.New("journal: another checkpoint is anchored there already")

// ErrAnchorAway says that an anchor cannot be asked now. It is in the error of an
// Anchor, and in that of Journal.Anchored.
var ErrAnchorAway = errors.New("journal: the anchor cannot be asked")

// AnchorError says that a journal is not the one whose checkpoints are anchored:
// it is older, or its history is another one.
type AnchorError struct {
	Path   string // of the journal
	Common int64  // last entry that both are known to have, NoIndex if there is none
	Reason string
	Newest Checkpoint // what is anchored

	cut bool // the search for Common came to no end
}

// Error names the last common entry and what to do.
func (e *AnchorError) Error() string {
	common := "no entry is known to be in both"
	if e.Common != NoIndex {
		common = fmt.Sprintf("entry %d is the last that is known to be in both", e.Common)
	}
	return fmt.Sprintf("journal %s is not the one that is anchored: %s; %s: keep the file as it is; "+
		"if its newer part is elsewhere (its copy %s, another disk), bring that back; "+
		"if it is lost, begin a new journal with: provisiond journal init --succeeds %s",
		e.Path, e.Reason, common, CopyPath(e.Path), e.Newest.Journal)
}

// Is makes errors.Is(err, ErrAnchor) true.
func (e *AnchorError) Is(target error) bool { return target == ErrAnchor }

// checkAnchor compares the journal with the newest checkpoints of the anchor. One
// that does not fit is an *AnchorError, also if those before it cannot be read.
func (j *Journal) checkAnchor(ctx context.Context, a Anchor) error {
	size, _ := j.Head()
	fault := &AnchorError{Path: j.path, Common: NoIndex}
	for c, err := range a.Checkpoints(ctx) {
		if err != nil && fault.Reason != "" {
			fault.cut = true
			break
		}
		if err != nil {
			return fmt.Errorf("journal %s: its anchor cannot be read: %w", j.path, err)
		}
		if fault.Newest.Size == 0 {
			fault.Newest = c
		}
		if c.Journal != j.info.ID {
			switch s := j.info.Succeeds; {
			case s == nil:
				fault.note("checkpoints of journal %s are there, and this one (%s) does not succeed it", c.Journal, j.info.ID)
			case s.Journal != c.Journal:
				fault.note("it succeeds journal %s, and checkpoints of journal %s are newer than that", s.Journal, c.Journal)
			case s.Size != c.Size || s.Root != c.Root:
				fault.note("it succeeds journal %s at %d entries, and that one has a checkpoint of %d", s.Journal, s.Size, c.Size)
			}
			break // what is older belongs to journals before
		}
		if c.verify(j.verifier) != nil {
			fault.note("the checkpoint of %d entries is signed with another key", c.Size)
			continue
		}
		if c.Size > size {
			fault.note("it has %d entries, and there is a checkpoint of %d", size, c.Size)
			continue
		}
		root, err := j.Tree(c.Size)
		if err != nil {
			return err
		}
		if root != c.Root {
			fault.note("its first %d entries are not those that were signed and anchored", c.Size)
			continue
		}
		fault.Common = int64(c.Size) - 1
		break
	}
	if fault.Reason != "" {
		return fault
	}
	return nil
}

// compare does late what Open could not do because the anchor was away. A journal
// that is not the one that is anchored takes no more entries.
func (j *Journal) compare(ctx context.Context) error {
	if j.Anchored() == nil {
		return nil
	}
	err := j.checkAnchor(ctx, j.anchor)
	var fault *AnchorError
	if errors.As(err, &fault) && fault.cut {
		_ = j.fail(err) // at once; which entry was the last in both has time
		more, cancel := context.WithTimeout(context.WithoutCancel(ctx), signPatience)
		defer cancel()
		var longer *AnchorError
		if errors.As(j.checkAnchor(more, j.anchor), &longer) {
			err, fault = longer, longer
		}
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	switch {
	case err == nil:
		j.notCompared = nil
	case fault != nil:
		j.notCompared, j.failed = fault, fault
		return fmt.Errorf("%w: %s: %w", ErrFailed, j.path, fault)
	default:
		j.notCompared = away(j.path, err)
	}
	return j.notCompared
}

// away is the error of an anchor that was not asked yet.
func away(path string, err error) error {
	if !errors.Is(err, ErrAnchorAway) {
		err = fmt.Errorf("%w: %w", ErrAnchorAway, err)
	}
	return fmt.Errorf("journal %s was not compared with its anchor yet: %w", path, err)
}

// Anchored is nil when the journal agrees with its anchor, or has none. It is an
// ErrAnchorAway while an anchor that was away at Open (WithAnchorLater) has not
// been asked, and an ErrAnchor if the journal then was found to be another one.
func (j *Journal) Anchored() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.notCompared
}

// note keeps the first reason.
func (e *AnchorError) note(format string, args ...any) {
	if e.Reason == "" {
		e.Reason = fmt.Sprintf(format, args...)
	}
}

// DirAnchor keeps checkpoints as create-only files in a folder: on another disk
// or a network share it is a poor man's anchor for stations without a keystore
// server.
type DirAnchor struct {
	dir     string
	station string
}

// NewDirAnchor gives the anchor of a station below dir, which must exist.
func NewDirAnchor(dir, station string) (*DirAnchor, error) {
	if st, err := os.Stat(dir); err != nil {
		return nil, fmt.Errorf("journal: anchor: %w", err)
	} else if !st.IsDir() {
		return nil, fmt.Errorf("journal: anchor: %s is no folder", dir)
	}
	return &DirAnchor{dir, station}, nil
}

// PutCheckpoint is Anchor's.
func (a *DirAnchor) PutCheckpoint(ctx context.Context, c Checkpoint) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if c.Station != a.station {
		return fmt.Errorf("journal: anchor %s is station %s's and not %s's", a.dir, a.station, c.Station)
	}
	path := filepath.Join(a.dir, filepath.FromSlash(c.Path()))
	day := filepath.Dir(path)
	if err := makeDirs(a.dir, day); err != nil {
		return fmt.Errorf("journal: anchor: %w", err)
	}
	// Under another name first, so that a crash leaves no half file at the path.
	tmp, err := os.CreateTemp(day, ".new-*")
	if err != nil {
		return fmt.Errorf("journal: anchor: %w", err)
	}
	defer func() { _ = os.Remove(tmp.Name()) }()
	_, err = tmp.Write(c.Note)
	if err := errors.Join(err, tmp.Sync(), tmp.Close()); err != nil {
		return fmt.Errorf("journal: anchor: %w", err)
	}
	if err := os.Link(tmp.Name(), path); errors.Is(err, fs.ErrExist) {
		if old, err := os.ReadFile(path); err != nil || !bytes.Equal(old, c.Note) {
			return fmt.Errorf("%w: %s", ErrAnchorTaken, path)
		}
	} else if err != nil {
		return fmt.Errorf("journal: anchor: %w", err)
	}
	return boltfile.SyncDir(day)
}

// makeDirs makes the folders below root durably.
func makeDirs(root, dir string) error {
	if dir == root || len(dir) <= len(root) {
		return nil
	}
	parent := filepath.Dir(dir)
	if err := makeDirs(root, parent); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); errors.Is(err, fs.ErrExist) {
		return nil
	} else if err != nil {
		return err
	}
	return boltfile.SyncDir(parent)
}

// Checkpoints is Anchor's.
func (a *DirAnchor) Checkpoints(ctx context.Context) iter.Seq2[Checkpoint, error] {
	return func(yield func(Checkpoint, error) bool) {
		root := filepath.Join(a.dir, filepath.FromSlash(StationPath(a.station)))
		days, err := os.ReadDir(root)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			yield(Checkpoint{}, err)
			return
		}
		slices.Reverse(days) // ReadDir sorts by name
		for _, day := range days {
			if _, err := time.Parse(time.DateOnly, day.Name()); err != nil {
				continue
			}
			files, err := os.ReadDir(filepath.Join(root, day.Name()))
			if err != nil {
				yield(Checkpoint{}, err)
				return
			}
			var names []string
			for _, f := range files {
				names = append(names, f.Name())
			}
			for _, name := range NewestFirst(names) {
				c, err := a.read(ctx, filepath.Join(root, day.Name(), name))
				if !yield(c, err) || err != nil {
					return
				}
			}
		}
	}
}

func (a *DirAnchor) read(ctx context.Context, path string) (Checkpoint, error) {
	if err := ctx.Err(); err != nil {
		return Checkpoint{}, err
	}
	b, err := os.ReadFile(path)
	if err != nil {
		return Checkpoint{}, err
	}
	c, err := ParseCheckpoint(b)
	if err == nil && (c.Station != a.station || !strings.HasSuffix(filepath.ToSlash(path), "/"+c.Path())) {
		err = errors.New("it is a checkpoint for another place")
	}
	if err != nil {
		return Checkpoint{}, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// NewestFirst sorts the names of one day's checkpoints (the last part of Path) as
// Anchor.Checkpoints must give them. Other names are left out.
func NewestFirst(names []string) []string {
	type key struct{ generation, size uint64 }
	keys := map[string]key{}
	var out []string
	for _, name := range names {
		var k key
		size, generation, later := strings.Cut(name, "-")
		var err error
		k.size, err = strconv.ParseUint(size, 10, 64)
		if err == nil && later {
			k.generation, err = strconv.ParseUint(generation, 10, 64)
		}
		if err == nil {
			keys[name] = k
			out = append(out, name)
		}
	}
	slices.SortFunc(out, func(a, b string) int {
		return -cmp.Or(cmp.Compare(keys[a].generation, keys[b].generation), cmp.Compare(keys[a].size, keys[b].size))
	})
	return out
}

// Succession is what entry 0 of a journal says about the one before it.
type Succession struct {
	Checkpoint        // the last one of the journal before
	PublicKey  string // of the journal before
}

// FindPredecessor looks in an anchor for the newest checkpoint of a journal.
// Without id it takes the journal that was anchored last.
func FindPredecessor(ctx context.Context, a Anchor, id string) (Checkpoint, error) {
	for c, err := range a.Checkpoints(ctx) {
		if err != nil {
			return Checkpoint{}, err
		}
		if id != "" && c.Journal != id {
			return Checkpoint{}, fmt.Errorf("journal: the newest checkpoint that is anchored is of journal %s and not of %s: succeed that one", c.Journal, id)
		}
		return c, nil
	}
	return Checkpoint{}, errors.New("journal: no checkpoint is anchored: there is nothing to succeed")
}

// verifierOf parses a public key.
func verifierOf(publicKey string) (note.Verifier, error) {
	v, err := note.NewVerifier(publicKey)
	if err != nil {
		return nil, fmt.Errorf("%w: %q is no public key of a journal", ErrKey, publicKey)
	}
	return v, nil
}
