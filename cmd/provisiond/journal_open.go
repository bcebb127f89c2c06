package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"go.uber.org/zap"

	"github.com/provisiond/provisiond/provision"
	"github.com/provisiond/provisiond/provision/journal"
)

// openedJournal is a journal that is read, or what a copy of one that is in use
// held when it was opened.
type openedJournal struct {
	*journal.Journal
	path string // as it was named
	live bool   // another process has it; this is its copy, every line of it checked
	dir  string // to be removed
}

// Close closes the journal. Nothing was appended.
func (o *openedJournal) Close() {
	_ = o.Journal.Close()
	if o.dir != "" {
		_ = os.RemoveAll(o.dir)
	}
}

// readJournal opens an existing journal for reading. A missing one is no reason to
// begin an empty history. One that a station is writing is read from its copy.
func readJournal(a *app, path string) (*openedJournal, error) {
	return readJournalWith(a, path, func() (*journal.Journal, error) {
		return journal.Open(path, journal.WithContext(a.ctx), journal.WithProber(prober()))
	})
}

func readJournalWith(a *app, path string, open func() (*journal.Journal, error)) (*openedJournal, error) {
	j, err := open()
	if errors.Is(err, journal.ErrLocked) {
		return readCopy(a, path)
	}
	if err != nil {
		return nil, journalFailure(path, err)
	}
	a.noteJournal(j.Info())
	return &openedJournal{Journal: j, path: path}, nil
}

// readCopy makes a journal of the copy in a folder of its own. Every line is
// checked on the way: hashes, chain, tree and checkpoints.
func readCopy(a *app, path string) (_ *openedJournal, err error) {
	dir, err := os.MkdirTemp("", "provisiond-journal-")
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = os.RemoveAll(dir)
		}
	}()
	at := filepath.Join(dir, filepath.Base(path))
	made, err := journal.Backup(a.ctx, path, at)
	if err != nil {
		return nil, journalFailure(path, err)
	}
	j, err := journal.Open(at, journal.WithContext(a.ctx))
	if err != nil {
		return nil, journalFailure(path, err)
	}
	a.note("%s is in use%s: this is its copy %s, as it is now: %d entries, the last checkpoint covers %d",
		path, usedBy(path), journal.CopyPath(path), made.Entries, made.Signed)
	return &openedJournal{Journal: j, path: path, live: true, dir: dir}, nil
}

// usedBy names the process that holds a file's lock, if the system tells.
func usedBy(path string) string {
	var st syscall.Stat_t
	locks, err := os.ReadFile("/proc/locks")
	if err != nil || syscall.Stat(path, &st) != nil {
		return ""
	}
	inode := fmt.Sprintf(":%d", st.Ino)
	for s := bufio.NewScanner(bytes.NewReader(locks)); s.Scan(); {
		// 1: FLOCK  ADVISORY  WRITE 4711 fe:01:1234 0 EOF
		f := strings.Fields(s.Text())
		if len(f) < 6 || f[1] != "FLOCK" || !strings.HasSuffix(f[5], inode) {
			continue
		}
		name, err := os.ReadFile("/proc/" + f[4] + "/comm") //nolint:gosec // the kernel's own number
		if err != nil {
			return " by process " + f[4]
		}
		return fmt.Sprintf(" by %s (process %s)", strings.TrimSpace(string(name)), f[4])
	}
	return ""
}

// note tells something on standard error that is no failure. A script gets it in
// the log.
func (a *app) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if a.json {
		a.log.Warn("note", zap.String("text", text))
		return
	}
	_, _ = fmt.Fprintln(a.errOut, "provisiond: note:", text)
}

// noteJournal tells what was found when a journal was opened.
func (a *app) noteJournal(i journal.Info) {
	if i.TornCommit {
		a.note("%s: its newest commit is torn, as after a power cut, and the one before it counts. "+
			"All that was acknowledged is there if there was a power cut; if there was none, compare it with a checkpoint that is kept elsewhere (--anchor)", i.Path)
	}
	a.log.Info("journal", zap.String("path", i.Path), zap.Bool("index_rebuilt", i.IndexRebuilt), zap.Bool("copy_mended", i.CopyMended), zap.Bool("torn_commit", i.TornCommit))
}

// check demands that every journal which succeeds another one is given with
// it, and continues what that one has.
func (f chainFlags) check(a *app, js []*openedJournal) error {
	byID := map[string]*openedJournal{}
	for _, j := range js {
		byID[j.Info().ID] = j
	}
	missing := map[string]bool{}
	for _, j := range js {
		s := j.Info().Succeeds
		if s == nil {
			continue
		}
		before, ok := byID[s.Journal]
		if !ok {
			missing[s.Journal] = true
			if f.single || slices.Contains(f.Lost, s.Journal) {
				a.note("%s succeeds journal %s, whose %d entries are not in what follows", j.path, s.Journal, s.Size)
				continue
			}
			return &provision.Failure{
				Cause:    provision.CauseJournal,
				Reason:   fmt.Sprintf("%s succeeds journal %s of station %s (%d entries), and that one is not given", j.path, s.Journal, s.Station, s.Size),
				NextStep: "name it too with --journal (a backup will do); if nobody has it any more, say so with --lost " + s.Journal,
			}
		}
		if err := succeeds(j, before); err != nil {
			return journalFailure(j.path, err)
		}
	}
	for _, id := range f.Lost {
		if !missing[id] {
			return usage("--lost: no journal that was given succeeds one with id %s that was not given", id)
		}
	}
	return nil
}

// succeeds holds what a journal says of the one before it against that one.
func succeeds(j, before *openedJournal) error {
	s := j.Info().Succeeds
	if size, _ := before.Head(); size < s.Size {
		return fmt.Errorf("it continues %s at %d entries, and that one has %d: it is an older copy", before.path, s.Size, size)
	}
	root, err := before.Tree(s.Size)
	switch {
	case err != nil:
		return err
	case root != s.Root:
		return fmt.Errorf("it continues %s at %d entries, and those are not the ones that were signed then", before.path, s.Size)
	case s.PublicKey != "" && s.PublicKey != before.Info().PublicKey:
		return fmt.Errorf("it says that %s is signed with another key", before.path)
	}
	return s.Verify(before.Info().PublicKey)
}
