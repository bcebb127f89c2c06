package outbox

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"

	"github.com/provisiond/provisiond/internal/canon"
	"github.com/provisiond/provisiond/provision/journal"
)

// CursorFormat is the version of the cursor's file.
const CursorFormat = 1

// ErrCursor says that a cursor cannot be used with this journal.
var ErrCursor = errors.New("the cursor does not fit the journal")

// Cursor says how far a sink has come. Its file is one line of canonical JSON,
// replaced whole.
type Cursor struct {
	Sink    string
	Journal string       // id of the journal
	Next    uint64       // index of the next entry; all before it are done
	Hash    journal.Hash // of entry Next−1; zero if Next is 0
	Aside   uint64       // events set aside since the last one that was taken
}

// maxCursor bounds what is read of a file.
const maxCursor = 4096

// Canonical gives the file's content.
func (c Cursor) Canonical() []byte {
	b := append([]byte(`{"aside":`), strconv.FormatUint(c.Aside, 10)...)
	b = append(b, `,"format":`...)
	b = strconv.AppendInt(b, CursorFormat, 10)
	b = append(b, `,"hash":"`...)
	b = append(b, c.Hash.String()...)
	b = append(b, `","journal":`...)
	b = canon.AppendString(b, c.Journal)
	b = append(b, `,"next":`...)
	b = strconv.AppendUint(b, c.Next, 10)
	b = append(b, `,"sink":`...)
	b = canon.AppendString(b, c.Sink)
	return append(b, "}\n"...)
}

// ParseCursor reads what Canonical writes and nothing else.
func ParseCursor(b []byte) (Cursor, error) {
	line, ok := bytes.CutSuffix(b, []byte("\n"))
	if !ok {
		return Cursor{}, errors.New("the cursor has no newline at its end")
	}
	var c Cursor
	in := canon.NewReader(line)
	in.Field(true, "aside")
	c.Aside = in.Uint("aside", canon.MaxInt)
	in.Field(false, "format")
	if f := in.Uint("format", canon.MaxInt); f != CursorFormat {
		in.Fail("format", fmt.Sprintf("is not %d: use the provisiond that wrote it, or a newer one", CursorFormat))
	}
	in.Field(false, "hash")
	in.HexInto("hash", c.Hash[:])
	in.Field(false, "journal")
	c.Journal = in.String("journal")
	in.Field(false, "next")
	c.Next = in.Uint("next", canon.MaxInt)
	in.Field(false, "sink")
	c.Sink = in.String("sink")
	if err := in.End(); err != nil {
		return Cursor{}, err
	}
	if c.Journal == "" || (c.Next == 0) != (c.Hash == journal.Hash{}) {
		return Cursor{}, errors.New("the cursor's journal, next and hash are not one thing")
	}
	return c, CheckName(c.Sink)
}

// LoadCursor reads a cursor's file.
func LoadCursor(path string) (Cursor, error) {
	f, err := os.Open(path)
	if err != nil {
		return Cursor{}, err
	}
	defer func() { _ = f.Close() }() // only read
	b, err := io.ReadAll(io.LimitReader(f, maxCursor+1))
	if err != nil {
		return Cursor{}, err
	}
	if len(b) > maxCursor {
		return Cursor{}, fmt.Errorf("%s has more than %d bytes and is no cursor", path, maxCursor)
	}
	c, err := ParseCursor(b)
	if err != nil {
		return c, fmt.Errorf("%s: %w: it is damaged; bring it back from a backup (older is safe: events repeat), or move it away and the sink begins anew", path, err)
	}
	return c, nil
}

// Save replaces the file: a crash leaves the old cursor or the new one.
func (c Cursor) Save(path string) error { return WriteFile(path, c.Canonical(), 0o600) }

// firstCursor is where a sink without one begins.
func firstCursor(j Journal, d Delivery) (Cursor, error) {
	c := Cursor{Sink: d.Name, Journal: j.Info().ID}
	switch d.From {
	case FromBeginning:
	case FromNow, "":
		if size, hash := j.Head(); size > 1 { // a journal that was just made has told nobody anything
			c.Next, c.Hash = size, hash
		}
	default:
		return c, fmt.Errorf("from: %q is neither %q nor %q", d.From, FromNow, FromBeginning)
	}
	return c, nil
}

// fits checks that the cursor's entries are those of the journal.
func (c Cursor) fits(j Journal, sink, path string) error {
	info := j.Info()
	size, _ := j.Head()
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s: %s", ErrCursor, path, fmt.Sprintf(format, args...))
	}
	switch {
	case c.Sink != sink:
		return refuse("it is of sink %q; give each sink its own file back", c.Sink)
	case c.Journal != info.ID:
		hint := "check which journal and which state directory belong together"
		if s := info.Succeeds; s != nil && s.Journal == c.Journal {
			hint = fmt.Sprintf("this journal continues that one, which had %d entries; what the sink had not got of it it will not get", s.Size)
		}
		return refuse("it stands at entry %d of journal %s, and this is journal %s: %s. To begin anew with this journal, move the file away",
			c.Next, c.Journal, info.ID, hint)
	case c.Next > size:
		return refuse("it stands at entry %d, and the journal has %d: the journal is an older copy; bring the newer one back", c.Next, size)
	case c.Next == 0:
		return nil
	}
	for e, err := range j.Entries(c.Next-1, c.Next) {
		if err != nil {
			return err
		}
		hash, err := hashOf(e)
		if err != nil {
			return err
		}
		if hash != c.Hash {
			return refuse("entry %d is not the one that the sink has got: the journal was changed; run `provisiond journal verify`", e.Index)
		}
	}
	return nil
}

func hashOf(e journal.Entry) (journal.Hash, error) {
	line, err := e.Canonical()
	if err != nil {
		return journal.Hash{}, fmt.Errorf("entry %d: %w", e.Index, err)
	}
	return journal.HashLine(line), nil
}

// WriteFile makes or replaces a file so that a crash leaves the old content or
// the new one, and when it returns, the new one is durable. It uses one
// temporary name for each path, so callers take turns.
func WriteFile(path string, content []byte, mode os.FileMode) error {
	if err := ReplaceFile(path, content, mode); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// ReplaceFile is WriteFile without making the new name durable: SyncDir does
// that, for many files at once.
func ReplaceFile(path string, content []byte, mode os.FileMode) error {
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".tmp")
	f, err := os.OpenFile(tmp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return nil
}

// SyncDir makes the names in a directory durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
